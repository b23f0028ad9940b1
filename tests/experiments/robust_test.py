"""Meta-training on several families, and its result, on tiny settings."""

import json
from unittest import mock

import jax
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from experiments import robust
from experiments.common import families, run, tasks, training
from experiments.common.settings import UsageError
from l2o_jax import optimizees
from l2o_jax.learned_optimizers import load_learned
from tests.experiments import toy

TINY = {
  'num_epochs': 4,
  'horizons': (3, 6),
  'num_optimizees': 2,
  'num_steps': 100,
  'evaluation_period': 2,
  'num_tuning': 1,
  'num_test': 1,
  'baselines': ('ADAM',),
}


def small_families():
  return optimizees.quadratic(2), optimizees.quadratic(3)


class RobustTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    toy.quiet(self)
    patch = lambda name, value: self.enterContext(
      mock.patch.object(families, name, value)
    )
    patch('trained', small_families)
    patch('validation', lambda: {'quadratic': optimizees.quadratic(4)})
    self.enterContext(
      mock.patch.object(robust, 'PANELS', ('robust_regression',))
    )

  def run_it(self, **flags):
    flags = {**TINY, **flags}
    robust.main(toy.make_settings(self.path, robust.EXPERIMENT, **flags))

  @pytest.mark.slow
  def test_a_whole_run(self):
    """And its second half once more: families are drawn by seed and epoch."""
    self.run_it()
    learned, theta = load_learned(self.path / 'theta.npz')
    self.assertEqual(learned.call['name'], 'robust_optimizer')
    start = learned.init(training.first_keys(0)[0])
    moved = jax.tree.map(lambda a, b: np.any(a != b), theta, start)
    metrics = (self.path / 'metrics.jsonl').read_text()
    lines = [json.loads(line) for line in metrics.splitlines()]
    self.assertEqual([line['epoch'] for line in lines], [0, 1, 2, 3, 4])
    best = min(l['validation_mean'] for l in lines if 'validation_mean' in l)
    summary = json.loads((self.path / 'summary.json').read_text())
    self.assertAlmostEqual(summary['validation_loss'], best)
    self.assertEqual(
      any(jax.tree.leaves(moved)), best < lines[0]['validation_mean']
    )
    first = toy.files(self.path)
    (self.path / 'checkpoints/00000004.npz').unlink()
    run.note(self.path, finished=False)
    self.run_it()
    self.assertEqual(toy.files(self.path), first)

  def test_bad_flags(self):
    make = lambda **flags: robust.check(
      toy.make_settings(self.path, robust.EXPERIMENT, **{**TINY, **flags})
    )
    make()
    with self.assertRaisesRegex(UsageError, 'num_steps must be a multiple'):
      make(num_steps=150)

  def test_weights_of_losses(self):
    weights = robust._weights(2000)
    self.assertAlmostEqual(weights.sum(), 1)
    decade = lambda a: weights[a : 10 * a].sum()
    self.assertAlmostEqual(decade(100) / decade(200), 1, delta=0.2)

  def test_families_count_the_same(self):
    """A loss of half of the reference's, whatever that is; not finite: 1."""
    losses = np.array([[0.5, 5e-3], [np.nan, 1.0]])
    found = robust._relative(np.array([1.0, 1e-2]), losses)
    np.testing.assert_allclose(found, [[0.5, 0.5], [5, 5]], atol=0.01)

  def test_every_family_is_trained_on_once_a_turn(self):
    three = [optimizees.quadratic(n) for n in (2, 3, 4)]
    s = toy.make_settings(self.path, robust.EXPERIMENT, **TINY)
    t = training.Training(self.path, s.run, None, three, None)
    drawn = [training._family(t, epoch)[1] for epoch in range(30)]
    turns = np.reshape(drawn, (10, 3))
    np.testing.assert_array_equal(np.sort(turns, 1), [[0, 1, 2]] * 10)
    self.assertGreater(len(set(map(tuple, turns))), 2)


class FamiliesTest(absltest.TestCase):
  def test_training_and_validation_are_of_other_images(self):
    """Training has one half of the packaged digits, validation the other."""
    first = families._images(7, slice(0, families._TRAINED))[0]
    second = families._images(7, slice(families._TRAINED, None))[0]
    self.assertLen(first, 2000)
    self.assertLen(second, 2000)
    self.assertFalse(
      np.any(np.all(first[:, None] == second[None, :50], (2, 3)))
    )
    self.assertEqual(tasks.digits('test').x.shape, (1000, 14, 14))

  def test_training_and_validation_have_no_net_in_common(self):
    def shapes(family):
      params, _ = jax.eval_shape(family.init, jax.random.key(0))
      return str(jax.tree.map(lambda x: x.shape, params))

    trained = set(map(shapes, families.trained()))
    validated = set(map(shapes, families.validation().values()))
    self.assertFalse(trained & validated)
    self.assertGreater(len(trained) + len(validated), 12)


if __name__ == '__main__':
  absltest.main()
