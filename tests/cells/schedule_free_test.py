"""Schedule-free averaging, against the wrapper of optax and by hand."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

import l2o_jax
from l2o_jax.base import Cell
from l2o_jax.cells.mlp import mlp_cell
from l2o_jax.cells.schedule_free import eval_params, schedule_free
from l2o_jax.coordinatewise import coordinatewise
from l2o_jax.features import adam_ratios
from l2o_jax.learned_optimizers import lstm_raw
from tests import quick

AGE, RATE = 30.0, 0.05


def rms_cell(rate=RATE):
  """-rate times the second of three features: the newest gradient over √v."""
  step = lambda theta, x, state: (-rate * x[1], state)
  return Cell(lambda key, f: (), lambda n: (), step, whole=True)


def optimizer(cell):
  learned = coordinatewise(adam_ratios(0.0, 0.95, age=AGE), cell)
  return learned.transform(learned.init(jax.random.key(0)))


def run(opt, steps=40):
  """Iterates of a noisy bowl from (2, -1, 0.5), and the last state."""
  rng, x = np.random.default_rng(0), jnp.array([2.0, -1.0, 0.5])
  noise = jnp.asarray(rng.normal(size=(steps, 3)), jnp.float32)

  @quick.jit
  def whole(x):
    def step(carry, noise):
      x, state = carry
      g = jnp.array([1.0, 5.0, 20.0]) * x + noise
      change, state = opt.update(g, state, x)
      x = optax.apply_updates(x, change)
      return (x, state), x

    return jax.lax.scan(step, (x, opt.init(x)), noise)

  (_, state), xs = whole(x)
  return np.asarray(xs), state


class ScheduleFreeTest(parameterized.TestCase):
  @parameterized.parameters(0.5, 0.9)
  def test_is_the_wrapper_of_optax(self, momentum):
    """q = 1, a constant rate: `optax.contrib.schedule_free` step by step."""
    ours, _ = run(optimizer(schedule_free(rms_cell(), AGE, momentum)))
    base = optimizer(rms_cell())
    theirs, _ = run(optax.contrib.schedule_free(base, RATE, momentum))
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)
    alone, _ = run(base)
    self.assertGreater(np.abs(ours - alone).max(), 0.05)

  @parameterized.parameters(0.0, 4.0)
  def test_weights_of_the_average(self, warmup):
    """x after T steps is the mean of z_t with weights Γ(t + q) / Γ(t + 1)."""
    steps, q, beta = 12, 3.0, 0.9
    move = lambda theta, x, state: (jnp.ones_like(x[0]), state)
    cell = Cell(lambda key, f: (), lambda n: (), move, whole=True)
    opt = optimizer(schedule_free(cell, AGE, beta, q, warmup))
    y, state = jnp.zeros(()), None
    state = opt.init(y)
    for _ in range(steps):
      change, state = opt.update(jnp.ones(()), state, y)
      y = y + change
    t = np.arange(1, steps + 1)
    weights = t * (t + 1)  # (t + q - 1)! / (t! (q - 1)!) but for a factor
    z = np.cumsum(t / (t + warmup))  # t where there is no warm-up
    x = np.sum(weights * z) / np.sum(weights)
    np.testing.assert_allclose(y, (1 - beta) * z[-1] + beta * x, rtol=1e-4)

  def test_a_factor_behind_is_a_factor_of_the_steps(self):
    def chained(rate, factor):
      opt = optimizer(schedule_free(rms_cell(rate), AGE, 0.9, 3.0))
      return optax.chain(opt, optax.scale(factor))

    there, _ = run(chained(RATE, 1.0))
    again, _ = run(chained(RATE / 4, 4.0))
    np.testing.assert_allclose(there, again, rtol=1e-4, atol=1e-5)

  def test_bad_arguments(self):
    with self.assertRaisesRegex(ValueError, 'must be whole'):
      schedule_free(Cell(None, None, None), 1.0)
    with self.assertRaisesRegex(ValueError, r'momentum must be in \(0, 1\)'):
      schedule_free(mlp_cell((2,)), 1.0, momentum=1.0)
    with self.assertRaisesRegex(ValueError, 'age must be positive, got 0'):
      schedule_free(mlp_cell((2,)), 0)
    with self.assertRaisesRegex(ValueError, 'warmup must not be negative'):
      schedule_free(mlp_cell((2,)), 1.0, warmup=-1.0)


class EvalParamsTest(parameterized.TestCase):
  """Where a run is judged, from the path of its parameters alone."""

  @parameterized.parameters(1.0, 0.3)
  def test_is_the_average_of_the_path(self, learning_rate):
    """z_t is solved for from y_t = (1 - β) z_t + β x_t, in float64."""
    theta = l2o_jax.pretrained('robust')[1]
    opt = l2o_jax.pretrained_optimizer('robust', learning_rate)
    y = jnp.array([2.0, -1.0, 0.5])
    x, state, update = np.array(y, float), opt.init(y), quick.jit(opt.update)
    beta = 1 / (1 + np.exp(-float(theta['momentum'])))
    q = np.exp(float(theta['power']))
    for t in range(30):
      change, state = update(jnp.array([1.0, 5.0, 20.0]) * y, state, y)
      y = optax.apply_updates(y, change)
      c = q / (q + t)
      old = beta * (1 - c) * x
      z = (np.array(y, float) - old) / (1 - beta + beta * c)
      x = x + c * (z - x)
      found = eval_params(theta, state, y)
      chex.assert_trees_all_equal(
        found, eval_params(theta, state, y, learning_rate)
      )
      np.testing.assert_allclose(found, x, rtol=1e-4, atol=1e-4)
    self.assertGreater(np.abs(x - y).max(), 1e-2 * learning_rate)

  @parameterized.named_parameters(
    ('plateau', optax.contrib.reduce_on_plateau),
    ('zoom', lambda: optax.scale_by_zoom_linesearch(5)),
    ('backtracking', lambda: optax.scale_by_backtracking_linesearch(5)),
  )
  def test_factors_of_single_steps_are_a_schedule(self, behind):
    theta, x = l2o_jax.pretrained('robust')[1], jnp.ones(3)
    opt = optax.chain(l2o_jax.pretrained_optimizer(), behind())
    with self.assertRaisesRegex(ValueError, 'judge at the parameters'):
      eval_params(theta, opt.init(x), x)

  def test_mechanize_is_a_schedule(self):
    theta, x = l2o_jax.pretrained('robust')[1], jnp.ones(3)
    opt = optax.contrib.mechanize(l2o_jax.pretrained_optimizer())
    with self.assertRaisesRegex(ValueError, 'judge at the parameters'):
      eval_params(theta, opt.init(x), x)

  def test_a_mask_behind_is_refused(self):
    """The average of a frozen parameter would run away."""
    theta, y = l2o_jax.pretrained('robust')[1], {'w': jnp.ones(3), 'b': 1.0}
    tx, mask = l2o_jax.pretrained_optimizer(), {'w': True, 'b': False}
    frozen = optax.masked(optax.set_to_zero(), mask)
    for opt in optax.chain(tx, frozen), optax.chain(optax.chain(tx), frozen):
      with self.assertRaisesRegex(ValueError, 'other steps; put optax.parti'):
        eval_params(theta, optax.MultiSteps(opt, 1).init(y), y)
    decay = optax.add_decayed_weights(1e-3, mask)
    labels = {'w': 'learn', 'b': 'freeze'}
    kinds = {'learn': tx, 'freeze': optax.set_to_zero()}
    for opt in optax.chain(decay, tx), optax.partition(kinds, labels):
      chex.assert_trees_all_equal(eval_params(theta, opt.init(y), y), y)

  def test_a_factor_of_numpy_keeps_the_type(self):
    y = jnp.ones(3, jnp.bfloat16)
    for factor in np.float64(0.5), np.float32(0.5), jnp.float32(0.5):
      tx = l2o_jax.pretrained_optimizer('robust', factor)
      change, _ = tx.update(y, tx.init(y), y)
      self.assertEqual(change.dtype, jnp.bfloat16)

  @parameterized.named_parameters(
    ('chain', lambda tx: optax.chain(optax.clip(1.0), tx)),
    ('masked', lambda tx: optax.masked(tx, {'w': True, 'b': False})),
    ('MultiSteps', lambda tx: optax.MultiSteps(tx, 1)),
    ('apply_if_finite', lambda tx: optax.apply_if_finite(tx, 3)),
  )
  def test_inside_of(self, around):
    theta = l2o_jax.pretrained('robust')[1]
    y = {'w': jnp.ones((2, 3)), 'b': jnp.ones(2, jnp.bfloat16)}
    opt = around(l2o_jax.pretrained_optimizer('robust'))
    state = opt.init(y)
    chex.assert_trees_all_equal(eval_params(theta, state, y), y)
    for _ in range(5):
      change, state = quick.jit(opt.update)(y, state, y)
      y = optax.apply_updates(y, change)
    x = quick.jit(eval_params)(theta, state, y)
    chex.assert_trees_all_equal_shapes_and_dtypes(x, y)
    self.assertGreater(np.min(x['w'] - y['w']), 1e-3)  # behind a fall

  def test_what_the_optimizer_did_not_see_stays(self):
    """The functions of a module; but not too little, nor other shapes."""
    theta, y = l2o_jax.pretrained('robust')[1], {'w': jnp.ones(3), 'f': None}
    opt = l2o_jax.pretrained_optimizer('robust')
    _, state = opt.update(y, opt.init(y), y)
    x = eval_params(theta, state, y)
    more = eval_params(theta, state, y | {'f': jnp.tanh, 'rng': 7})
    self.assertIs(more['f'], jnp.tanh)
    self.assertEqual(more['rng'], 7)
    np.testing.assert_array_equal(more['w'], x['w'])
    for other in ({'f': None}, {'w': jnp.ones((3, 1))}, {'v': y['w']}):
      with self.assertRaisesRegex(ValueError, 'not of parameters like these'):
        eval_params(theta, state, other)

  def test_a_schedule_of_another_optimizer(self):
    """The factor has to be given; it is then no obstacle."""
    theta, y = l2o_jax.pretrained('robust')[1], jnp.ones(3)
    tx = l2o_jax.pretrained_optimizer('robust')
    falling = optax.adam(optax.linear_schedule(0.1, 0.0, 9))
    opt = l2o_jax.guarded(tx, falling)
    _, state = tx.update(y, tx.init(y), y)
    around = opt.init(y)._replace(opt_state=state)
    with self.assertRaisesRegex(ValueError, 'if it is of another optimizer$'):
      eval_params(theta, around, y)
    np.testing.assert_array_equal(
      eval_params(theta, around, y, 1.0), eval_params(theta, state, y)
    )

  def test_a_factor_that_changes(self):
    """The factor of the last step counts, also where it is traced."""
    theta, y = l2o_jax.pretrained('robust')[1], jnp.ones(3)
    make = lambda factor: l2o_jax.pretrained_optimizer('robust', factor)
    opt = optax.inject_hyperparams(make)(factor=2.0)
    state = opt.init(y)
    for factor in (2.0, 0.5):
      state.hyperparams['factor'] = jnp.float32(factor)
      _, state = opt.update(y, state, y)
      np.testing.assert_array_equal(
        eval_params(theta, state, y), eval_params(theta, state, y, factor)
      )

  def test_numbers_of_python(self):
    theta, y = l2o_jax.pretrained('robust')[1], {'w': 1.0}
    tx = l2o_jax.pretrained_optimizer('robust')
    _, state = tx.update(y, tx.init(y), y)
    np.testing.assert_allclose(eval_params(theta, state, y)['w'], 1, atol=0.1)

  def test_what_has_no_average(self):
    theta, y = l2o_jax.pretrained('robust')[1], jnp.ones(2)
    tx = l2o_jax.pretrained_optimizer('robust')
    with self.assertRaisesRegex(ValueError, 'with a schedule, judge at'):
      eval_params(theta, tx.init(y), y, optax.constant_schedule(1.0))
    planned = l2o_jax.pretrained_optimizer('robust', lambda t: 1 / (t + 1))
    with self.assertRaisesRegex(ValueError, 'with a schedule, judge at'):
      eval_params(theta, planned.init(y), y)
    make = lambda factor: l2o_jax.pretrained_optimizer('robust', factor)
    injected = optax.inject_hyperparams(make)(lambda t: 1 / (t + 1))
    with self.assertRaisesRegex(ValueError, 'with a schedule, judge at'):
      eval_params(theta, injected.init(y), y)
    with self.assertRaisesRegex(ValueError, 'theta is not of robust_opti'):
      eval_params(lstm_raw().init(jax.random.key(0)), tx.init(y), y)
    with self.assertRaisesRegex(ValueError, 'one state of the optimizer, f'):
      eval_params(theta, optax.adam(0.1).init(y), y)
    flat = optax.flatten(tx).init({'w': y})
    with self.assertRaisesRegex(ValueError, 'not of parameters like these'):
      eval_params(theta, flat, {'w': y})


if __name__ == '__main__':
  absltest.main()
