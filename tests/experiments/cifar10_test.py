"""The CIFAR-10 experiment without its meta-training, on tiny images."""

import functools
import json
import pathlib
import tempfile
from unittest import mock

import jax
import numpy as np
import pytest
from absl.testing import absltest

from experiments import cifar10
from experiments.common import cli, report, training
from experiments.common.settings import UsageError
from l2o_jax.datasets import DatasetError
from l2o_jax.optimizees.classifier import classifier
from l2o_jax.optimizees.convnet import convnet
from l2o_jax.theta_files import load_learned
from tests import quick
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
      'num_epochs': 0,
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
    net = functools.partial(convnet, channels=(2,), hidden=4, size=3)
    self.enterContext(mock.patch.object(cifar10, 'convnet', net))
    cifar10.main(toy.make_settings(path, cifar10.EXPERIMENT, **flags))
    return path

  @pytest.mark.slow
  def test_two_lstms(self):
    path = self.run_it(dataset=self.images(), train_on='other_labels')
    summary = json.loads((path / 'summary.json').read_text())
    self.assertEqual(list(summary['panels']), ['images of 2 labels'])
    learned, theta = load_learned(path / 'theta.npz')
    self.assertEqual(set(theta), {'conv', 'fc'})
    self.assertEqual(learned.call['arguments']['labels'], cifar10.GROUPS)

  def test_vectors_are_the_same_functions(self):
    x = np.random.default_rng(0).integers(0, 256, (9, 4, 4, 1), np.uint8)
    net = convnet((4, 4), 3, channels=(2,), hidden=4, size=3)
    tree = classifier(x, np.arange(9) % 3, net, 8)
    f, key = cifar10.in_vectors(tree), jax.random.key(0)

    @quick.jit
    def both(tree, f):
      (x, task), (y, _) = tree.init(key), f.init(key)
      of_tree = jax.value_and_grad(tree.loss)(x, task, key)
      return *of_tree, *jax.value_and_grad(f.loss)(y, task, key)

    loss, gradient, again, vectors = both(tree, f)
    self.assertEqual(float(loss), float(again))
    for name in ('conv', 'fc'):
      expected = np.concatenate(
        [g.ravel() for g in jax.tree.leaves(gradient[name])]
      )
      np.testing.assert_allclose(vectors[name], expected, rtol=1e-5, atol=1e-7)

  def test_pixels_and_labels(self):
    images = np.arange(2 * 4 * 4).reshape(2, 4, 4, 1).astype(np.uint8)
    found = cifar10.averaged(images, 2)[..., 0]
    expected = [[[2, 4], [10, 12]], [[18, 20], [26, 28]]]  # 2.5 to even
    np.testing.assert_array_equal(found, expected)
    with self.assertRaisesRegex(UsageError, '--side=3 does not divide 4 x 4'):
      cifar10.averaged(images, 3)
    data = np.arange(6)[:, None], np.array([0, 5, 7, 5, 9, 7])
    images, labels = cifar10.of_labels(data, [5, 7], 'test')
    self.assertEqual(images[:, 0].tolist(), [1, 2, 3, 5])
    self.assertEqual(labels.tolist(), [0, 1, 0, 1])
    with self.assertRaisesRegex(
      UsageError, 'test images: no image has label 6'
    ):
      cifar10.of_labels(data, [5, 6], 'test')

  def test_what_is_refused(self):
    images = self.images(classes=5)
    for flags, message in (
      ({'side': 1}, '1 x 1 images are too small .* see --side'),
      ({'train_on': 'other_labels'}, 'there are only 5 labels'),
    ):
      with self.assertRaisesRegex(UsageError, message):
        self.run_it(dataset=images, **flags)

  def test_a_label_that_is_only_in_training(self):
    """Found before anything is trained."""
    images, labels = np.zeros((200, 16, 16, 3), np.uint8), np.arange(200) % 10
    path = self.path.parent / 'own.npz'
    arrays = {'train_images': images, 'train_labels': labels}
    arrays |= {'test_images': images[:8], 'test_labels': labels[:8]}
    np.savez(path, **arrays)
    with mock.patch.object(cifar10.bptt, 'train') as train:
      with self.assertRaisesRegex(UsageError, 'test images: no image has lab'):
        self.run_it(dataset=str(path), side=0, panels=('ten',))
    train.assert_not_called()

  def test_few_images(self):
    data = np.zeros((5, 1)), np.arange(5)
    first, last = cifar10.split_off(data, 10)
    self.assertEqual((len(first[0]), last[1].tolist()), (4, [4]))
    with self.assertRaisesRegex(UsageError, 'too few images: 1'):
      cifar10.split_off((data[0][:1], data[1][:1]), 10)

  def test_data_that_are_not_there(self):
    with self.assertRaisesRegex(DatasetError, 'prepare cifar10'):
      self.run_it(dataset='cifar10', data_dir='/nowhere')


if __name__ == '__main__':
  absltest.main()
