"""Imitation of known optimizers."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

import l2o_jax
from l2o_jax.base import Optimizee
from l2o_jax.cells.lstm import lstm_cell
from l2o_jax.features import gradient, log_and_sign
from l2o_jax.gps.policy import Regression, make_policy
from l2o_jax.gps.rollouts import Rollouts
from l2o_jax.imitation import imitation, steps_along
from l2o_jax.optimizees.quadratic import quadratic
from l2o_jax.policy_features import relative_changes
from l2o_jax.unroll import unroll
from tests.gps.problems import BY_NAME, QUICKLY, bowls

SMALL = Rollouts(6, num_rollouts=4, num_coordinates=3)
LINEAR = lstm_cell((), scale=1.0)


@functools.cache
def jitted(trainer):
  """Its step, traced once for all runs."""
  chex.clear_trace_counter()
  return jax.jit(
    chex.assert_max_traces(1)(trainer.step), compiler_options=QUICKLY
  )


def train(trainer, optimizee, epochs, state=None):
  state = trainer.init(jax.random.key(0)) if state is None else state
  step = jitted(trainer)
  infos = []
  for i in epochs:
    state, info = step(state, optimizee, jax.random.key(10 + i))
    infos.append(info)
  return state, infos


class ImitationTest(parameterized.TestCase):
  @parameterized.parameters(1, 5)
  def test_steps_along_are_what_the_optimizer_did(self, units):
    """Adam with weight decay, along a run of its own."""
    opt = optax.adamw(0.1, weight_decay=0.3)
    optimizee = quadratic(5)
    params, task = optimizee.init(jax.random.key(0))
    _, run = jax.jit(
      lambda: unroll(
        lambda x, key: optimizee.loss(x, task, key),
        opt,
        params,
        opt.init(params),
        jax.random.split(jax.random.key(1), 7),
        record=lambda step: (step.params, step.gradients, step.updates),
      )
    )()
    x, g, moved = run.record  # [T, 5]
    if units == 1:  # five units of one coordinate
      x, g, moved = (z.T[..., None] for z in (x, g, moved))
    got = steps_along(opt, x, g)
    np.testing.assert_allclose(got, moved, rtol=1e-5, atol=1e-7)

  def test_learns_the_steps_of_adam(self):
    """On unseen quadratics, against optax's own, and better by DAgger."""
    adam = optax.adam(0.05, b1=0.5)
    policy = make_policy(log_and_sign(), lstm_cell((8,), scale=1.0))
    rollouts = Rollouts(10, num_rollouts=8, num_coordinates=4)
    regression = Regression(800, batch_size=16, learning_rate=1e-2)
    trainer = imitation(policy, adam, rollouts, regression=regression)
    state, infos = train(trainer, quadratic(4), range(2))
    errors = [float(info.summary['regression_error']) for info in infos]
    self.assertLess(max(errors), 0.3)
    self.assertTrue(np.isnan(infos[0].summary['policy_cost']))
    np.testing.assert_allclose(
      infos[1].summary['policy_cost'], infos[1].meta_loss[0]
    )

    @jax.jit
    def curve(theta, key):
      optimizee = quadratic(4)
      params, task = optimizee.init(key)
      keys = jax.random.split(key, 11)
      run = lambda opt: (
        unroll(
          lambda x, k: optimizee.loss(x, task, k),
          opt,
          params,
          opt.init(params),
          keys,
          record=lambda step: step.updates,
        )[1].record
      )
      return run(policy.learned.transform(theta)), run(adam)

    keys = jax.random.split(jax.random.key(99), 16)
    mine, want = jax.vmap(curve, (None, 0))(state.theta, keys)
    error = jnp.sqrt(jnp.mean((mine - want) ** 2) / jnp.mean(want**2))
    self.assertLess(float(error), 0.3)

  def test_groups_learn_their_own(self):
    """And `shared` ones the same; one trace; the step is pure."""
    for shared in (False, True):
      policy = make_policy(gradient(), LINEAR, BY_NAME, shared=shared)
      regression = Regression(300, batch_size=16, learning_rate=1e-1)
      trainer = imitation(policy, optax.sgd(0.05), SMALL, regression=regression)
      optimizee = bowls(True)
      state, (info, _) = train(trainer, optimizee, range(2))
      again, _ = train(trainer, optimizee, range(2))
      chex.assert_trees_all_equal(state, again)
      self.assertEqual(info.losses.shape, (1, 4, 7))
      thetas = [state.theta] if shared else list(state.theta.values())
      for theta in thetas:
        x = jnp.array([[1.0, -2.0]])
        delta, _ = policy.cell.step(theta, x, policy.cell.initial_state(2))
        np.testing.assert_allclose(delta, -0.05 * x[0], atol=2e-3)

  def test_resumes(self):
    trainer = imitation(
      make_policy(gradient(), LINEAR),
      optax.sgd(0.05),
      SMALL,
      regression=Regression(20, batch_size=8),
    )
    optimizee = quadratic(3)
    whole, _ = train(trainer, optimizee, range(3))
    part, _ = train(trainer, optimizee, range(1))
    part = jax.tree.map(jnp.copy, part)
    rest, _ = train(trainer, optimizee, range(1, 3), part)
    chex.assert_trees_all_equal(whole, rest)

  def test_what_is_not_finite_teaches_nothing(self):
    """theta stays, and the teacher is rolled out again."""
    trainer = imitation(
      make_policy(gradient(), LINEAR),
      optax.sgd(0.05),
      SMALL,
      regression=Regression(20, batch_size=8),
    )
    init = lambda key: (jnp.ones(3), ())
    family = lambda scale: Optimizee(
      init, jax.tree_util.Partial(lambda s, x, t, k: jnp.sum(s * x**2), scale)
    )
    state, (good,) = train(trainer, family(jnp.float32(1)), range(1))
    step = jax.jit(trainer.step, compiler_options=QUICKLY)
    bad = family(jnp.float32(jnp.inf))
    after, info = step(state, bad, jax.random.key(1))
    self.assertFalse(good.skipped[0])
    self.assertTrue(info.skipped[0])
    chex.assert_trees_all_equal(state.theta, after.theta)
    self.assertEqual([int(state.epoch), int(after.epoch)], [1, 0])
    _, info = step(after, family(jnp.float32(1)), jax.random.key(0))
    np.testing.assert_allclose(  # the teacher, from the same x_0
      info.losses[..., 0], good.losses[..., 0]
    )
    self.assertTrue(np.isnan(info.summary['policy_cost']))

  def test_units_and_schedule_are_those_of_all_epochs(self):
    """Also after a skipped epoch."""
    rates = lambda epoch: jnp.where(epoch < 2, 1e-2, 0.0)
    trainer = imitation(
      make_policy(gradient(), LINEAR),
      optax.sgd(0.05),
      SMALL,
      regression=Regression(20, batch_size=8, learning_rate=rates),
    )
    init = lambda key: (jnp.ones(3), ())
    loss = lambda s, x, t, k: jnp.sum(s * x**2)
    family = lambda scale: Optimizee(init, jax.tree_util.Partial(loss, scale))
    good, bad = family(jnp.float32(1)), family(jnp.float32(jnp.inf))
    state, _ = train(trainer, good, range(2))
    state, (info,) = train(trainer, bad, range(2, 3), state)
    self.assertTrue(info.skipped[0])
    other = family(jnp.float32(4))  # its units are others
    after, (info,) = train(trainer, other, range(3, 4), state)
    self.assertFalse(info.skipped[0])
    chex.assert_trees_all_equal(state.theta, after.theta)
    self.assertEqual([int(after.epoch), int(after.learned)], [1, 3])

  def test_a_minibatch_that_is_not_finite(self):
    """It is recorded as the policy sees it, and spoils nothing."""
    trainer = imitation(
      make_policy(gradient(), LINEAR),
      optax.sgd(0.05),
      SMALL,
      regression=Regression(20, batch_size=8),
    )

    def loss(share, x, task, key):
      bad = jax.random.bernoulli(key, share)
      return jnp.sum(x**2) * jnp.where(bad, jnp.nan, 1)

    init = lambda key: (jnp.ones(3), ())
    objective = lambda x, task: jnp.sum(x**2)
    of = lambda share: jax.tree_util.Partial(loss, jnp.float32(share))
    family = lambda share: Optimizee(init, of(share), objective)

    state, _ = train(trainer, family(0), range(1))  # the teacher's runs
    state, (info,) = train(trainer, family(0.3), range(1, 2), state)
    self.assertFalse(info.skipped[0])
    for x in jax.tree.leaves((state.theta, info.summary)):
      self.assertTrue(np.isfinite(x).all())

  def test_scale_is_what_the_policy_sees_not_what_it_does(self):
    """An optimizer of the sign takes the same steps at every scale."""
    units = []
    for scale in (0.0, 2.0):
      trainer = imitation(
        make_policy(gradient(), lstm_cell(())),
        optax.sign_sgd(0.05),
        Rollouts(3, num_rollouts=6, num_coordinates=3),
        regression=Regression(1, batch_size=8),
        scale=scale,
      )
      step = jax.jit(trainer.step, compiler_options=QUICKLY)
      state = trainer.init(jax.random.key(0))
      state, info = step(state, bowls(), jax.random.key(1))
      units.append((info.losses, state.theta['output'], state.theta['std']))
    for of_actions in range(2):
      np.testing.assert_allclose(
        units[0][of_actions], units[1][of_actions], rtol=1e-5
      )
    self.assertGreater(float(units[1][2][0] / units[0][2][0]), 1.5)

  def test_bad_arguments(self):
    with self.assertRaisesRegex(ValueError, 'imitation: .* got 1 and 20'):
      imitation(make_policy(gradient(), LINEAR), optax.sgd(1.0), Rollouts(1))
    for wrong, message in (
      ({'noise': (0.6, 0.02)}, 'noise must be 0 <= low <= high'),
      ({'initial_noise': -0.3}, 'initial_noise must be >= 0'),
      ({'common_noise': 1.5}, 'common_noise must be 0 ... 1'),
    ):
      with self.assertRaisesRegex(ValueError, message):
        how = SMALL._replace(**wrong)
        imitation(make_policy(gradient(), LINEAR), optax.sgd(1.0), how)
    with self.assertRaisesRegex(ValueError, 'batch_size must be positive'):
      imitation(
        make_policy(gradient(), LINEAR),
        optax.sgd(1.0),
        SMALL,
        regression=Regression(batch_size=0),
      )
    whole = 'no teacher of single coordinates'
    for teacher, message in (
      (l2o_jax.pretrained_optimizer('robust'), whole),
      (l2o_jax.pretrained_optimizer('quadratics_averaging'), whole),
    ):
      with self.assertRaisesRegex(ValueError, message):
        imitation(make_policy(gradient(), LINEAR), teacher, SMALL)
    with self.assertRaisesRegex(TypeError, 'give its transform'):
      raw = l2o_jax.lstm_raw()
      imitation(make_policy(gradient(), LINEAR), raw, SMALL)
    with self.assertRaisesRegex(ValueError, 'scale must be >= 0 and finite'):
      policy = make_policy(gradient(), LINEAR)
      imitation(policy, optax.sgd(1.0), SMALL, scale=np.inf)

  def test_scale_keeps_the_type_of_gradients_and_losses(self):
    """The policy's memory has their type; in a wider one the scan fails."""
    half = lambda tree: jax.tree.map(lambda x: x.astype(jnp.bfloat16), tree)
    init = lambda key: (half(bowls().init(key)[0]), ())
    optimizee = Optimizee(init, bowls().loss)
    policy = make_policy(relative_changes(), LINEAR)
    how = {'regression': Regression(1, batch_size=8), 'scale': 2.0}
    trainer = imitation(policy, optax.rmsprop(0.05), SMALL, **how)
    state = trainer.init(jax.random.key(0))
    key = jax.random.key(1)
    new, info = jax.eval_shape(trainer.step, state, optimizee, key)
    self.assertEqual(info.losses.shape, (1, 4, 7))
    chex.assert_trees_all_equal_shapes_and_dtypes(new, state)


if __name__ == '__main__':
  absltest.main()
