"""Meta-training on several families, and its result, on tiny settings."""

import json
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from experiments import robust
from experiments.common import families, nets, run, tasks, training
from experiments.common.settings import UsageError
from l2o_jax import optimizees
from l2o_jax.theta_files import load_learned
from tests.experiments import toy

TINY = {
  'num_epochs': 4,
  'horizons': (3, 6),
  'margin': 0.0,
  'num_optimizees': 2,
  'num_steps': 100,
  'evaluation_period': 2,
  'num_tuning': 1,
  'num_test': 1,
  'baselines': ('ADAM',),
}


def small_families():
  return optimizees.quadratic(2), optimizees.quadratic(3)


class NoiseTest(absltest.TestCase):
  """Optimizees whose data cannot be learned by heart."""

  def test_loss_and_objective(self):
    """The objective is the mean of the loss over minibatches."""
    data = np.eye(3, dtype=np.float32), np.array([0, 1, 2])
    net = nets.dense((3, 10))
    f = families._noisy(data, net, 300, labels=0.5)
    params = jax.tree.map(lambda x: x + 0.5, f.init(jax.random.key(0))[0])
    losses = jax.vmap(lambda key: f.loss(params, (), key))(
      jax.random.split(jax.random.key(1), 300)
    )
    error = 4 * float(losses.std()) / 300**0.5
    self.assertAlmostEqual(
      float(losses.mean()), float(f.objective(params, ())), delta=error
    )

  def test_labels_by_hand(self):
    """A net without weights: log 10, whatever the labels are; else by hand."""
    data = np.zeros((1, 2), np.float32), np.array([3])
    net = (lambda key: jnp.zeros(10), lambda p, x: p + 0 * x[:, :1])
    f = families._noisy(data, net, 4, labels=0.2)
    self.assertAlmostEqual(
      float(f.objective(jnp.zeros(10), ())), np.log(10), places=5
    )
    p = jnp.zeros(10).at[3].set(5.0)
    log_z = np.log(np.exp(5) + 9)
    right, wrong = log_z - 5, log_z
    wanted = (0.8 + 0.02) * right + 0.18 * wrong
    self.assertAlmostEqual(float(f.objective(p, ())), wanted, places=5)

  def test_images_are_noisy(self):
    """Of two pixels of 0 the net sees N(0, 0.5²)."""
    data = np.zeros((1, 2), np.float32), np.array([0])
    seen = []
    net = (
      lambda key: jnp.zeros(()),
      lambda p, x: (seen.append(x), jnp.zeros((len(x), 10)))[1],
    )
    f = families._noisy(data, net, 2000, inputs=0.5)
    f.loss(jnp.zeros(()), (), jax.random.key(0))
    self.assertAlmostEqual(float(seen[0].std()), 0.5, delta=0.03)
    self.assertAlmostEqual(float(seen[0].mean()), 0.0, delta=0.03)


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
    drawn = [training._family(t, epoch) for epoch in range(30)]
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
