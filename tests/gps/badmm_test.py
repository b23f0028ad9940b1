"""Bregman ADMM: its dual variables, and guides of whole functions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest

from l2o_jax.cells.mlp import mlp_cell
from l2o_jax.features import gradient
from l2o_jax.gps import badmm as module
from l2o_jax.gps import costs
from l2o_jax.gps.badmm import badmm
from l2o_jax.gps.guided_policy_search import guided_policy_search
from l2o_jax.gps.policy import Regression, make_policy
from l2o_jax.gps.rollouts import Rollouts
from l2o_jax.optimizees.quadratic import quadratic
from l2o_jax.policy_features import state_features
from tests.gps.problems import QUICKLY


class BadmmTest(absltest.TestCase):
  @pytest.mark.slow
  def test_joint_guides_one_per_function(self):
    """Every guide gets better, and penalties change once an iteration."""
    policy = make_policy(
      gradient(), mlp_cell((5,), coordinates=3), coordinates=3
    )
    functions = jax.random.split(jax.random.key(7), 2)
    trainer = guided_policy_search(
      policy,
      state_features(1, 0),
      (0.01, 0.3),
      Rollouts(4, functions, num_rollouts=6),
      improve=badmm(costs.taylor),
      regression=Regression(10, 20, batch_size=16, learning_rate=1e-2),
    )
    state = trainer.init(jax.random.key(0))
    self.assertEqual(state.guide.gain.shape, (2, 1, 4, 3, 12))
    np.testing.assert_array_equal(
      *map(jax.random.key_data, (state.function_keys[:, 3], functions))
    )
    step = jax.jit(trainer.step, compiler_options=QUICKLY)
    costs_seen = []
    for i in range(3):
      before = np.array(state.dual.penalties)
      state, info = step(state, quadratic(3), jax.random.key(i))
      costs_seen.append(float(info.summary['accepted_cost']))
      ratio = np.array(state.dual.penalties) / before
      self.assertLessEqual(set(ratio.ravel().tolist()), {0.5, 1.0, 2.0})
      self.assertEqual(float(info.summary['rejected']), 0.0)
    self.assertLess(costs_seen[2], costs_seen[1])
    self.assertLess(costs_seen[1], costs_seen[0])

  @pytest.mark.slow
  def test_a_large_penalty_keeps_the_guides_with_the_policy(self):
    policy = make_policy(gradient(), mlp_cell((5,)))
    functions = jax.random.split(jax.random.key(7), 2)
    trainers = {
      penalty: guided_policy_search(
        policy,
        state_features(1, 0),
        (0.01, 0.3),
        Rollouts(4, functions, num_rollouts=6),
        improve=badmm(penalty=penalty),
        regression=Regression(10, 20, batch_size=16, learning_rate=1e-2),
      )
      for penalty in (1e-4, 1e3)
    }
    # Only the state knows the penalty, so one program serves both.
    step, apart = jax.jit(trainers[1e3].step, compiler_options=QUICKLY), []
    for penalty, trainer in trainers.items():
      state = trainer.init(jax.random.key(0))
      np.testing.assert_allclose(state.dual.penalties, penalty, rtol=1e-6)
      for i in range(2):
        state, info = step(state, quadratic(3), jax.random.key(i))
      apart.append(float(info.summary['policy_kl']))
    self.assertLess(apart[1], 0.5 * apart[0])

  def test_penalties_follow_the_divergence(self):
    """Doubled where it is large for its run, halved where it is small."""
    kl = jnp.array([1.0, 1.0, 1.0, 1.0, 5.0, -3.0])
    got = module._adapted(jnp.full(6, 0.4), kl)
    np.testing.assert_allclose(got, [0.4, 0.4, 0.4, 0.4, 0.8, 0.2])

  def test_a_cost_of_samples_is_refused(self):
    for cost in (costs.sample_taylor, costs.sample_gradient):
      with self.assertRaisesRegex(ValueError, 'needs mirror_descent'):
        badmm(cost)
    with self.assertRaisesRegex(ValueError, 'penalty must be positive, got 0'):
      badmm(penalty=0)
    with self.assertRaisesRegex(
      ValueError, 'inner_iterations must be positive'
    ):
      badmm(inner_iterations=0)
    with self.assertRaisesRegex(ValueError, r'0 \.\.\. 1: 3.0 and 0.0'):
      badmm(blend=3.0)


if __name__ == '__main__':
  absltest.main()
