"""Trainers as the flags say; a whole run with a trainer that takes no time."""

import json
import pathlib
import tempfile
from unittest import mock

import jax
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from experiments import learning_to_optimize as lto
from experiments.common import cli, comparison, report, training
from l2o_jax.base import MetaTrainer
from l2o_jax.learned_optimizers import autonomous_optimizer
from l2o_jax.optimizees import logistic_regression
from tests.experiments import toy

TINY = {
  'num_epochs': 2,
  'num_steps': 3,
  'num_functions': 2,
  'num_rollouts': 2,
  'num_validation': 2,
  'num_test': 3,
  'horizons': 2,
  'baselines': ('momentum', 'CG'),
}
LABELS = {'w': 'w', 'b': 'b'}


class LearningToOptimizeTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    directory = self.enterContext(tempfile.TemporaryDirectory())
    self.path = pathlib.Path(directory) / 'run'
    for module in (cli, training, comparison):
      self.enterContext(mock.patch.object(module, 'log'))
    self.said = self.enterContext(mock.patch.object(report, 'say'))

  def settings(self, **flags):
    flags = {**TINY, **flags}
    return toy.make_settings(self.path, lto.EXPERIMENT, **flags)

  @parameterized.parameters('quick', 'paper')
  def test_trainers(self, preset):
    """Both presets' programs can be traced, with the optimizer's theta."""
    s = self.settings(**lto.EXPERIMENT.presets[preset] | TINY)
    learned = autonomous_optimizer(LABELS)
    if s.gps.policy == 'joint':
      learned = autonomous_optimizer(coordinates=4)
    functions = jax.random.split(jax.random.key(0), 2)
    tuned = {'rate': 0.1, 'momentum': 0.9}
    trainer = lto.make_trainer(s, learned, LABELS, 4, functions, tuned)
    state = trainer.init(jax.random.key(1))
    jax.tree.map(
      lambda a, b: self.assertEqual(a.shape, b.shape),
      state.theta,
      learned.init(jax.random.key(2)),
    )
    key = jax.random.key(3)
    _, info = jax.eval_shape(trainer.step, state, logistic_regression(), key)
    self.assertEqual(info.losses.shape, (2, s.gps.num_rollouts, 4))

  def run_it(self, factor=0.9, **flags):
    """With a trainer of the same theta that multiplies it by `factor`."""
    init = autonomous_optimizer(LABELS).init
    shrink = toy.trainer(factor)
    start = lambda key: toy.State(init(key), np.int32(0))
    quick = MetaTrainer(start, shrink.step)
    with mock.patch.object(lto, 'make_trainer', return_value=quick):
      lto.main(self.settings(**flags))
    return json.loads((self.path / 'summary.json').read_text())

  @pytest.mark.slow
  def test_a_whole_run(self):
    summary = self.run_it()
    titles = ['logistic, 3 steps', 'logistic, 6 steps']
    self.assertEqual(list(summary['panels']), titles)
    margins = list(summary['margin_of_victory'])
    self.assertEqual(margins, ['momentum, CG', 'momentum', 'CG'])
    curves = report.read_curves(self.path / 'curves.csv')
    self.assertEqual(set(curves), {*titles, 'margin of victory'})
    self.assertLen(curves['margin of victory']['CG']['mean'], 7)

  @pytest.mark.slow
  def test_a_policy_that_diverges(self):
    """Table, summary and picture all the same (B.6)."""
    summary = self.run_it(1e3, num_epochs=3, baselines=('momentum',))
    self.assertTrue((self.path / 'learning_curves.png').exists())
    self.assertIn('momentum', self.said.call_args.args[0])
    self.assertIn('margin_of_victory', summary)


if __name__ == '__main__':
  absltest.main()
