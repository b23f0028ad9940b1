"""One linear layer, by hand and against plain products."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from l2o_jax.cells.layers import linear, linear_init
from tests import quick


class LayersTest(absltest.TestCase):
  def test_linear(self):
    """w^T x + b of one coordinate by hand; the same for any axes."""
    theta = {
      'w': jnp.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]),
      'b': jnp.array([0.5, -0.5]),
    }
    one = linear(theta, jnp.array([1.0, -1.0, 2.0]))
    np.testing.assert_allclose(one, [8.5, 9.5])
    x = np.random.default_rng(0).normal(size=(3, 2, 4)).astype(np.float32)
    want = np.tensordot(theta['w'].T, x, 1) + np.array([[[0.5]], [[-0.5]]])
    np.testing.assert_allclose(linear(theta, x), want, rtol=1e-5)

  def test_initial_weights(self):
    """Truncated normal of std 1/sqrt(F), cut at two (0.88 remains)."""
    theta = quick.jit(linear_init, static_argnums=(1, 2))(
      jax.random.key(0), 100, 50
    )
    self.assertEqual(theta['w'].shape, (100, 50))
    np.testing.assert_allclose(theta['w'].std(), 0.08796, rtol=0.03)
    self.assertLessEqual(float(jnp.abs(theta['w']).max()), 0.2)
    np.testing.assert_array_equal(theta['b'], np.zeros(50))


if __name__ == '__main__':
  absltest.main()
