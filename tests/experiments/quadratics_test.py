"""A whole run of the quadratics, on tiny settings."""

import json
from unittest import mock

import jax
import numpy as np
import pytest
from absl.testing import absltest

from experiments import quadratics
from experiments.common import run, settings
from l2o_jax.checkpoint import CheckpointError
from tests.experiments import toy

TINY = {
  'num_epochs': 4,
  'num_steps': 4,
  'unroll_length': 2,
  'evaluation_period': 2,
  'num_validation': 2,
  'num_tuning': 2,
  'num_test': 3,
  'num_problems': 2,
  'dimension': 3,
  'num_optimizees': 2,
  'clip_each': 0.0,
  'second_derivatives': False,
  'baselines': ('SGD', 'ADAM'),
}


@pytest.mark.slow
class QuadraticsTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.said = toy.quiet(self)

  def run_it(self, **flags):
    flags = {**TINY, **flags}
    s = toy.make_settings(self.path, quadratics.EXPERIMENT, **flags)
    quadratics.main(s)

  def test_a_whole_run(self):
    """All files; then the last epochs once more, from a checkpoint."""
    self.run_it()
    names = {
      'run.json',
      'theta.npz',
      'metrics.jsonl',
      'checkpoints',
      'curves.csv',
      'summary.json',
      'learning_curves.png',
    }
    self.assertLessEqual(names, {path.name for path in self.path.iterdir()})
    lines = (self.path / 'metrics.jsonl').read_text().splitlines()
    found = [json.loads(line) for line in lines]
    self.assertEqual([line['epoch'] for line in found], [0, 1, 2, 3, 4])
    self.assertGreater(found[0]['gradient_norm'], 0)
    summary = json.loads((self.path / 'summary.json').read_text())
    (rows,) = summary['panels'].values()
    names = {'LSTM (Andrychowicz et al.)', 'SGD', 'ADAM'}
    self.assertEqual(set(rows), names)
    self.assertTrue(np.isfinite(rows['SGD']['final']))
    self.assertGreater(summary['meta_learning_rate'], 0)
    first = toy.files(self.path)
    (self.path / 'checkpoints/00000004.npz').unlink()
    run.note(self.path, finished=False)
    results = [self.path / name for name in ('summary.json', 'curves.csv')]
    before = [result.read_bytes() for result in results]
    self.run_it()
    self.assertEqual(toy.files(self.path), first)
    self.assertEqual([result.read_bytes() for result in results], before)
    other = {'num_epochs': 0, 'theta': str(self.path / 'theta.npz')}
    self.path = self.path.parent / 'other'
    with self.assertRaisesRegex(CheckpointError, 'scale=0.1.*scale=1.0'):
      self.run_it(**other, output_scale=1.0)
    self.assertFalse(self.path.exists())

  def test_search_of_the_meta_learning_rate(self):
    self.run_it(search_trials=2, search_epochs=1, num_epochs=1, baselines=())
    summary = json.loads((self.path / 'summary.json').read_text())
    trials = [
      json.loads((self.path / 'search' / i / 'trial.json').read_text())
      for i in ('00', '01')
    ]
    rates = [trial['learning_rate'] for trial in trials]
    self.assertIn(summary['meta_learning_rate'], rates)
    self.assertTrue(all(1e-4 <= rate <= 1e-2 for rate in rates))

  def test_devices_that_do_not_divide_the_optimizees(self):
    """Found before anything is made (D.1)."""
    with mock.patch.object(jax, 'device_count', return_value=3):
      with self.assertRaisesRegex(settings.UsageError, 'of the 3 devices'):
        self.run_it()
    self.assertFalse(self.path.exists())

  def test_blocks_where_coordinates_communicate(self):
    how = {'optimizer': 'averaging', 'num_problems': 1, 'remat': 'blocks'}
    with self.assertRaisesRegex(settings.UsageError, 'remat=blocks needs one'):
      self.run_it(**how)
    self.assertFalse(self.path.exists())

  def test_a_bad_rival_is_found_first(self):
    """Before anything is made or trained (D.1)."""
    with self.assertRaisesRegex(settings.UsageError, '--rivals=/nowhere'):
      self.run_it(rivals=('/nowhere',))
    self.assertFalse(self.path.exists())

  def test_the_form_of_the_released_code(self):
    """What was trained with gradients over `count` is compared with them."""
    seen = []
    keep = lambda *args, **how: seen.append(args[2])
    compare = mock.patch('experiments.common.comparison.compare', keep)
    with compare:
      self.run_it(batch_form='mean', num_problems=2, num_test=3)
    ((panel,),) = seen
    x, task = panel.test.optimizee.init(jax.random.key(0))
    self.assertEqual((x.shape, len(panel.test.keys)), ((2, 3), 2))
    sums = np.einsum('kij,kj->ki', task['w'], x) - task['y']
    loss = panel.test.optimizee.loss(x, task, None)
    np.testing.assert_allclose(loss, np.sum(sums**2) / 2, rtol=1e-5)


if __name__ == '__main__':
  absltest.main()
