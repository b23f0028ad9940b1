"""Rollouts by hand, and the samples that they leave."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest

from l2o_jax.cells.lstm import lstm_cell
from l2o_jax.cells.mlp import mlp_cell
from l2o_jax.features import gradient
from l2o_jax.gps import rollouts
from l2o_jax.gps.policy import make_policy
from l2o_jax.optimizees.quadratic import quadratic
from tests.gps.problems import BY_NAME, bowls


class RolloutsTest(absltest.TestCase):
  def test_curvature_of_rollouts(self):
    """2 W^T W, whole or its diagonal."""
    optimizee = quadratic(3)
    _, task = optimizee.init(jax.random.key(1))
    want = 2 * task['w'].T @ task['w']
    knobs = rollouts.Rollouts(2, num_coordinates=3)
    one = make_policy(gradient(), lstm_cell(()))
    joint = make_policy(gradient(), mlp_cell(coordinates=3), coordinates=3)
    run = lambda pi, key: (
      rollouts.rollout(
        knobs,
        pi,
        optimizee,
        lambda gradient: optax.sgd(0.01),
        (jax.random.key(1), key),
        with_hessian=True,
      ).curvature
    )
    whole, probes = jax.jit(
      lambda keys: (run(joint, keys[0]), jax.vmap(lambda k: run(one, k))(keys))
    )(jax.random.split(jax.random.key(0), 4000))
    np.testing.assert_allclose(whole[1, 0], want, rtol=1e-4)
    np.testing.assert_allclose(probes.mean(), jnp.trace(want) / 3, rtol=0.05)

  def test_rollout_of_two_groups_by_hand(self):
    """x_T is seen too, and groups do not mix."""
    optimizee = bowls()
    params, task = optimizee.init(jax.random.key(1))
    out = jax.jit(
      lambda: rollouts.rollout(
        rollouts.Rollouts(3, num_coordinates=3),
        make_policy(gradient(), lstm_cell(()), BY_NAME),
        optimizee,
        lambda gradient: optax.sgd(0.1),
        (jax.random.key(1), jax.random.key(2)),
      )
    )()
    for m, name in enumerate(BY_NAME.names):
      chosen = np.arange(3) % params[name].size  # all, some of them twice
      x = np.array(out.x[:, m])
      np.testing.assert_allclose(x[0], params[name][chosen], atol=1e-6)
      self.assertEqual(x.shape, (4, 3))
      np.testing.assert_allclose(out.actions[:, m], x[1:] - x[:-1], atol=1e-6)
      np.testing.assert_allclose(
        out.actions[:, m], -0.1 * out.gradients[:3, m], rtol=1e-5
      )
    step = lambda p: jax.tree.map(
      lambda x, g: x - 0.1 * g,
      p,
      jax.grad(optimizee.loss)(p, task, jax.random.key(0)),
    )
    last = step(step(step(params)))
    np.testing.assert_allclose(
      out.x[3, 1], last['b'][np.arange(3) % 2], atol=1e-6
    )
    np.testing.assert_allclose(
      out.values[3], optimizee.loss(last, task, jax.random.key(0)), rtol=1e-5
    )

  def test_function_keys(self):
    """Given ones N times each, or N of its own."""
    key = jax.random.key(3)
    given = jax.random.split(key, 4)
    found = rollouts.function_keys(rollouts.Rollouts(5, given, 2), key)
    self.assertEqual(found.shape, (4, 2))
    np.testing.assert_array_equal(
      *(jax.random.key_data(k) for k in (found[:, 1], given))
    )
    own = rollouts.function_keys(rollouts.Rollouts(5, num_rollouts=6), key)
    self.assertEqual(own.shape, (1, 6))
    self.assertLen(np.unique(jax.random.key_data(own)[0], axis=0), 6)

  def test_units(self):
    """[P, N, T, M, J, K] in the order (rollout, coordinate), or joint."""
    z = jnp.arange(2 * 3 * 4 * 1 * 5 * 2.0).reshape(2, 3, 4, 1, 5, 2)
    alone = rollouts.by_unit(z, False)
    self.assertEqual(alone.shape, (2, 1, 15, 4, 2))
    np.testing.assert_array_equal(alone[1, 0, 2 * 5 + 3, 1], z[1, 2, 1, 0, 3])
    joint = rollouts.by_unit(z, True)
    self.assertEqual(joint.shape, (2, 1, 3, 4, 10))
    np.testing.assert_array_equal(joint[1, 0, 2, 1], z[1, 2, 1, 0].T.ravel())


if __name__ == '__main__':
  absltest.main()
