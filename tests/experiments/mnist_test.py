"""A whole run of MNIST, on tiny settings, with blocks of coordinates."""

import json
import pathlib
import tempfile
from unittest import mock

import pytest
from absl.testing import absltest

from experiments import mnist
from experiments.common import cli, report, training
from l2o_jax.datasets import DatasetError
from tests.experiments import toy


class MnistTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    directory = self.enterContext(tempfile.TemporaryDirectory())
    self.path = pathlib.Path(directory) / 'run'
    for module in (cli, training):
      self.enterContext(mock.patch.object(module, 'log'))
    self.enterContext(mock.patch.object(report, 'say'))

  def run_it(self, **flags):
    tiny = {
      'num_epochs': 1,
      'num_steps': 2,
      'unroll_length': 2,
      'num_validation': 1,
      'num_tuning': 1,
      'num_test': 1,
      'second_derivatives': False,
      'remat': 'blocks',
      'batch_size': 4,
      'panels': ('deep', 'relu'),
      'baselines': ('SGD',),
    }
    flags = {**tiny, **flags}
    mnist.main(toy.make_settings(self.path, mnist.EXPERIMENT, **flags))

  @pytest.mark.slow
  def test_a_whole_run(self):
    self.run_it()
    summary = json.loads((self.path / 'summary.json').read_text())
    titles = ['2 hidden layers of 20, 2 steps', 'ReLU, 2 steps']
    self.assertEqual(list(summary['panels']), titles)
    names = {'LSTM, log-and-sign (Andrychowicz et al.)', 'SGD'}
    self.assertEqual(set(summary['mean_rank']), names)

  def test_disjoint_images(self):
    s = mnist.Images()
    train, held_out, test = mnist.load(s)
    self.assertEqual(len(train[0]) + len(held_out[0]), 4000)
    self.assertLen(test[0], 1000)

  def test_data_that_are_not_there(self):
    with self.assertRaisesRegex(DatasetError, 'prepare mnist'):
      self.run_it(dataset='mnist', data_dir='/nowhere')
    self.assertFalse(self.path.exists())


if __name__ == '__main__':
  absltest.main()
