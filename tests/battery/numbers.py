"""Attacks by numbers: nan, inf, and the ends of the floating-point range."""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
from hypothesis import strategies
from jax.tree_util import Partial

from l2o_jax.base import Optimizee
from l2o_jax.cells.lstm import lstm_cell
from l2o_jax.coordinatewise import coordinatewise
from l2o_jax.features import gradient
from l2o_jax.learned_optimizers import lstm_log_and_sign, lstm_raw
from l2o_jax.optimizees.quadratic import quadratic
from l2o_jax.truncated_bptt import truncated_bptt


def _is_finite(tree):
  return all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(tree))


def nonfinite_gradients(directory, times):
  """NaN or inf in some gradients: the others are bitwise what they were."""
  del directory
  rng = np.random.default_rng(5)
  n = 12
  for learned in (lstm_raw(), lstm_log_and_sign()):
    opt = learned.transform(learned.init(jax.random.key(0)))

    @jax.jit
    def run(gradients, params, opt=opt):
      """Updates and states of three steps."""
      state, out = opt.init(params), []
      for g in gradients:
        updates, state = opt.update(g, state, params)
        out.append((updates, state))
      return out

    for i in range(times):
      g = rng.normal(size=(3, n)).astype(np.float32)
      params = rng.normal(size=n).astype(np.float32)
      bad, at_params = rng.random(n) < rng.uniform(0.1, 0.9), i % 3 == 2
      poison = rng.choice([np.nan, np.inf, -np.inf], n).astype(np.float32)
      poisoned, poisoned_params = g.copy(), params.copy()
      if at_params:
        poisoned_params[bad] = poison[bad]
      poisoned[rng.integers(2), bad] = poison[bad]
      one, two = run(g, params), run(poisoned, poisoned_params)
      assert _is_finite(two)
      for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_array_equal(a[..., ~bad], b[..., ~bad])
  return f'{2 * times} poisoned runs: all finite, all others bitwise equal'


def _poisoned(family, where):
  """`family`, some of whose tasks are poisoned as their task says."""

  def init(key):
    key, bad_key = jax.random.split(key)
    params, task = family.init(key)
    bad = jax.random.bernoulli(bad_key, 0.3)
    if where == 'params':
      params = jnp.where(bad, jnp.nan, params)
    return params, (task, bad)

  def loss(params, task, key):
    task, bad = task
    f = family.loss(params, task, key)
    if where == 'loss':
      return jnp.where(bad, jnp.inf, 1.0) * f
    if where == 'meta_gradient':  # d sqrt(0) = inf, times d(0 x) = 0: nan
      f += jnp.sqrt(jnp.where(bad, 0.0, 1.0) + jnp.sum(0 * params))
    return f

  return Optimizee(Partial(init), Partial(loss))


def nonfinite_meta_training(directory, times):
  """Poisoned optimizees: their meta-steps are skipped, counted, harmless."""
  del directory
  counts = {}
  for where in ('loss', 'params', 'meta_gradient'):
    learned = coordinatewise(gradient(), lstm_cell((3,), scale=0.1))
    trainer = truncated_bptt(
      learned, optax.adam(1e-2), unroll_length=3, num_unrolls=2
    )
    step = jax.jit(trainer.step)
    state = trainer.init(jax.random.key(0))
    optimizee = _poisoned(quadratic(dimension=3), where)
    skipped = 0
    for i in range(times):
      new, info = step(state, optimizee, jax.random.key(i))
      assert _is_finite(new), where
      norm = info.summary['gradient_norm']  # the largest of both unrolls
      finite = np.isfinite(info.meta_loss) & np.isfinite(norm)
      np.testing.assert_array_equal(info.skipped, ~finite)
      same = all(
        bool((a == b).all())
        for a, b in zip(
          jax.tree.leaves(state), jax.tree.leaves(new), strict=True
        )
      )
      assert same == bool(np.asarray(info.skipped).all()), where
      skipped += int(np.asarray(info.skipped).any())
      state = new
    assert 0 < skipped < times, (where, skipped)
    counts[where] = skipped
  return f'{times} epochs each, poisoned and skipped: {counts}'


def derivatives_at_extremes(directory):
  """First and second derivatives of a step at 0, denormal and huge."""
  del directory
  for learned in (lstm_raw(), lstm_log_and_sign()):
    theta = learned.init(jax.random.key(0))

    def step(theta, g, learned=learned):
      opt = learned.transform(theta)
      x = jnp.zeros(3)
      return jnp.sum(opt.update(jnp.full(3, g), opt.init(x), x)[0])

    @jax.jit
    def derivatives(theta, g, step=step):
      first = jax.grad(step, (0, 1))
      second = jax.grad(lambda t, g: jax.grad(step, 1)(t, g), (0, 1))
      return first(theta, g), second(theta, g)

    for g in (0.0, 1e-45, -1e-45, 1e-38, 1e-5, 1.0, 1e30, 1e38, -3e38):
      first, second = derivatives(theta, jnp.float32(g))
      assert _is_finite((first, second)), (g, first, second)
  return 'first and second derivatives finite from 0 to 3e38'


def extreme_gradients(directory, times):
  """Finite gradients of 1e-45 to 3e38, mixed dtypes: finite, dtype kept."""
  del directory
  dtypes = (jnp.float32, jnp.bfloat16, jnp.float16)
  floats = strategies.floats(allow_nan=False, allow_infinity=False, width=32)
  gradients = strategies.lists(floats, min_size=6, max_size=6)
  updates = {}
  for name, learned in (('raw', lstm_raw()), ('log', lstm_log_and_sign())):
    opt = learned.transform(learned.init(jax.random.key(0)))

    def two_steps(gs, opt=opt):
      state = opt.init(gs)
      first, state = opt.update(gs, state, gs)
      second, state = opt.update(jax.tree.map(lambda g: -g, gs), state, gs)
      return first, second, state

    updates[name] = jax.jit(two_steps)

  @hypothesis.settings(
    max_examples=times, deadline=None, database=None, derandomize=True
  )
  @hypothesis.given(
    gradients,
    gradients,
    strategies.sampled_from(dtypes),
    strategies.sampled_from(dtypes),
    strategies.sampled_from(sorted(updates)),
  )
  def check(one, two, dtype_one, dtype_two, name):
    gs = {}
    for key, values, dtype in (('a', one, dtype_one), ('b', two, dtype_two)):
      largest = float(jnp.finfo(dtype).max)
      gs[key] = jnp.asarray(np.clip(values, -largest, largest), dtype)
    first, second, state = updates[name](gs)
    assert _is_finite((first, second, state)), gs
    for key, g in gs.items():
      assert first[key].dtype == second[key].dtype == g.dtype

  check()
  return f'{times} pairs of gradients in 3 dtypes: finite, dtype kept'
