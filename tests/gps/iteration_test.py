"""What iterations share."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from l2o_jax.gps.iteration import choose, for_each_guide, guide_actions
from l2o_jax.gps.lqr import Controller


class IterationTest(absltest.TestCase):
  def test_guides_are_improved_in_float64(self):
    """Each by itself; float32 goes in and comes out."""
    x = jnp.arange(6.0).reshape(2, 3, 1)

    def step(x):
      self.assertEqual(x.dtype, jnp.float64)
      return (x + 1e-12) - x, 2 * x

    small, double = jax.jit(lambda x: for_each_guide(step, x))(x)
    self.assertEqual(double.dtype, jnp.float32)
    np.testing.assert_allclose(small, 1e-12, rtol=1e-3)
    np.testing.assert_array_equal(double, 2 * x)

  def test_choose(self):
    new, old = {'a': jnp.ones((2, 3))}, {'a': jnp.zeros((2, 3))}
    some = choose(jnp.array([True, False]), new, old)
    np.testing.assert_array_equal(some['a'][:, 0], [1, 0])
    np.testing.assert_array_equal(choose(jnp.array(True), new, old)['a'], 1)

  def test_guide_actions(self):
    rng = np.random.default_rng(0)
    K, k = rng.normal(size=(2, 5, 1, 3)), rng.normal(size=(2, 5, 1))
    s = rng.normal(size=(2, 7, 5, 3))
    got = guide_actions(Controller(jnp.array(K), jnp.array(k), None), s)
    self.assertEqual(got.shape, (2, 7, 5, 1))
    want = K[1, 4] @ s[1, 6, 4] + k[1, 4]
    np.testing.assert_allclose(got[1, 6, 4], want, rtol=1e-5)


if __name__ == '__main__':
  absltest.main()
