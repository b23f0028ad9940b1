"""Stages as the flags say, data of the comparison, back-propagation."""

import json
import pathlib
import tempfile
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from experiments import predicted_step_descent as psd
from experiments.common import (
  cli,
  comparison,
  policies,
  projected,
  report,
  training,
)
from experiments.common.settings import UsageError
from l2o_jax.datasets import DatasetError
from l2o_jax.gps.policy import calibrated
from tests.experiments import toy

TINY = {
  'num_epochs': 3,
  'num_steps': 4,
  'inputs': 3,
  'hidden': 2,
  'lstm_units': 2,
  'objective_size': 50,
  'num_rollouts': 2,
  'num_coordinates': 2,
  'state_depth': 0,
  'regression_steps': 2,
  'num_validation': 2,
  'num_tuning': 1,
  'num_test': 2,
  'panels': ('same',),
  'baselines': ('SGD',),
}
RNG = np.random.default_rng(0)
DATA = RNG.integers(0, 256, (30, 4, 4, 1), np.uint8), np.arange(30) % 3
OPTIMIZEE = projected.make_optimizee(DATA, 3, 2, 5)


class PredictedStepDescentTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    directory = self.enterContext(tempfile.TemporaryDirectory())
    self.path = pathlib.Path(directory) / 'run'
    for module in (cli, training, comparison):
      self.enterContext(mock.patch.object(module, 'log'))
    self.enterContext(mock.patch.object(report, 'say'))

  def settings(self, **flags):
    flags = TINY | flags
    return toy.make_settings(self.path, psd.EXPERIMENT, **flags)

  def check_stages(self, s, tuned):
    """All programs can be traced, and theta goes from one into the next."""
    learned = policies.learned_optimizer(s.policy, OPTIMIZEE)
    stages = policies.make_stages(s, learned, tuned)
    key, theta = jax.random.key(0), learned.init(jax.random.key(1))
    for stage in stages:
      (trainer,) = stage.trainers
      state = trainer.init(key)._replace(theta=theta)
      state, info = jax.eval_shape(trainer.step, state, OPTIMIZEE, key)
      self.assertEqual(info.losses.shape[-1], 5)
      same = jax.tree.map(lambda a, b: a.shape == b.shape, state.theta, theta)
      self.assertTrue(all(jax.tree.leaves(same)))
    return [stage.num_epochs for stage in stages]

  def test_mirror_descent(self):
    tuned = {'rate': 0.1, 'momentum': 0.9}
    self.assertEqual(self.check_stages(self.settings(), tuned), [3])

  def test_bregman_admm_of_the_other_features(self):
    how = {'trainer': 'badmm', 'features': 'log_and_sign', 'shared': True}
    tuned = {'rate': 0.1, 'momentum': 0.9}
    self.assertEqual(self.check_stages(self.settings(**how), tuned), [3])

  @pytest.mark.slow
  def test_imitation_then_guided_policy_search(self):
    how = {'initial': 'ADAM_decaying', 'imitation_epochs': 2}
    s = self.settings(**how, imitation_scale=1.0)
    self.assertEqual(self.check_stages(s, {'rate': 0.1}), [2, 1])

  @pytest.mark.slow
  def test_scale_free(self):
    """Only the unit of steps is measured: the features are ratios."""
    how = {'features': 'scale_free', 'initial': 'ADAM_fading'}
    s = self.settings(**how, imitation_epochs=2)
    self.assertEqual(self.check_stages(s, {'rate': 0.1}), [2, 1])
    learned = policies.learned_optimizer(s.policy, OPTIMIZEE)
    policy = policies.make_policy(s.policy, learned)
    self.assertTrue(policy.in_units)
    theta = policy.learned.init(jax.random.key(0))
    seen = jax.random.normal(jax.random.key(1), (1, 4, 2, 3, 7))
    units = calibrated(policy, theta, 5 + seen, 3 * jnp.ones((1, 4, 2, 3, 1)))
    np.testing.assert_array_equal(units['w0']['mean'], np.zeros(7))
    np.testing.assert_array_equal(units['w0']['std'], np.ones(7))
    self.assertEqual(float(units['w0']['output']), 3)

  def test_admm_starts_from_momentum(self):
    how = {'trainer': 'badmm', 'imitation_epochs': 2}
    with self.assertRaisesRegex(UsageError, 'badmm needs --initial=momentum'):
      psd.check(self.settings(**how, initial='ADAM_decaying'))
    psd.check(self.settings(**how))

  def test_validation_on_other_problems(self):
    """The mean of the logarithms, relative to the start of each."""
    s = self.settings(validate_on=('base', 'small_noisy'))
    problem = psd.make_problem(OPTIMIZEE, 'validation', 2, 4)
    curves = iter(([4.0, 2.0, 1.0], [2.0, 1.0, 2e-6]))
    fake = lambda *_: lambda theta: np.array(next(curves))
    with mock.patch.object(psd.problems, 'mean_curve', fake):
      validate = psd.make_validation(s, None, DATA, problem)
      got = validate(None)
    np.testing.assert_allclose(got, [1, 0.5, (0.25 * 1e-6) ** 0.5], rtol=1e-6)

  def test_parts_of_the_images(self):
    """Meta-training on parts, minibatches and units drawn at random."""
    how = {'smallest_part': 5, 'smallest_batch': 2, 'rescale': 1.0}
    s = self.settings(**how)
    params, task = psd.make_trained_on(s, DATA, OPTIMIZEE).init(
      jax.random.key(0)
    )
    (start, n, size), scales = task
    self.assertBetween(int(n), 5, 30)
    self.assertBetween(int(size), 2, 64)
    self.assertLess(int(start), 30)
    leaves = jax.tree.leaves(scales)
    self.assertLen(np.unique([x.ravel()[0] for x in leaves]), 1)
    same = psd.make_trained_on(self.settings(), DATA, OPTIMIZEE)
    self.assertIs(same, OPTIMIZEE)

  @pytest.mark.slow
  def test_a_run_by_back_propagation(self):
    """With two --test_data of one stem, told apart (D.1)."""
    data = []
    for name in ('one', 'two'):
      (self.path.parent / name).mkdir()
      data.append(str(self.path.parent / name / 'images.npz'))
      np.savez(data[-1], train_images=DATA[0], train_labels=DATA[1])
    how = {'trainer': 'bptt', 'num_steps': 2, 'unroll_length': 2}
    how |= {'num_epochs': 1, 'shared': True, 'num_test': 1}
    s = self.settings(**how, test_data=tuple(data), features='log_and_sign')
    psd.main(s)
    summary = json.loads((self.path / 'summary.json').read_text())
    titles = [f'{name}, same' for name in data]
    self.assertEqual(list(summary['panels']), titles)
    names = ['LSTM, log-and-sign, by back-propagation', 'SGD']
    self.assertEqual(list(summary['mean_rank']), names)

  def test_bad_test_data_is_found_first(self):
    """Before any meta-training, and nothing is made (D.1)."""
    bad = str(self.path.parent / 'bad.npz')
    np.savez(bad, other=DATA[1])
    for name in (bad, '/nowhere.npz', 'no_such_data'):
      with self.assertRaises(DatasetError):
        psd.main(self.settings(test_data=(name,)))
    self.assertFalse(self.path.exists())

  def test_panels(self):
    """Sizes, steps and minibatches of the paper, relative to the flags."""
    s = self.settings(inputs=48, hidden=48, panels=('wide_long', 'same'))
    problem = psd.make_problem(OPTIMIZEE, 'tuning', 1, 4)
    panels = list(psd.make_panels(s, {'data': DATA}, problem))
    titles = ['data, wide, long', 'data, same']
    self.assertEqual([panel.title for panel in panels], titles)
    params, _ = panels[0].test.optimizee.init(jax.random.key(0))
    self.assertEqual(params[0]['w'].shape, (100, 200))
    self.assertEqual(panels[0].test.num_steps, 8)
    self.assertIs(panels[0].tuning, problem)
    s = self.settings(tune_each=True)
    (panel,) = psd.make_panels(s, {'data': DATA}, problem)
    self.assertIs(panel.tuning.optimizee, panel.test.optimizee)


if __name__ == '__main__':
  absltest.main()
