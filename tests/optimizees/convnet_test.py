"""The convolutional net against slow loops, and one run of it."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from l2o_jax.optimizees.convnet import EPSILON, convnet
from tests import quick


def slow_layer(x, w, b):
  """Convolution, normalisation, relu, pool: [N, H, W, C], loops."""
  N, H, W, _ = x.shape
  k = w.shape[0]
  padded = np.pad(x, ((0, 0), (k // 2,) * 2, (k // 2,) * 2, (0, 0)))
  y = np.zeros((N, H, W, w.shape[-1]))
  for i in range(H):
    for j in range(W):
      y[:, i, j] = np.einsum(
        'nabc,abcd->nd', padded[:, i : i + k, j : j + k], w
      )
  y = slow_norm(y) + b
  pooled = np.zeros((N, H // 2, W // 2, y.shape[-1]))
  for i in range(H // 2):
    for j in range(W // 2):
      pooled[:, i, j] = y[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].max((1, 2))
  return np.maximum(pooled, 0)


def slow_norm(y):
  axes = tuple(range(y.ndim - 1))
  return (y - y.mean(axes)) / np.sqrt(y.var(axes) + EPSILON)


class ConvnetTest(absltest.TestCase):
  def test_against_loops(self):
    init, apply = convnet((9, 6, 3), 5, channels=(2, 4), hidden=7, size=3)
    params = init(jax.random.key(0))
    params = jax.tree.map(
      lambda p: p + 0.1 * jnp.cos(jnp.arange(p.size)).reshape(p.shape), params
    )
    images = np.random.default_rng(0).uniform(size=(4, 9 * 6 * 3))
    found = quick.jit(apply)(params, jnp.float32(images))
    x = images.reshape(4, 9, 6, 3)
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    for layer in p['conv']:
      x = slow_layer(x, layer['w'], layer['b'])
    self.assertEqual(x.shape, (4, 2, 1, 4))
    first, last = p['fc']
    h = slow_norm(x.reshape(4, -1) @ first['w']) + first['b']
    expected = np.maximum(h, 0) @ last['w'] + last['b']
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)

  def test_the_net_of_the_paper(self):
    init, _ = convnet((32, 32, 3), 10)
    shapes = jax.tree.map(
      lambda x: x.shape, jax.eval_shape(init, jax.random.key(0))
    )
    self.assertEqual(
      [layer['w'] for layer in shapes['conv']],
      [(5, 5, 3, 16), (5, 5, 16, 16), (5, 5, 16, 16)],
    )
    self.assertEqual([x['w'] for x in shapes['fc']], [(256, 32), (32, 10)])

  def test_what_is_refused(self):
    with self.assertRaisesRegex(ValueError, '7 x 32 images are too small'):
      convnet((7, 32), 10)
    with self.assertRaisesRegex(ValueError, 'channels must be positive'):
      convnet((8, 8), 10, channels=())
    with self.assertRaisesRegex(ValueError, 'hidden'):
      convnet((8, 8), 10, hidden=0)
    with self.assertRaisesRegex(ValueError, r'image_shape must .* got \(8,\)'):
      convnet((8,), 10)


if __name__ == '__main__':
  absltest.main()
