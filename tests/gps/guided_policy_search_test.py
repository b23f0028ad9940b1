"""Guided policy search as a whole, on small tasks."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import absltest, parameterized

from l2o_jax.base import Optimizee
from l2o_jax.cells.lstm import lstm_cell
from l2o_jax.features import adam_ratios, gradient
from l2o_jax.gps import costs
from l2o_jax.gps.badmm import badmm
from l2o_jax.gps.guided_policy_search import guided_policy_search
from l2o_jax.gps.mirror_descent import mirror_descent
from l2o_jax.gps.policy import Regression, make_policy
from l2o_jax.gps.rollouts import Rollouts
from l2o_jax.imitation import imitation
from l2o_jax.policy_features import state_features
from l2o_jax.unroll import unroll
from tests.gps.problems import BY_NAME, QUICKLY, bowls

ROLLOUTS = Rollouts(8, num_rollouts=6, num_coordinates=3)
REGRESSION = Regression(60, 120, batch_size=16, learning_rate=1e-2)
GUIDE = (0.05, 0.3)
PHI = state_features(1, 0)


def linear_policy(groups=None, **more):
  return make_policy(gradient(), lstm_cell((), scale=1.0), groups, **more)


def trainer_of(improve, policy=None, guide=GUIDE, phi=PHI, **more):
  rollouts = more.pop('rollouts', ROLLOUTS)
  policy = policy or make_policy(gradient(), lstm_cell(()))
  more = {'regression': REGRESSION, **more}
  return guided_policy_search(
    policy, phi, guide, rollouts, improve=improve, **more
  )


def run(trainer, optimizee, epochs, state=None):
  state = trainer.init(jax.random.key(0)) if state is None else state
  chex.clear_trace_counter()
  step = jax.jit(
    chex.assert_max_traces(1)(trainer.step), compiler_options=QUICKLY
  )
  infos = []
  for i in range(epochs):
    state, info = step(state, optimizee, jax.random.key(i))
    infos.append(info)
  return state, infos


def lowered(trainer):
  return jax.jit(trainer.step).lower(
    trainer.init(jax.random.key(0)), bowls(), jax.random.key(1)
  )


@pytest.mark.slow
class GuidedPolicySearchTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ('badmm', True, None),
    ('mirror_descent', False, optax.sgd(0.05, momentum=0.3)),
  )
  def test_improves_guide_and_policy(self, minibatch, teacher):
    """From a guide, or from what imitation has taught."""
    policy, optimizee = linear_policy(BY_NAME), bowls(minibatch)
    phi = state_features(2, 1)
    regression = REGRESSION._replace(
      learning_rate=optax.constant_schedule(1e-2)
    )
    costs_seen, state = [], None
    if teacher is None:
      improve = badmm(inner_iterations=1, policy_rollouts=0.5)
      trainer = trainer_of(improve, policy, phi=phi, regression=regression)
    else:
      first = imitation(
        policy, teacher, ROLLOUTS, regression=regression._replace(steps=120)
      )
      taught, infos = run(first, optimizee, 2)
      costs_seen += [float(info.meta_loss[0]) for info in infos]
      trainer = trainer_of(
        mirror_descent(), policy, None, phi, regression=regression
      )
      state = trainer.init(jax.random.key(0))._replace(theta=taught.theta)
      chex.assert_trees_all_equal(
        *(jax.random.key_data(s.function_keys) for s in (taught, state))
      )
    state, infos = run(trainer, optimizee, 5, state)
    costs_seen += [float(info.summary['accepted_cost']) for info in infos]
    self.assertLess(costs_seen[-1], 0.7 * costs_seen[0])
    chex.assert_tree_all_finite((state.theta, state.guide, state.dual))
    params, _ = bowls().init(jax.random.key(9))

    def curve(opt):
      return unroll(
        lambda x, k: bowls().loss(x, (), k),
        opt,
        params,
        opt.init(params),
        jax.random.split(jax.random.key(0), 9),
      )[1].losses.sum()

    mine, momentum = jax.jit(
      lambda theta: (
        curve(policy.learned.transform(theta)),
        curve(optax.sgd(0.05, momentum=0.3)),
      )
    )(state.theta)
    self.assertLess(float(mine), float(momentum))

  def test_several_groups_share_a_theta(self):
    """Each still has its own guide."""
    policy = linear_policy(BY_NAME, shared=True)
    trainer = trainer_of(mirror_descent(costs.gradient_share), policy)
    state, (info,) = run(trainer, bowls(), 1)
    self.assertEqual(set(state.theta), {'mean', 'std', 'output', 'cell'})
    self.assertEqual(state.guide.offset.shape, (1, 2, 8, 1))
    self.assertEqual(info.losses.shape, (1, 6, 9))
    self.assertEqual(info.meta_loss.shape, (1,))
    chex.assert_tree_all_finite((state.theta, state.guide))
    # In the first iteration the policy learns the guide, momentum descent.
    delta, _ = policy.cell.step(
      state.theta, jnp.ones((1, 1)), policy.cell.initial_state(1)
    )
    np.testing.assert_allclose(delta, -0.05, atol=0.03)

  def test_what_is_not_finite_is_taken_back(self):
    """At first the start is repeated; later theta and guide go back."""
    init = lambda key: (1 + jax.random.uniform(key, (3,)), ())
    family = lambda scale: Optimizee(
      init, jax.tree_util.Partial(lambda s, x, t, k: jnp.sum(s * x**2), scale)
    )
    good, bad = family(jnp.float32(1)), family(jnp.float32(jnp.inf))
    trainer = trainer_of(mirror_descent())
    step = jax.jit(trainer.step, compiler_options=QUICKLY)
    start = trainer.init(jax.random.key(0))
    state, info = step(start, bad, jax.random.key(0))
    self.assertTrue(info.skipped[0])
    self.assertEqual(int(state.iteration), 0)
    chex.assert_trees_all_equal(state.theta, start.theta)
    state, info = step(state, good, jax.random.key(0))
    self.assertFalse(info.skipped[0])
    self.assertEqual(int(state.iteration), 1)
    one, _ = step(state, good, jax.random.key(1))
    back, info = step(one, bad, jax.random.key(2))
    self.assertTrue(info.skipped[0])
    self.assertEqual(float(info.summary['rejected']), 1)
    chex.assert_trees_all_equal(back.theta, one.accepted.theta)
    chex.assert_trees_all_equal(back.guide, one.accepted.guide)
    self.assertLess(float(back.kl_scale[0]), float(one.kl_scale[0]))

  def test_targets_that_are_not_finite_teach_nothing(self):
    """As when multipliers have overflown."""
    trainer = trainer_of(badmm())
    state, _ = run(trainer, bowls(), 1)
    large = lambda x: jnp.full_like(x, 3e38)
    dual = state.dual._replace(multipliers=large(state.dual.multipliers))
    state = state._replace(dual=dual)
    after, (info,) = run(trainer, bowls(), 1, state)
    self.assertTrue(info.skipped[0])
    chex.assert_trees_all_equal(after.theta, state.theta)
    chex.assert_trees_all_equal(after.guide, state.guide)

  def test_rejected_functions_do_not_set_the_units(self):
    keys = jax.random.split(jax.random.key(5), 3)
    first = jax.random.key_data(keys)[0]

    def init(key):
      same = jnp.all(jax.random.key_data(key) == first)
      x = 1 + jax.random.uniform(key, (3,))
      return x, jnp.where(same, 1.0, jnp.inf)

    loss = lambda x, scale, key: scale * jnp.sum((x - 0.2) ** 2)
    found = []
    for functions in keys[:1], keys:
      rollouts = ROLLOUTS._replace(functions=functions)
      trainer = trainer_of(badmm(), linear_policy(), rollouts=rollouts)
      state, (info,) = run(trainer, Optimizee(init, loss), 1)
      units = [state.theta[name] for name in ('mean', 'std', 'output')]
      found.append((units, info.summary['accepted_cost']))
    chex.assert_trees_all_close(*found, rtol=1e-5)

  def test_some_rollouts_are_the_guides(self):
    """Where the policy would make all: the guides' are what is judged."""
    trainer = trainer_of(badmm(inner_iterations=1, policy_rollouts=0.99))
    _, infos = run(trainer, bowls(), 2)
    for info in infos:
      self.assertFalse(info.skipped[0])
      self.assertTrue(np.isfinite(info.summary['accepted_cost']))

  def test_no_lapack(self):
    """Two batched calls at a time block each other on two cores."""
    for improve in (mirror_descent(costs.sample_taylor), badmm(costs.taylor)):
      self.assertNotIn('lapack', lowered(trainer_of(improve)).as_text())

  def test_program_does_not_grow(self):
    """With steps, alternations, rollouts."""

    def size(inner, *rollouts):
      rollouts = Rollouts(*rollouts, num_coordinates=3)
      trainer = trainer_of(badmm(inner_iterations=inner), rollouts=rollouts)
      return lowered(trainer).as_text().count('\n')

    small = size(1, 3, None, 6)
    self.assertGreater(small, 1000)
    self.assertLess(size(4, 30, None, 9), 1.02 * small)

  def test_bad_arguments(self):
    with self.assertRaisesRegex(ValueError, 'badmm needs a first guide'):
      trainer_of(badmm(), guide=None)
    for T, N in ((8, 1), (1, 20)):
      with self.assertRaisesRegex(ValueError, f'got {T} and {N}'):
        trainer_of(badmm(), rollouts=Rollouts(T, num_rollouts=N))
    for knobs, message in (
      ({'num_coordinates': 0}, 'num_coordinates must be positive, got 0'),
      ({'functions': jax.random.key(0)}, 'functions: keys must be several'),
      ({'functions': jax.random.PRNGKey(0)}, 'functions: keys must be several'),
    ):
      with self.assertRaisesRegex(ValueError, f'^guided_policy_.*{message}'):
        trainer_of(badmm(), rollouts=ROLLOUTS._replace(**knobs))
    with self.assertRaisesRegex(ValueError, 'batch_size must be positive'):
      trainer_of(badmm(), regression=Regression(batch_size=0))
    for wrong, message in (
      ({'policy': lstm_cell()}, r'give make_policy\(features, cell\)'),
      ({'improve': mirror_descent}, r'mirror_descent\(...\), called'),
    ):
      with self.assertRaisesRegex(TypeError, message):
        trainer_of(**{'improve': badmm(), **wrong})
    for wrong, message in (
      ({'kl_step': np.nan}, 'kl_step must be positive, got nan'),
      ({'tolerance': -5.0}, 'tolerance must be positive, got -5'),
      ({'guide': (np.nan, 0.3)}, 'guide: rate must be >= 0 and finite'),
      ({'regression': Regression(-5)}, 'steps must not be negative'),
      ({'regression': Regression(2.5)}, 'steps must be a whole number'),
      ({'rollouts': Rollouts(2.5)}, 'num_steps must be a whole number'),
      ({'phi': adam_ratios(size=10.0)}, 'state_features need a whole leaf'),
    ):
      with self.assertRaisesRegex(ValueError, message):
        trainer_of(badmm(), **wrong)

  def test_state_keeps_its_types_where_losses_are_wide(self):
    with jax.enable_x64(True):
      double = lambda tree: jax.tree.map(lambda x: x.astype(jnp.float64), tree)
      init = lambda key: (double(bowls().init(key)[0]), ())
      optimizee = Optimizee(init, bowls().loss)
      for improve in (badmm(), mirror_descent()):
        trainer = trainer_of(improve)
        state = trainer.init(jax.random.key(0))
        new, info = jax.eval_shape(
          trainer.step, state, optimizee, jax.random.key(1)
        )
        self.assertEqual(info.losses.dtype, jnp.float64)
        chex.assert_trees_all_equal_shapes_and_dtypes(new, state)


if __name__ == '__main__':
  absltest.main()
