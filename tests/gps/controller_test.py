"""The guide at work."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from l2o_jax.gps.controller import controller, exploration, momentum_guide
from l2o_jax.gps.lqr import Controller
from l2o_jax.optimizees.quadratic import quadratic
from l2o_jax.policy_features import state_features
from l2o_jax.unroll import unroll
from tests.gps.problems import ALL, BY_NAME


class ControllerTest(parameterized.TestCase):
  @parameterized.parameters(False, True)
  def test_momentum_is_a_linear_guide(self, joint):
    """On (x, g, u) it is optax's own gradient descent with momentum."""
    optimizee = quadratic(4)
    params, task = optimizee.init(jax.random.key(0))
    size = 4 if joint else 1
    guide = momentum_guide((1, 20), (0.02, 0.8), 4, size)
    opt = controller(guide, state_features(1, 0), ALL)
    loss = lambda x, key: optimizee.loss(x, task, key)
    keys = jax.random.split(jax.random.key(1), 21)
    curve = lambda opt: (
      unroll(loss, opt, params, opt.init(params), keys)[1].losses
    )
    np.testing.assert_allclose(
      jax.jit(lambda: curve(opt))(),
      jax.jit(lambda: curve(optax.sgd(0.02, momentum=0.8)))(),
      rtol=1e-5,
    )

  def test_groups_move_by_their_own_rule_and_coordinates_alike(self):
    gain = jnp.array([[[[0.0, -1.0, 0.0, 0.0]]], [[[0.0, -2.0, 0.0, 0.0]]]])
    opt = controller(
      Controller(gain, jnp.zeros((2, 1, 1)), None),
      state_features(1, 0),
      BY_NAME,
    )
    params = {'w': jnp.array([1.0, 2.0]), 'b': jnp.array([3.0])}
    update = jax.jit(lambda state: opt.update(params, state, params, value=1.0))
    updates, state = update(opt.init(params))
    np.testing.assert_array_equal(updates['w'], [-1, -2])
    np.testing.assert_array_equal(updates['b'], [-6])
    updates, _ = update(state)  # past T = 1
    np.testing.assert_array_equal(updates['w'], [-1, -2])

  def test_exploration_has_the_variance_within_its_limits(self):
    params = {'w': jnp.full(20_000, 2.0), 'b': jnp.full(20_000, -2.0)}
    opt = exploration(
      jnp.array([[[0.25]], [[1e9]]]), BY_NAME, jax.random.key(0), (0.1, 0.6)
    )
    moved, state = opt.update(params, opt.init(params))
    np.testing.assert_allclose(
      [moved['w'].mean(), moved['b'].mean()], [2, -2], atol=0.05
    )
    np.testing.assert_allclose(
      [moved['w'].std(), moved['b'].std()], [0.5, 1.2], rtol=0.02
    )
    again, _ = opt.update(params, state)
    self.assertGreater(float(jnp.abs(again['w'] - moved['w']).max()), 0)


if __name__ == '__main__':
  absltest.main()
