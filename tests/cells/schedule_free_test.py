"""Schedule-free averaging, against the wrapper of optax and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from l2o_jax.base import Cell
from l2o_jax.cells.mlp import mlp_cell
from l2o_jax.cells.schedule_free import schedule_free
from l2o_jax.coordinatewise import coordinatewise
from l2o_jax.features import adam_ratios
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

  def test_weights_of_the_average(self):
    """x after T steps is the mean of z_t with weights Γ(t + q) / Γ(t + 1)."""
    steps, q, beta = 12, 3.0, 0.9
    move = lambda theta, x, state: (jnp.ones_like(x[0]), state)  # z_t = t
    cell = Cell(lambda key, f: (), lambda n: (), move, whole=True)
    opt = optimizer(schedule_free(cell, AGE, beta, q))
    y, state = jnp.zeros(()), None
    state = opt.init(y)
    for _ in range(steps):
      change, state = opt.update(jnp.ones(()), state, y)
      y = y + change
    t = np.arange(1, steps + 1)
    weights = t * (t + 1)  # (t + q - 1)! / (t! (q - 1)!) but for a factor
    x = np.sum(weights * t) / np.sum(weights)
    np.testing.assert_allclose(y, (1 - beta) * steps + beta * x, rtol=1e-4)

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
    with self.assertRaisesRegex(ValueError, 'must be positive: age 0'):
      schedule_free(mlp_cell((2,)), 0)


if __name__ == '__main__':
  absltest.main()
