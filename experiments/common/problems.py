"""Problems: what optimizers run on, their curves, the tuning of baselines."""

import itertools
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial

from experiments.common.baselines import TABLE
from experiments.common.cli import log
from l2o_jax.base import Optimizee
from l2o_jax.evaluation import learning_curves

# What a curve [..., K + 1] is judged by.
SCORES = {
  'final': lambda curves: curves[..., -1],
  'mean': lambda curves: curves.mean(-1),
}

# No task of one kind is ever a task of another.
_KEYS = {'validation': 1_000_001, 'tuning': 1_500_003, 'test': 2_000_003}

# Learning rates: first two per decade, then nine around the best, ten per
# decade.
RATES = np.geomspace(1e-3, 10.0, 9)
_AROUND = 10 ** (np.arange(-4, 5) / 10)


class Problem(NamedTuple):
  """What optimizers run on.

  Attributes:
    optimizee: the family.
    keys: of the tasks, [B].
    num_steps: T.
    batch_size: tasks at a time; None: all.
    every: steps between two losses; a divisor of T.
    objective: losses are over all data, not of the step's minibatch.
    given: leaves of the optimizee have a leading axis B: task b is its b-th.
  """

  optimizee: Optimizee
  keys: jax.Array
  num_steps: int
  batch_size: int | None = None
  every: int = 1
  objective: bool = False
  given: bool = False


def keys(what: str, count: int) -> jax.Array:
  """Keys of the tasks for 'validation', 'tuning' or 'test', [count]."""
  return jax.random.split(jax.random.key(_KEYS[what]), count)


def given(optimizee: Optimizee, keys: jax.Array, num_steps: int) -> Problem:
  """The very functions that init draws from these keys, [B]."""
  drawn = jax.vmap(optimizee.init)(keys)
  init = Partial(lambda drawn, key: drawn, drawn)
  return Problem(optimizee._replace(init=init), keys, num_steps, given=True)


def runner(problem: Problem, make_opt: Callable) -> Callable:
  """arguments of make_opt -> losses [B, T / every + 1], compiled once."""
  how = problem.num_steps, problem.batch_size
  judge = {'objective': problem.objective, 'every': problem.every}

  @jax.jit
  def losses(arguments, optimizee, keys):
    opt = make_opt(*arguments)
    run = lambda f, keys: learning_curves(f, opt, keys, *how, **judge)
    if problem.given:
      return jax.vmap(lambda f, key: run(f, key[None])[0])(optimizee, keys)
    return run(optimizee, keys)

  return lambda *args: losses(args, problem.optimizee, problem.keys)


def mean_curve(problem: Problem, learned) -> Callable:
  """theta -> mean losses [T / every + 1]; for validation."""
  run = runner(problem, learned.transform)
  return lambda theta: np.asarray(run(theta), np.float64).mean(0)


def switched(opts, which) -> optax.GradientTransformationExtraArgs:
  """The optimizer opts[which]; `which` may be traced."""
  opts = [optax.with_extra_args_support(opt) for opt in opts]

  def init(params):
    return tuple(opt.init(params) for opt in opts)

  def update(updates, states, params=None, **extra_args):
    def branch(i, states):
      found, new = opts[i].update(updates, states[i], params, **extra_args)
      return found, (*states[:i], new, *states[i + 1 :])

    branches = [Partial(branch, i) for i in range(len(opts))]
    return jax.lax.switch(which, branches, states)

  return optax.GradientTransformationExtraArgs(init, update)


def _choices(name, how):
  """Values of the parameters beside the rate that are tried."""
  values = TABLE[name].parameters.values()
  choices = list(itertools.product(*values))
  return choices[:1] if how == 'rate' else choices


def together(problem: Problem, names, how: str) -> Callable:
  """(name, rate, choice of parameters) -> losses [B, T / every + 1].

  Args:
    problem: to run on.
    names: of hand-designed optimizers in `baselines.TABLE`.
    how: 'rate': of each, only the first choice, and one program for all, since
      with few and short runs compiling takes most of the time.  'all': every
      choice, a program for each; one would hold too many optimizers.
  """
  pairs = [(name, choice) for name in names for choice in _choices(name, how)]
  make = lambda name, choice, rate: TABLE[name].make(rate, *choice)
  if how == 'rate':
    each = lambda rate: [make(*pair, rate) for pair in pairs]
    one = runner(problem, lambda which, rate: switched(each(rate), which))
    programs = {pair: partial(one, i) for i, pair in enumerate(pairs)}
  else:  # each is compiled when it is first run
    programs = {pair: runner(problem, partial(make, *pair)) for pair in pairs}
  return lambda name, rate, choice: np.asarray(
    programs[name, tuple(choice)](jnp.float32(rate))
  )


def tune(
  problem: Problem,
  name: str,
  by: str,
  how: str = 'all',
  run: Callable | None = None,
) -> dict:
  """The best setting of a hand-designed optimizer, {'rate', ...}.

  Rates lie at half decades at first.  While the best is at an end, more follow
  there, three times at most; then ten a decade are tried around it.  A setting
  whose score is not finite counts as infinite.

  Args:
    problem: to tune on.
    name: of `baselines.TABLE`.
    by: 'final' or 'mean': what of a curve is to be low, in the mean over tasks.
    how: 'rate': the learning rate alone; 'all': all parameters.
    run: what `together` made of this problem, if it is there already.
  """
  baseline, score, found = TABLE[name], SCORES[by], {}
  run = run or together(problem, [name], how)

  def measure(choice, rates):
    for rate in rates:
      # float64: the mean of float32 that nearly overflow would warn.
      losses = run(name, rate, choice).astype(np.float64)
      value = score(losses).mean()
      found[float(rate), *choice] = value if np.isfinite(value) else np.inf
    return min(found, key=found.get)

  for choice in _choices(name, how):
    best = measure(choice, np.ones(1) if baseline.searches else RATES)
  if not baseline.searches:
    for _ in range(3):
      tried = [rate for rate, *choice in found if tuple(choice) == best[1:]]
      if min(tried) < best[0] < max(tried):
        break
      down = best[0] == min(tried)
      shift = min(tried) / 10**4.5 if down else max(tried) * 10**0.5
      best = measure(best[1:], RATES / RATES[0] * shift)
    best = measure(best[1:], best[0] * _AROUND)
  if not np.isfinite(found[best]):
    log(f'{name} diverges with every setting')
  rate = {} if baseline.searches else {'rate': best[0]}
  return rate | dict(zip(baseline.parameters, best[1:]))


def make_baseline(name: str, setting: dict):
  """The optax transformation of a `tune`d setting."""
  rate, choice = rate_and_choice(setting)
  return TABLE[name].make(rate, *choice)


def rate_and_choice(setting: dict) -> tuple[float, tuple]:
  """The learning rate and the other parameters of a `tune`d setting."""
  values = dict(setting)
  rate = values.pop('rate', 1.0)
  return rate, tuple(values.values())
