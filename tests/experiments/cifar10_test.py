"""A whole run of the CIFAR-10 experiment, on tiny settings and images."""

import json
import pathlib
import tempfile
from unittest import mock

import numpy as np
from absl.testing import absltest

from experiments import cifar10
from experiments.common import cli, report, training
from experiments.common.settings import UsageError
from l2o_jax.datasets import DatasetError
from l2o_jax.learned_optimizers import load_learned
from tests.experiments import toy


class Cifar10Test(absltest.TestCase):
  def setUp(self):
    super().setUp()
    directory = self.enterContext(tempfile.TemporaryDirectory())
    self.path = pathlib.Path(directory)
    for module in (cli, training):
      self.enterContext(mock.patch.object(module, 'log'))
    self.enterContext(mock.patch.object(report, 'say'))

  def images(self, classes=7):
    random = np.random.default_rng(0)
    found = {}
    for split, count in ('train', 70), ('test', 21):
      images = random.integers(0, 256, (count, 16, 16, 3), np.uint8)
      found |= {f'{split}_images': images}
      found |= {f'{split}_labels': np.arange(count) % classes}
    np.savez(self.path / 'images.npz', **found)
    return str(self.path / 'images.npz')

  def run_it(self, **flags):
    tiny = {
      'num_epochs': 1,
      'num_steps': 2,
      'unroll_length': 2,
      'num_validation': 1,
      'num_tuning': 1,
      'num_test': 1,
      'batch_size': 4,
      'side': 8,
      'test_steps': 2,
      'panels': ('two',),
      'baselines': ('SGD',),
    }
    flags = {**tiny, **flags}
    path = self.path / 'run'
    cifar10.main(toy.make_settings(path, cifar10.EXPERIMENT, **flags))
    return path

  def test_a_whole_run_with_two_lstms(self):
    path = self.run_it(dataset=self.images(), train_on='other_labels')
    summary = json.loads((path / 'summary.json').read_text())
    self.assertEqual(list(summary['panels']), ['images of 2 labels'])
    learned, theta = load_learned(path / 'theta.npz')
    self.assertEqual(set(theta), {'conv', 'fc'})
    self.assertEqual(learned.call['arguments']['labels'], cifar10.GROUPS)

  def test_pixels_and_labels(self):
    images = np.arange(2 * 4 * 4).reshape(2, 4, 4, 1).astype(np.uint8)
    found = cifar10.averaged(images, 2)[..., 0]
    expected = [[[2, 4], [10, 12]], [[18, 20], [26, 28]]]  # 2.5 to even
    np.testing.assert_array_equal(found, expected)
    with self.assertRaisesRegex(UsageError, '--side=3 does not divide 4 x 4'):
      cifar10.averaged(images, 3)
    data = np.arange(6)[:, None], np.array([0, 5, 7, 5, 9, 7])
    images, labels = cifar10.of_labels(data, [5, 7])
    self.assertEqual(images[:, 0].tolist(), [1, 2, 3, 5])
    self.assertEqual(labels.tolist(), [0, 1, 0, 1])
    with self.assertRaisesRegex(UsageError, 'no label 6'):
      cifar10.of_labels(data, [5, 6])

  def test_data_that_are_not_there(self):
    with self.assertRaisesRegex(DatasetError, 'prepare cifar10'):
      self.run_it(dataset='cifar10', data_dir='/nowhere')


if __name__ == '__main__':
  absltest.main()
