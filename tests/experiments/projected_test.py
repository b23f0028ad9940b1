"""Projected images, and curves of the exact objective."""

import jax
import numpy as np
import optax
from absl.testing import absltest

from experiments.common import problems, projected

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (30, 4, 4, 1), np.uint8)
LABELS = (np.arange(30) % 3).astype(np.int32)


class ProjectedTest(absltest.TestCase):
  def test_projections_are_normalised_and_linear(self):
    x = projected.project(IMAGES, 5, 0)
    np.testing.assert_allclose(x.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(x.std(0), 1, rtol=1e-5)
    pixels = np.c_[IMAGES.reshape(30, 16) / 255.0, np.ones(30)]
    fit = pixels @ np.linalg.lstsq(pixels, x, rcond=None)[0]
    np.testing.assert_allclose(fit, x, atol=1e-4)
    self.assertGreater(np.abs(x - projected.project(IMAGES, 5, 1)).max(), 1)

  def test_few(self):
    """Of the first classes, each image once, and the labels still its own."""
    images = np.arange(30, dtype=np.uint8)[:, None, None, None]
    few, labels = projected.few((images, LABELS), 7, 2)
    self.assertEqual((few.shape, labels.max()), ((7, 1, 1, 1), 1))
    self.assertLen(np.unique(few), 7)
    np.testing.assert_array_equal(few.ravel() % 3, labels)
    self.assertIs(projected.few((images, LABELS))[0], images)

  def test_curves_of_the_objective(self):
    """Minibatches of nearly all images: gradient descent step by step."""
    optimizee = projected.make_optimizee((IMAGES, LABELS), 5, 4, 2_000)
    keys = jax.random.split(jax.random.key(0), 2)
    problem = problems.Problem(optimizee, keys, 6, 1, 3, objective=True)
    got = problems.runner(problem, optax.sgd)(0.5)
    self.assertEqual(got.shape, (2, 3))
    params, task = optimizee.init(jax.random.split(keys[0])[0])
    gradient = jax.jit(jax.grad(optimizee.objective))
    want = []
    for t in range(7):
      if t % 3 == 0:
        want.append(float(optimizee.objective(params, task)))
      step = jax.tree.map(lambda g: -0.5 * g, gradient(params, task))
      params = optax.apply_updates(params, step)
    np.testing.assert_allclose(got[0], want, rtol=2e-3)

  def test_some_50_values_a_run(self):
    for steps, every in ((50, 1), (400, 8), (7, 1), (800, 16), (101, 1)):
      self.assertEqual(projected.every(steps), every)


if __name__ == '__main__':
  absltest.main()
