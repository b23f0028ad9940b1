"""Neural art against its formula in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest
from jax.tree_util import Partial

from l2o_jax.optimizees.neural_art import neural_art, to_pixels
from tests import quick

RANDOM = np.random.default_rng(0)
CONTENTS = RANDOM.integers(0, 256, (3, 6, 5, 3), np.uint8)
STYLE = RANDOM.integers(0, 256, (8, 4, 3), np.uint8)
W = jnp.float32(RANDOM.normal(size=(3, 2)))


def toy_net(w, pixels):
  """Content: two colours; style: these and their squares."""
  a = pixels @ w
  return a, [a, a**2]


def error(found, wanted):
  return ((found - wanted) ** 2).mean() / (wanted**2).mean()


def gram(a):
  a = a.reshape(-1, a.shape[-1])
  return a.T @ a / len(a)


class NeuralArtTest(absltest.TestCase):
  def test_the_formula(self):
    weights = {'content_weight': 2.0, 'style_weight': 0.5, 'smoothness': 0.3}
    f = neural_art(CONTENTS, STYLE, Partial(toy_net, W), **weights)
    x, task = quick.jit(lambda f: f.init(jax.random.key(3)))(f)
    self.assertEqual(x.shape, (6, 5, 3))
    number, w = int(task[0]), np.asarray(W, np.float64)
    x = np.asarray(x, np.float64)
    a, c = (0.5 + 0.25 * x) @ w, (CONTENTS[number] / 255) @ w
    s = (STYLE / 255) @ w
    style = error(gram(a), gram(s)) + error(gram(a**2), gram(s**2))
    smooth = (np.diff(x, axis=0) ** 2).mean() + (np.diff(x, axis=1) ** 2).mean()
    expected = 2 * error(a, c) + 0.5 * style / 2 + 0.3 * smooth
    expected *= 30 / 64**2
    loss = quick.jit(lambda f, x: f.loss(x, task, None))(f, jnp.float32(x))
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    self.assertIsNone(f.objective)  # no minibatches
    again = f.loss(jnp.float32(x), task, jax.random.key(1))
    np.testing.assert_allclose(again, loss, rtol=1e-6)

  def test_the_content_itself_has_no_content_loss(self):
    parts = {'style_weight': 0.0, 'smoothness': 0.0}
    f = neural_art(CONTENTS[:1], STYLE, Partial(toy_net, W), **parts)
    _, task = f.init(jax.random.key(0))
    x = (jnp.float32(CONTENTS[0]) / 255 - 0.5) / 0.25
    np.testing.assert_allclose(255 * to_pixels(x), CONTENTS[0], atol=1e-4)
    self.assertLess(float(f.loss(x, task, None)), 1e-12)

  def test_weights_of_the_net_are_arguments(self):
    f = neural_art(CONTENTS, STYLE, Partial(toy_net, W))
    sizes = [leaf.shape for leaf in jax.tree.leaves(f)]
    self.assertEqual(sizes.count((3, 2)), 2)
    self.assertEqual(sizes.count((3, 6, 5, 3)), 1)

  def test_what_is_refused(self):
    net = Partial(toy_net, W)
    with self.assertRaisesRegex(
      ValueError, r'contents must be .*\[N, H, W, 3\]'
    ):
      neural_art(CONTENTS[0], STYLE, net)
    with self.assertRaisesRegex(ValueError, r'style must be uint8 \[H, W, 3\]'):
      neural_art(CONTENTS, STYLE / 255, net)
    with self.assertRaisesRegex(ValueError, 'must be finite and >= 0'):
      neural_art(CONTENTS, STYLE, net, smoothness=-1.0)


if __name__ == '__main__':
  absltest.main()
