"""A whole run of MNIST, on tiny settings, with blocks of coordinates."""

import json
import pathlib
import tempfile
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import absltest

from experiments import mnist
from experiments.common import cli, report, run, training
from experiments.common.problems import Problem
from l2o_jax.base import LearnedOptimizer, Optimizee
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

  @pytest.mark.slow
  def test_several_nets(self):
    """In turn, each for its own number of steps; selected by all of them."""
    how = {'optimizer': 'gated', 'units': 0, 'remat': 'step', 'weights': 'all'}
    nets = {'train_on': ('base', 'long'), 'panels': ('base',)}
    self.run_it(num_epochs=2, **nets, **how)
    lines = (self.path / 'metrics.jsonl').read_text().splitlines()
    summed = [json.loads(line)['meta_loss'] for line in lines[:2]]
    # Unrolls of 3 losses, one and two of them; all are about log(10).
    np.testing.assert_allclose(sorted(summed), [3 * 2.4, 6 * 2.4], rtol=0.2)
    _, learned, _ = run.rebuild(self.path)
    self.assertEqual(learned.call['name'], 'robust_optimizer')

  def test_selected_by_the_ends_of_all_curves(self):
    f = Optimizee(
      lambda key: (jnp.ones(1), ()), lambda x, task, key: jnp.sum(x**2)
    )
    short = Problem(f, jax.random.split(jax.random.key(0), 2), 1)
    of_rate = LearnedOptimizer(lambda key: 0.1, optax.sgd)
    validate, by = mnist.validation([short], of_rate)
    self.assertEqual(by, 'final')
    np.testing.assert_allclose(validate(0.25), [1, 0.25])
    both = [short, short._replace(num_steps=2)]
    validate, by = mnist.validation(both, of_rate)
    self.assertEqual(by, 'mean')
    np.testing.assert_allclose(validate(0.25), [0.25, 0.0625])

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
