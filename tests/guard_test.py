"""The loss guard keeps its guarantee where the guarded optimizer diverges."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from l2o_jax.guard import guarded
from l2o_jax.learned_optimizers import lstm_raw
from l2o_jax.unroll import unroll
from tests import quick

CURVATURES = jnp.array([1.0, 3.0, 10.0])


def loss(x, key):
  del key
  return 0.5 * jnp.sum(CURVATURES * x**2) + jnp.sum(jnp.cos(x))


def losses(opt, num_steps=60):
  keys = jax.random.split(jax.random.key(0), num_steps + 1)
  x = jnp.array([2.0, -1.5, 1.0])

  @quick.jit
  def run(x, keys):
    start, steps = (x, opt.init(x)), lambda step: step.opt_state
    (x, state), seen = unroll(loss, opt, *start, keys, record=steps)
    return state, seen

  state, seen = run(x, keys)
  return state, np.asarray(seen.losses), seen.record


class GuardTest(parameterized.TestCase):
  @parameterized.parameters(2, 10)
  def test_a_run_that_diverges_without_it_converges(self, every):
    wild, safe = optax.sgd(0.5), optax.sgd(0.09)  # 2 / L = 0.18
    _, alone, _ = losses(wild)
    self.assertGreater(alone[-1], 1e6)
    state, found, states = losses(guarded(wild, safe, every=every))
    _, trusted, _ = losses(safe)
    self.assertGreater(int(state.rejected), 0)
    # The guarantee: no comparison leaves more than N - 1 steps of the guard
    # from where the one before left off.
    rejected = np.append(states.rejected, state.rejected)
    at = np.arange(every - 1, len(found) - 1, every)
    left_off = found[at + np.diff(rejected)[at]]
    for before, after in zip(left_off, left_off[1:]):
      self.assertLessEqual(after, before + 1e-5)
    self.assertLess(found[-1], trusted[0])
    self.assertAlmostEqual(min(found), trusted[-1], delta=2e-2)

  @parameterized.parameters(1, 2, 10)
  def test_where_to_stop(self, every):
    """After each comparison its choice is no higher; the run itself may be."""
    rate = lambda t: jnp.where(t % 10 == 9, 1e3, 0.05)  # now and then a leap
    opt = guarded(optax.sgd(rate), optax.sgd(0.02), every=every)
    _, found, states = losses(opt)
    stops = np.flatnonzero(np.asarray(states.step) == 0)
    chosen = jax.vmap(lambda x: loss(x, None))(states.guard_params[stops])
    self.assertLessEqual(np.diff(chosen).max(), 1e-5)
    self.assertGreater(np.diff(found[stops]).max(), 0.1)

  def test_many_numbers_of_16_bits(self):
    """Their norm overflows; the run comes back to the guard all the same."""
    f = lambda x: jnp.mean((x.astype(jnp.float32) - 1) ** 2)
    leap = optax.GradientTransformation(
      lambda x: (), lambda g, s, x: (jnp.full_like(g, 700), s)
    )
    tx = guarded(leap, optax.sgd(2e4), every=20)
    x = jnp.zeros(70_000, jnp.float16)

    def step(carry, _):
      x, state = carry
      value, g = jax.value_and_grad(f)(x)
      updates, state = tx.update(g, state, x, value=value, value_fn=f)
      x = optax.apply_updates(x, updates)
      return (x, state), (f(x), state.step)

    run = quick.jit(lambda carry: jax.lax.scan(step, carry, length=50)[1])
    found, steps = run((x, tx.init(x)))
    self.assertLess(found[steps == 0].max(), 0.1)

  @parameterized.parameters(jnp.float32, jnp.bfloat16)
  def test_a_run_far_away_comes_back_to_the_guard(self, dtype):
    """x + (y - x) is not y where x has hidden it; the next step mends this."""
    f = lambda x: jnp.sum((x - 1) ** 2)
    tx = guarded(optax.sgd(3.0), optax.sgd(0.1), every=20)

    @quick.jit
    def step(x, state):
      value, g = jax.value_and_grad(f)(x)
      updates, state = tx.update(g, state, x, value=value, value_fn=f)
      return optax.apply_updates(x, updates), state

    x, stops = jnp.zeros(3, dtype), 0
    state = tx.init(x)
    for _ in range(50):
      x, state = step(x, state)
      if state.step == 0:
        stops += 1
        np.testing.assert_array_equal(x, state.guard_params)
        self.assertLess(f(x), 0.01)
    self.assertGreaterEqual(stops, 2)
    self.assertEqual(state.rejected, 2)

  def test_a_finite_step_that_overflows(self):
    f = lambda x: jnp.sum(jnp.abs(x - 1))
    tx = guarded(optax.scale(1e38), optax.sgd(1e-2), every=10)

    @quick.jit
    def step(x, state):
      value, g = jax.value_and_grad(f)(x)
      updates, state = tx.update(g, state, x, value=value, value_fn=f)
      return optax.apply_updates(x, updates), state

    x = jnp.zeros(1)
    state = tx.init(x)
    for _ in range(41):
      x, state = step(x, state)
    np.testing.assert_allclose(state.guard_params, [0.41], rtol=1e-5)
    self.assertTrue(np.isfinite(x).all())

  def test_buffers_of_its_own(self):
    """Parameters and state may be donated."""
    x = jnp.array([2.0, -1.5, 1.0])
    state = guarded(optax.adam(0.1), optax.sgd(0.1)).init(x)
    arrays = jax.tree.leaves((x, state))
    places = {a.unsafe_buffer_pointer() for a in arrays}
    self.assertLen(places, len(arrays))

  def test_a_better_optimizer_is_left_alone(self):
    good, poor = optax.sgd(0.1), optax.sgd(1e-4)
    state, found, _ = losses(guarded(good, poor, every=5))
    _, alone, _ = losses(good)
    self.assertEqual(int(state.rejected), 0)
    np.testing.assert_allclose(found, alone, rtol=1e-6)

  def test_a_loss_that_is_not_finite_is_left_at_once(self):
    def jump(updates, state, params=None):
      return jax.tree.map(lambda g: jnp.full_like(g, 1e25), updates), state

    leap = optax.GradientTransformation(lambda x: (), jump)
    guard = guarded(leap, optax.sgd(0.05), every=50)
    x = jnp.array([2.0, -1.5, 1.0])
    state = guard.init(x)
    value_fn = lambda x: loss(x, None)
    for _ in range(3):
      value, g = jax.value_and_grad(value_fn)(x)
      moves, state = guard.update(g, state, x, value=value, value_fn=value_fn)
      x = optax.apply_updates(x, moves)
    self.assertEqual(int(state.rejected), 1)

  @parameterized.parameters(np.inf, np.nan)
  def test_a_step_that_is_not_finite_is_not_taken(self, step):
    """Once x is not finite, no addition brings it back."""

    def leap(updates, count, params=None):
      fall = jax.tree.map(lambda g: -0.05 * g, updates)
      far = jax.tree.map(lambda g: jnp.full_like(g, step), updates)
      return optax.tree.where(count % 2 == 1, far, fall), count + 1

    leap = optax.GradientTransformation(lambda x: jnp.zeros((), int), leap)
    state, found, _ = losses(guarded(leap, optax.sgd(0.05), every=3), 30)
    _, alone, _ = losses(optax.sgd(0.05), 30)
    self.assertTrue(np.isfinite(found).all())
    np.testing.assert_allclose(found, alone, rtol=1e-4)
    self.assertGreater(int(state.rejected), 5)

  def test_a_guard_that_was_not_finite_does_not_win(self):
    """Its mean over the last steps is not lower then."""
    still = optax.GradientTransformation(
      lambda x: (), lambda g, s, p=None: (jax.tree.map(jnp.zeros_like, g), s)
    )
    opt = guarded(still, optax.sgd(-0.5), every=3, average=2)  # ascends
    x = jnp.array([1.0])
    state = opt.init(x)

    def value_fn(x):  # nan on the way, lower afterwards
      far = jnp.abs(x[0])
      value = jnp.where(far > 3, 0.5 * x[0], far)
      return jnp.where((far > 1.2) & (far < 1.7), jnp.nan * x[0], value)

    for _ in range(3):
      value, g = jax.value_and_grad(value_fn)(x)
      moves, state = opt.update(
        jnp.ones(1), state, x, value=value, value_fn=value_fn
      )
      x = optax.apply_updates(x, moves)
    self.assertEqual(int(state.rejected), 0)
    np.testing.assert_array_equal(x, [1.0])

  @parameterized.parameters(0, 1, 3, 4)
  def test_a_minibatch_with_a_nan_is_left_out(self, at):
    """Both runs, and the count of steps, go on as if it had not been."""

    def run(bad):
      opt, x = guarded(optax.adam(0.5), optax.sgd(0.05), every=3), jnp.ones(3)
      state = opt.init(x)
      for t in range(8):
        factor = jnp.nan if t == bad else 1.0
        value_fn = lambda x, factor=factor: factor * loss(x, None)
        value, g = jax.value_and_grad(value_fn)(x)
        moves, state = opt.update(g, state, x, value=value, value_fn=value_fn)
        x = optax.apply_updates(x, moves)
        if t == 6 and bad is None:
          break
      return x, state

    chex.assert_trees_all_close(run(at), run(None))

  def test_a_guard_that_is_not_finite_starts_again_at_once(self):
    opt = guarded(optax.sgd(0.01), optax.sgd(jnp.nan), every=50)
    x = jnp.ones(3)
    state = opt.init(x)
    value_fn = lambda x: loss(x, None)
    value, g = jax.value_and_grad(value_fn)(x)
    _, state = opt.update(g, state, x, value=value, value_fn=value_fn)
    np.testing.assert_array_equal(state.guard_params, x)
    self.assertEqual(int(state.step), 0)

  def test_needs_all_gradients(self):
    x = {'a': jnp.ones(2), 'b': jnp.ones(2)}
    tx = guarded(optax.sgd(0.1), optax.sgd(0.1))
    how = {'value': 1.0, 'value_fn': lambda x: jnp.sum(x['a'] + x['b'])}
    with self.assertRaisesRegex(ValueError, 'every parameter must have a'):
      tx.update({'a': x['a'], 'b': None}, tx.init(x), x, **how)

  def test_needs_optimizers(self):
    with self.assertRaisesRegex(TypeError, '^guarded: opt .* its transform'):
      guarded(lstm_raw(), optax.sgd(0.1))
    with self.assertRaisesRegex(TypeError, '^guarded: guard is .*: int$'):
      guarded(optax.sgd(0.1), 3)

  def test_needs_the_loss(self):
    opt = guarded(optax.sgd(1.0), optax.sgd(1.0))
    x = jnp.ones(3)
    with self.assertRaisesRegex(TypeError, 'needs params, value and value_fn'):
      opt.update(x, opt.init(x), x)
    with self.assertRaisesRegex(ValueError, 'every must be positive'):
      guarded(optax.sgd(1.0), optax.sgd(1.0), every=0)
    with self.assertRaisesRegex(
      ValueError, 'average must not exceed every=5, got 6'
    ):
      guarded(optax.sgd(1.0), optax.sgd(1.0), every=5, average=6)


if __name__ == '__main__':
  absltest.main()
