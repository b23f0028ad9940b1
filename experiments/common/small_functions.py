"""Functions, hand-designed optimizers and margins of the 2016 paper."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.common.conjugate_gradient import (
  conjugate_gradient,
  with_value_fn,
)
from l2o_jax.optimizees.regression import (
  logistic_regression,
  robust_regression,
  small_net,
)
from l2o_jax.unroll import unroll

# Family, and training functions in the paper.
FAMILIES = {
  'logistic': (logistic_regression(), 90),
  'robust': (robust_regression(), 120),
  'net': (small_net(), 80),
}

_RATES = tuple(np.geomspace(0.0125, 6.4, 10))
_MOMENTA = (0.5, 0.7, 0.8, 0.85, 0.9, 0.95)
_RULES = ('fletcher_reeves', 'polak_ribiere')


def _lbfgs(rate, memory):
  return lambda loss: optax.lbfgs(rate, memory_size=memory, linesearch=None)


def _search():
  # Not optax's zoom search: it did not end on a robust regression.
  return optax.scale_by_backtracking_linesearch(20, increase_factor=2.0)


def _lbfgs_search(memory):
  return lambda loss: with_value_fn(
    optax.lbfgs(memory_size=memory, linesearch=_search()), loss
  )


def _cg_search(rate, rule):
  return lambda loss: with_value_fn(
    conjugate_gradient(rate, rule, _search()), loss
  )


# {name: (setting -> (f -> optimizer), settings)}.  A fixed step, as in the
# paper's code, unless the name says that the optimizer may evaluate f as often
# as its line search likes.
OPTIMIZERS = {
  'gradient descent': (
    lambda rate: lambda loss: optax.sgd(rate),
    [(rate,) for rate in _RATES],
  ),
  'momentum': (
    lambda rate, m: lambda loss: optax.sgd(rate, momentum=m),
    list(itertools.product(_RATES, _MOMENTA)),
  ),
  'CG': (
    lambda rate, rule: lambda loss: conjugate_gradient(rate, rule),
    list(itertools.product(_RATES, _RULES)),
  ),
  'L-BFGS': (_lbfgs, list(itertools.product(_RATES, (5, 10)))),
  'CG, line search': (_cg_search, list(itertools.product((1.0,), _RULES))),
  'L-BFGS, line search': (_lbfgs_search, [(10,)]),
}


def curves(optimizee, make_opt, keys, num_steps):
  """f(x_0) ... f(x_T), one function per key, [B, T + 1].

  Args:
    optimizee: a family without minibatches.
    make_opt: f -> optimizer.
    keys: of the functions, [B].
    num_steps: T.
  """

  def run(key):
    params, task = optimizee.init(key)
    loss = lambda params: optimizee.loss(params, task, key)
    opt = make_opt(loss)
    _, trajectory = unroll(
      lambda params, _: loss(params),
      opt,
      params,
      opt.init(params),
      jax.random.split(key, num_steps + 1),
    )
    return trajectory.losses

  return jax.vmap(run)(keys)


def tune(run, data, make_opt, grid):
  """The setting of lowest mean sum of losses.

  Args:
    run: data, what make_opt returns -> losses [B, T + 1].
    data: arrays that `run` needs; arguments of the compiled function.
    make_opt: setting -> what `run` takes.
    grid: settings, tuples; their floats vary inside one compiled function.

  Returns:
    (setting, sums of all settings); one that diverges anywhere has sum inf.

  Raises:
    ValueError: all diverge.
  """
  groups, found = {}, {}
  for setting in grid:
    numbers = tuple(v for v in setting if isinstance(v, float))
    rest = tuple(v for v in setting if not isinstance(v, float))
    groups.setdefault(rest, []).append(numbers)
  for rest, settings in groups.items():

    @jax.jit
    def measure(columns, data, rest=rest):
      total = lambda numbers: jnp.mean(
        jnp.sum(run(data, make_opt(*numbers, *rest)), 1)
      )
      return jax.lax.map(total, columns) if columns else total(())[None]

    columns = tuple(jnp.asarray(c, jnp.float32) for c in zip(*settings))
    for numbers, total in zip(settings, np.asarray(measure(columns, data))):
      found[numbers + rest] = total if np.isfinite(total) else np.inf
  best = min(found, key=found.get)
  if not np.isfinite(found[best]):
    raise ValueError('tune: every setting diverges')
  return best, found


def margin(losses, name, others):
  """Mean over functions of (best competitor's loss - one's own), [T + 1].

      1/B sum_b ( min_c f_b(x_t of c) - f_b(x_t) )

  (Li & Malik 2016, section 5: positive where `name` beats all others.)  The
  best competitor is another one for every function and step.  A competitor
  above f_b(x_0), such as one that diverged, counts as f_b(x_0).

  Args:
    losses: {optimizer: [B, T + 1]}.
    name: whose margin.
    others: competitors.
  """
  best = np.min(
    [np.where(x <= x[:, :1], x, x[:, :1]) for x in map(losses.get, others)], 0
  )
  own = np.where(np.isnan(losses[name]), np.inf, losses[name])
  return np.mean(best - own, 0)
