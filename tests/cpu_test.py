"""tanh and sigmoid against numpy's in double precision; draws."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from l2o_jax.cpu import convolve, draw, draw_all, sigmoid, tanh
from tests import quick

POINTS = np.concatenate(
  [
    np.linspace(-12, 12, 100_001),
    [0.0, 1e-30, -1e-5, 3e38, -3e38, np.inf, -np.inf],
  ]
)


class ActivationsTest(parameterized.TestCase):
  def test_float32(self):
    x = POINTS.astype(np.float32)
    exact = np.tanh(x.astype(np.float64))
    found = np.asarray(quick.jit(tanh)(x))
    np.testing.assert_allclose(found, exact, rtol=4e-7)
    self.assertLessEqual(np.abs(found).max(), 1.0)
    np.testing.assert_allclose(
      quick.jit(sigmoid)(x),
      0.5 + 0.5 * np.tanh(x.astype(np.float64) / 2),
      atol=4e-7,
    )
    self.assertTrue(np.isnan(tanh(jnp.array(jnp.nan))))

  def test_derivatives(self):
    x = np.linspace(-10, 10, 2001).astype(np.float32)
    t = np.tanh(x.astype(np.float64))
    first = quick.jit(jax.vmap(jax.grad(tanh)))(x)
    np.testing.assert_allclose(first, 1 - t * t, atol=1e-6)
    second = quick.jit(jax.vmap(jax.grad(jax.grad(tanh))))(x)
    np.testing.assert_allclose(second, -2 * t * (1 - t * t), atol=2e-6)

  @parameterized.parameters('float64', 'bfloat16', 'float16')
  def test_other_types(self, dtype):
    with jax.enable_x64(True):
      x = jnp.asarray(POINTS[:100_001:100], dtype)
      self.assertEqual(tanh(x).dtype, x.dtype)
      np.testing.assert_array_equal(tanh(x), jnp.tanh(x))

  def test_draws_are_the_numbers_of_the_sampler(self):
    keys, shapes = jax.random.split(jax.random.key(3), 3), [(2, 3), (), (5,)]
    for sampler in (jax.random.normal, jax.random.uniform):

      @quick.jit
      def run(keys, sampler=sampler):
        pairs = list(zip(keys, shapes))
        want = [sampler(key, shape) for key, shape in pairs]
        one = [draw(sampler, key, shape) for key, shape in pairs]
        return want, one, draw_all(sampler, keys, shapes)

      want, *others = run(keys)
      for other in others:
        chex.assert_trees_all_equal(other, want)


class ConvolveTest(parameterized.TestCase):
  @parameterized.parameters((5, 1, (6, 7)), (3, 2, (7, 8)), (1, 1, (3, 3)))
  def test_is_the_convolution_of_xla(self, size, stride, shape):
    x = jax.random.normal(jax.random.key(0), (2, *shape, 3))
    w = jax.random.normal(jax.random.key(1), (size, size, 3, 4))

    def plain(x, w):
      axes = ('NHWC', 'HWIO', 'NHWC')
      return jax.lax.conv_general_dilated(
        x, w, (stride, stride), 'SAME', dimension_numbers=axes
      )

    def both(f):
      energy = lambda x, w: jnp.sum(jnp.cos(f(x, w)))
      return f(x, w), jax.grad(energy, (0, 1))(x, w)

    own = lambda x, w: convolve(x, w, stride)
    found, expected = quick.jit(lambda: (both(own), both(plain)))()
    chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-4)


if __name__ == '__main__':
  absltest.main()
