"""Projected images, curves of the objective, ranks."""

import io
import pathlib
import tempfile

import jax
import numpy as np
import optax
from absl.testing import absltest
from PIL import Image

from experiments import predicted_step_descent
from experiments.common import projected
from l2o_jax.datasets import DatasetError

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (30, 4, 4, 1), np.uint8)
LABELS = (np.arange(30) % 3).astype(np.int32)


class ProjectedTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.path = (
      pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
      / 'data.npz'
    )

  def test_contact_sheets(self):
    """Five pictures of 2 x 3 pixels on sheets of two rows of two."""
    images = RNG.integers(0, 256, (5, 2, 3, 3), np.uint8)
    sheets = {}
    padded = np.concatenate([images, 0 * images[:3]]).reshape(2, 2, 2, 2, 3, 3)
    for i, sheet in enumerate(padded):
      out = io.BytesIO()
      Image.fromarray(sheet.swapaxes(1, 2).reshape(4, 6, 3)).save(out, 'PNG')
      sheets[f'train_sheet_{i:03d}'] = np.frombuffer(out.getvalue(), np.uint8)
    np.savez(
      self.path,
      train_sheets=2,
      train_shape=images.shape,
      train_label=np.arange(5, dtype=np.uint8),
      **sheets,
    )
    got, labels = projected.load(str(self.path))
    np.testing.assert_array_equal(got, images)
    np.testing.assert_array_equal(labels, [0, 1, 2, 3, 4])

  def test_arrays_and_bad_files(self):
    np.savez(self.path, train_images=IMAGES, train_labels=LABELS)
    np.testing.assert_array_equal(projected.load(str(self.path))[0], IMAGES)
    np.savez(self.path, other=LABELS)
    for name in (str(self.path), '/nowhere.npz', 'no_such_data'):
      with self.assertRaises(DatasetError):
        projected.load(name)

  def test_projections_are_normalised_and_linear(self):
    x = projected.project(IMAGES, 5, 0)
    np.testing.assert_allclose(x.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(x.std(0), 1, rtol=1e-5)
    pixels = np.c_[IMAGES.reshape(30, 16) / 255.0, np.ones(30)]
    fit = pixels @ np.linalg.lstsq(pixels, x, rcond=None)[0]
    np.testing.assert_allclose(fit, x, atol=1e-4)
    self.assertGreater(np.abs(x - projected.project(IMAGES, 5, 1)).max(), 1)

  def test_adagrad_as_published(self):
    """-rate g / sqrt(sum of g²), the sum from 0: a step of `rate` at first."""
    opt = projected.OPTIMIZERS['AdaGrad'][0](0.5)
    state = opt.init(np.float32([0, 0]))
    first, state = opt.update(np.float32([0.01, -3]), state)
    np.testing.assert_allclose(first, [-0.5, 0.5], rtol=1e-3)
    second, _ = opt.update(np.float32([0.01, 4]), state)
    np.testing.assert_allclose(second, [-0.5 / 2**0.5, -0.4], rtol=1e-3)

  def test_adam_decaying(self):
    """A constant gradient: steps of rate / sqrt(1 + t / 10)."""
    opt = projected.OPTIMIZERS['ADAM_decaying'][0](0.5)
    state, steps = opt.init(0.0), []
    for _ in range(31):
      step, state = opt.update(np.float32(3), state)
      steps.append(float(step))
    np.testing.assert_allclose([steps[0], steps[30]], [-0.5, -0.25], rtol=1e-4)

  def test_curves_of_the_objective(self):
    """Minibatches of all images but for their order: SGD step by step."""
    optimizee = projected.problem((IMAGES, LABELS), 5, 4, 2_000)
    opt = optax.sgd(0.5)
    got = jax.jit(lambda o, keys: projected.curves(o, opt, keys, 6, 3))(
      optimizee, jax.random.split(jax.random.key(0), 2)
    )
    self.assertEqual(got.shape, (2, 3))
    key = jax.random.split(jax.random.split(jax.random.key(0), 2)[0])[0]
    params, task = optimizee.init(key)
    descend = jax.jit(
      lambda params: optax.apply_updates(
        params,
        jax.tree.map(
          lambda g: -0.5 * g, jax.grad(optimizee.objective)(params, task)
        ),
      )
    )
    want = []
    for t in range(7):
      if t % 3 == 0:
        want.append(float(optimizee.objective(params, task)))
      params = descend(params)
    np.testing.assert_allclose(got[0], want, rtol=2e-3)

  def test_ranks(self):
    curves = {
      'a': np.array([[1.0, 0.5]]),
      'b': np.array([[1.0, np.nan]]),
      'c': np.array([[1.0, 0.4]]),
      'd': np.array([[0.2, 0.6]]),
    }
    rows = predicted_step_descent.statistics(curves, {'a': (0.1,)})
    self.assertEqual([rows[n]['rank_by_mean'] for n in 'abcd'], [3, 4, 2, 1])
    self.assertEqual([rows[n]['rank_by_final'] for n in 'abcd'], [2, 4, 1, 3])
    self.assertIn('0.1', predicted_step_descent.table('title', rows))


if __name__ == '__main__':
  absltest.main()
