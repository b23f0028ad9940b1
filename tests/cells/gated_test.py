"""The gated cell: nearly Adam at the start, bounded, odd in its coordinate."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from l2o_jax.cells.gated import gated_cell
from l2o_jax.coordinatewise import coordinatewise
from l2o_jax.features import adam_ratios
from tests import quick
from tests.contracts.subjects import theta_of


class GatedCellTest(parameterized.TestCase):
  def test_starts_as_adam_with_a_falling_rate(self):
    """0.03 / (1 + t / 100)^½ tanh(Adam), where the gate is far from 1."""
    features = adam_ratios((0.9, 0.97), 0.95, age=100.0)
    learned = coordinatewise(features, gated_cell(0, 3.0, rate=0.03))
    opt = learned.transform(learned.init(jax.random.key(0)))
    adam = optax.scale_by_adam(0.9, 0.95)
    rng, x = np.random.default_rng(0), jnp.zeros(4)
    state, adam_state = opt.init(x), adam.init(x)
    for t in range(20):
      g = jnp.asarray(rng.normal(size=4), jnp.float32)
      step, state = opt.update(g, state)
      direction, adam_state = adam.update(g, adam_state)
      wanted = -0.03 * (1 + t / 100) ** -0.5 * np.tanh(direction)
      np.testing.assert_allclose(step, wanted, rtol=0.02, atol=1e-6)

  def test_bends_later_and_trusts(self):
    """-scale tanh(x_1 / 3) σ(m), m = log(r / (1 - r)) + 0.8 tanh|x_0|."""
    cell = gated_cell(0, 0.9, 0.03, direction=-1, slope=1 / 3, trust=0.8)
    theta = cell.init(jax.random.key(0), 3)
    x = jnp.array([[-1.0, 0.2], [0.3, 6.0], [0.0, 0.0]])
    step, _ = cell.step(theta, x, ())
    odds = 0.1 / 0.9 * np.exp(0.8 * np.tanh([1.0, 0.2]))
    wanted = -0.9 * np.tanh([0.1, 2.0]) * odds / (1 + odds)
    np.testing.assert_allclose(step, wanted, rtol=1e-5)

  def test_shrinks(self):
    """With e = log(1 + n / size): steps 16 times shorter for n = 255 size."""
    cell = gated_cell(0, 10.0, 0.01, direction=-1, even=2, shrink=0.5)
    theta = cell.init(jax.random.key(0), 4)
    x = jnp.array([[0.0, 0.0], [0.1, 0.1], [0.0, np.log(256.0)], [0.0, 0.0]])
    step, _ = cell.step(theta, x, ())
    np.testing.assert_allclose(step[0] / step[1], 16, rtol=0.01)

  @parameterized.parameters(1e-3, 1e-6, 1e-9)
  def test_small_rates(self, rate):
    cell = gated_cell(0, scale=0.3, rate=rate)
    step, _ = cell.step(
      cell.init(jax.random.key(0), 3), jnp.array([[1e-3], [0.0], [0.0]]), ()
    )
    np.testing.assert_allclose(step, [-1e-3 * rate], rtol=1e-4)

  @parameterized.parameters(0, 4)
  def test_is_odd_and_bounded(self, hidden):
    """Whatever theta is: gradients turned round give steps turned round."""
    learned = coordinatewise(
      adam_ratios((0.9, 0.97), 0.95, age=10.0), gated_cell(hidden, 0.2)
    )
    theta = jax.tree.map(lambda x: 3 * x, theta_of(learned))
    g = np.random.default_rng(1).normal(size=(12, 50)).astype(np.float32)

    @quick.jit
    def run(theta, g):
      opt = learned.transform(theta)
      step = lambda state, g: opt.update(g, state)[::-1]
      return jax.lax.scan(step, opt.init(g[0]), g)[1]

    there, back = run(theta, g), run(theta, -g)
    np.testing.assert_allclose(there, -back, rtol=1e-6)
    self.assertLessEqual(np.abs(there).max(), 0.2)
    self.assertGreater(np.abs(there).max(), 0.02)

  def test_bad_arguments(self):
    with self.assertRaisesRegex(ValueError, 'hidden must not be negative'):
      gated_cell(-1)
    with self.assertRaisesRegex(ValueError, 'whole number, got None'):
      gated_cell(None)
    with self.assertRaisesRegex(ValueError, r'rate must be in \(0, 0.1\)'):
      gated_cell(scale=0.1, rate=0.2)
    with self.assertRaisesRegex(ValueError, r'rate must be in \(0, 0.05\)'):
      gated_cell(scale=0.1, rate=0.06, slope=0.5)
    with self.assertRaisesRegex(ValueError, 'slope must be positive, got 0'):
      gated_cell(slope=0)
    with self.assertRaisesRegex(ValueError, 'needs more than 1 features'):
      gated_cell().init(jax.random.key(0), 1)
    with self.assertRaisesRegex(ValueError, 'even must be positive, got 0'):
      gated_cell(even=0)
    with self.assertRaisesRegex(ValueError, 'even must be a whole number'):
      gated_cell(even=1.5)
    with self.assertRaisesRegex(ValueError, 'shrink 0.5 needs 2 even'):
      gated_cell(shrink=0.5)
    with self.assertRaisesRegex(ValueError, 'length 1 needs 3 even.*got 2'):
      gated_cell(even=2, length=1)


if __name__ == '__main__':
  absltest.main()
