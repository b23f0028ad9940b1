"""The policy along recorded runs, and its regression."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from l2o_jax.base import Cell
from l2o_jax.cells.lstm import lstm_cell
from l2o_jax.cells.mlp import mlp_cell
from l2o_jax.features import adam_ratios, gradient
from l2o_jax.gps import policy, rollouts
from l2o_jax.optimizees.quadratic import quadratic
from l2o_jax.policy_features import relative_changes, state_features
from tests.gps.problems import BY_NAME, bowls


def momentum_cell():
  """A cell of one coordinate, not whole."""

  def step(theta, x, state):
    state = theta['m'] * state - theta['r'] * jnp.sum(x)
    return state, state

  init = lambda key, num_features: {
    'm': jnp.float32(0.5),
    'r': jnp.float32(0.1),
  }
  return Cell(init, lambda: jnp.zeros(()), step)


class ActionsAlongTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ('whole', lstm_cell((4,)), {}),
    ('of_one_coordinate', momentum_cell(), {}),
    ('joint', mlp_cell((4,), coordinates=5), {'coordinates': 5}),
  )
  def test_are_what_the_optimizer_did(self, cell, more):
    pi = policy.make_policy(relative_changes(), cell, **more)
    knobs = rollouts.Rollouts(6, num_coordinates=3)
    theta = pi.learned.init(jax.random.key(0))

    @jax.jit
    def run(theta):
      out = rollouts.rollout(
        knobs,
        pi,
        quadratic(5),
        lambda gradient: pi.learned.transform(theta),
        jax.random.split(jax.random.key(1)),
      )
      samples = rollouts.to_samples(
        jax.tree.map(lambda x: x[None, None], out),
        state_features(2, 1),
        relative_changes(),
        bool(more),
      )
      return samples.actions, policy.policy_actions(
        pi, theta, samples.observations
      )

    actions, again = run(theta)
    np.testing.assert_allclose(again, actions, atol=1e-6)
    self.assertGreater(float(jnp.abs(again).max()), 1e-4)


class PolicyTest(absltest.TestCase):
  def test_a_theta_for_each_group_or_one_for_all(self):
    """And the samples of each go where they belong."""
    params, _ = bowls().init(jax.random.key(0))
    o = jax.random.normal(jax.random.key(1), (2, 2, 3, 4, 1))  # P M S T F
    for shared in (False, True):
      pi = policy.make_policy(gradient(), lstm_cell(()), BY_NAME, shared=shared)
      theta = pi.learned.init(jax.random.key(2))
      self.assertEqual(set(theta) == {'w', 'b'}, not shared)
      opt = pi.learned.transform(theta)
      mu = policy.policy_actions(pi, theta, o)
      for m, name in enumerate(BY_NAME.names):
        one = jax.tree.map(lambda x: x.ravel()[0] * 0, params)
        one[name] = o[1, m, 2, 3, 0]
        moved, _ = opt.update(one, opt.init(one))
        np.testing.assert_allclose(mu[1, m, 2, 3, 0], moved[name], rtol=1e-5)

  def test_calibrated_in_the_units_of_each_theta(self):
    rng = np.random.default_rng(0)
    scale = np.array([1.0, 10.0])[:, None, None, None]
    o = np.float32(scale * rng.normal(2, 1, (3, 2, 50, 4, 1)))
    a = np.float32(scale * rng.normal(0, 0.1, (3, 2, 50, 4, 1)))
    o[:, 0, :, :, 0] = 7  # never changes: in units of 1
    pi = policy.make_policy(gradient(), lstm_cell(()), BY_NAME)
    theta = pi.learned.init(jax.random.key(0))
    found = policy.calibrated(pi, theta, jnp.array(o), jnp.array(a))
    np.testing.assert_allclose(found['w']['mean'], [7])
    np.testing.assert_allclose(found['w']['std'], [1])
    np.testing.assert_allclose(found['w']['output'], 0.1, rtol=0.1)
    np.testing.assert_allclose(found['b']['mean'], [20], rtol=0.1)
    np.testing.assert_allclose(found['b']['std'], [10], rtol=0.1)
    np.testing.assert_allclose(found['b']['output'], 1, rtol=0.1)
    tiny = policy.calibrated(pi, theta, 1e-9 * jnp.array(o), jnp.array(a))
    np.testing.assert_allclose(tiny['b']['std'], [1e-8], rtol=0.1)
    np.testing.assert_allclose(tiny['w']['std'], [1])
    still = policy.calibrated(pi, theta, jnp.array(o), 0 * jnp.array(a))
    np.testing.assert_array_equal(still['w']['output'], 1)  # not 0: it divides

  def test_regression_finds_a_linear_policy(self):
    """Samples of weight 0 have no say."""
    rng = np.random.default_rng(0)
    o = rng.normal(size=(80, 3, 2)).astype(np.float32)
    targets = 2 * o[..., :1] - o[..., 1:] + 0.5
    targets[40:] = 1e3
    weights = np.where(np.arange(80) < 40, 1.0, 0.0)[:, None] * np.ones(3)
    pi = policy.make_policy(relative_changes(), lstm_cell((), scale=1.0))
    theta, error = jax.jit(
      lambda: policy.fit_cell(
        pi,
        pi.cell.init(jax.random.key(0), 2),
        jnp.array(o),
        jnp.array(targets),
        jnp.float32(weights),
        jax.random.key(1),
        policy.Regression(400, batch_size=20, learning_rate=0.1),
      )
    )()
    theta = theta['cell']['linear']
    np.testing.assert_allclose(theta['w'][:, 0], [2, -1], atol=1e-2)
    np.testing.assert_allclose(theta['b'], [0.5], atol=1e-2)
    self.assertLess(float(error), 1e-3)

  def test_bad_arguments(self):
    joint = mlp_cell(coordinates=3)
    with self.assertRaisesRegex(ValueError, 'no groups'):
      policy.make_policy(gradient(), joint, BY_NAME, coordinates=3)
    with self.assertRaisesRegex(ValueError, 'need each other'):
      policy.make_policy(gradient(), joint)
    with self.assertRaisesRegex(ValueError, 'need each other'):
      policy.make_policy(gradient(), lstm_cell(()), coordinates=3)
    with self.assertRaisesRegex(ValueError, 'need each other'):
      policy.make_policy(gradient(), lstm_cell((4,), averaged=1))
    with self.assertRaisesRegex(ValueError, r'need a whole leaf'):
      policy.make_policy(adam_ratios(size=10.0), lstm_cell((4,)))


if __name__ == '__main__':
  absltest.main()
