"""What a policy sees and does: numbers by hand, and a whole small run."""

import json
import pathlib
import tempfile
from unittest import mock

import jax
import numpy as np
import pytest
from absl.testing import absltest

from experiments import policy_steps
from experiments.common import cli, policies
from experiments.common.settings import UsageError
from l2o_jax.learned_optimizers import predicted_step_descent
from l2o_jax.policy_features import relative_changes
from l2o_jax.pretrained import pretrained
from l2o_jax.theta_files import save_learned
from tests.contracts.subjects import theta_of
from tests.experiments import toy


class PolicyStepsTest(absltest.TestCase):
  def test_sizes_at_the_end(self):
    """Also of a run that has diverged."""
    z = np.array([[1.0, 1.0, 1.0], [-3.0, 1.0, 2.0]])
    self.assertEqual(policy_steps.end(z), 2)
    self.assertEqual(policy_steps.end(np.array([1.0, -0.5])), 0.5)
    self.assertTrue(np.isnan(policy_steps.end(np.full((3, 2), np.nan))))
    curve = policy_steps.sizes(np.full(3, np.nan))
    self.assertLen(curve['y'], 0)

  def test_quartiles_of_sizes(self):
    z = np.array([[-1.0, 2, -3, 4, 5], [0, 0, 0, 0, 9]])
    got = policy_steps.sizes(z)
    np.testing.assert_array_equal(got['y'], [3, 0])
    np.testing.assert_array_equal(got['low'], [2, 0])
    np.testing.assert_array_equal(got['high'], [4, 0])
    without = policy_steps.sizes(z, band=False)
    np.testing.assert_array_equal(without['high'], [3, 0])

  def test_slopes(self):
    """g / (|g of the step before| + 1), its size."""
    g = np.float32([[2.0, -1], [3, -1], [-8, 1]])
    got = policy_steps.slopes(relative_changes(), 1, 0 * g, g, np.ones(3))
    want = [[2 / 3, 0.5], [1, 0.5], [2, 0.5]]
    np.testing.assert_allclose(got, want, rtol=1e-6)

  def test_a_theta_of_another_kind(self):
    """Refused in one line, before a run directory is made."""
    path = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    learned, theta = pretrained('robust')
    save_learned(path / 'theta.npz', learned, theta)
    s = toy.make_settings(
      path / 'run', policy_steps.EXPERIMENT, theta=(str(path / 'theta.npz'),)
    )
    with self.assertRaisesRegex(UsageError, 'is of robust_optimizer, not of'):
      policy_steps.main(s)
    self.assertFalse((path / 'run').exists())

  def test_a_theta_for_other_parameters(self):
    path = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    learned = predicted_step_descent({'w': 'a', 'b': 'b'}, 2)
    theta = learned.init(jax.random.key(0))
    save_learned(path / 'theta.npz', learned, theta)
    s = toy.make_settings(
      path / 'run', policy_steps.EXPERIMENT, theta=(str(path / 'theta.npz'),)
    )
    with self.assertRaisesRegex(UsageError, 'is for other parameters'):
      policy_steps.main(s)

  @pytest.mark.slow
  def test_a_run(self):
    directory = self.enterContext(tempfile.TemporaryDirectory())
    path = pathlib.Path(directory)
    files = []
    for kind in policy_steps.SLOPE:
      learned = predicted_step_descent(policies.LABELS, 2, kind)
      (path / kind).mkdir()
      files.append(str(path / kind / 'theta.npz'))
      save_learned(files[-1], learned, theta_of(learned))
    small = {'images': 30, 'num_steps': 3, 'coordinates': 5}
    s = toy.make_settings(
      path / 'run', policy_steps.EXPERIMENT, theta=tuple(files), **small
    )
    with mock.patch.object(cli, 'say'), mock.patch.object(cli, 'log'):
      policy_steps.main(s)
    ends = json.loads((path / 'run' / 'policy_steps.json').read_text())
    names = {f'policy, {kind}/theta.npz' for kind in policy_steps.SLOPE}
    self.assertEqual(set(ends['loss']), names | set(policy_steps.RIVALS))
    self.assertEqual(set(ends['|feature|']), names)
    # One step of RMSprop is rate / sqrt(1 - decay) long, the next are shorter.
    self.assertBetween(ends['|step|']['RMSprop'], 0.01, 0.1)
    picture = (path / 'run' / 'policy_steps.png').read_bytes()
    self.assertEqual(picture[:4], b'\x89PNG')


if __name__ == '__main__':
  absltest.main()
