"""A cell in standard units, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from l2o_jax.cells.lstm import lstm_cell
from l2o_jax.cells.mlp import mlp_cell
from l2o_jax.cells.standardised import standardised
from tests import quick
from tests.contracts.subjects import theta_of


class StandardisedTest(absltest.TestCase):
  def test_by_hand(self):
    cell = standardised(lstm_cell((), scale=1.0), limit=3.0)
    theta = quick.jit(lambda key: cell.init(key, 2))(jax.random.key(0))
    plain = lambda x: theta['cell']['linear']['w'][:, 0] @ jnp.array(x)
    one = lambda theta, x: cell.step(theta, jnp.array(x), ())[0]
    step = quick.jit(one)
    np.testing.assert_allclose(
      step(theta, [0.5, 2.0]), plain([0.5, 2.0]), rtol=1e-6
    )
    theta.update(
      mean=jnp.array([1.0, 2.0]),
      std=jnp.array([0.5, 4.0]),
      output=jnp.array(0.1),
    )
    np.testing.assert_allclose(
      step(theta, [2.0, -50.0]), 0.1 * plain([2.0, -3.0]), rtol=1e-6
    )
    slopes = quick.jit(jax.grad(one))(theta, [2.0, 1.0])
    for name in ('mean', 'std', 'output'):
      self.assertEqual(float(jnp.abs(slopes[name]).sum()), 0)
    np.testing.assert_allclose(
      slopes['cell']['linear']['w'][:, 0], [0.2, -0.025], rtol=1e-6
    )

  def test_each_input_of_one_net_has_its_own_units(self):
    """Two features of three coordinates: six means and deviations."""
    inner = mlp_cell((4,), coordinates=3)
    cell = standardised(inner, coordinates=3)
    init = lambda key: cell.init(key, 2)
    theta = theta_of(cell._replace(init=init))
    self.assertEqual(theta['mean'].shape, (6,))
    x = jnp.arange(6.0).reshape(2, 3)
    theta['mean'], theta['std'] = jnp.arange(6.0) - 1, jnp.arange(1.0, 7.0)
    got = quick.jit(lambda: cell.step(theta, x, ())[0])()
    scaled = (1 / jnp.arange(1.0, 7.0)).reshape(2, 3)
    want = quick.jit(lambda: inner.step(theta['cell'], scaled, ())[0])()
    np.testing.assert_allclose(got, want, rtol=1e-6)


if __name__ == '__main__':
  absltest.main()
