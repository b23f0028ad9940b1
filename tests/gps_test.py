"""Guided policy search's parts beside the LQR, and the whole on small tasks."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized
from jax.tree_util import Partial

from l2o_jax.base import Optimizee
from l2o_jax.cells.lstm import lstm_cell
from l2o_jax.cells.mlp import mlp_cell
from l2o_jax.cells.standardised import standardised
from l2o_jax.features import gradient, relative_changes
from l2o_jax.gps import costs, dynamics, policy, rollouts
from l2o_jax.gps.controller import controller, exploration
from l2o_jax.gps.guided_policy_search import guided_policy_search
from l2o_jax.gps.lqr import Controller
from l2o_jax.gps.policy import policy_optimizer
from l2o_jax.gps.state_features import state_features
from l2o_jax.groups import Groups, merge, sample, split
from l2o_jax.optimizees.quadratic import quadratic
from l2o_jax.unroll import unroll

BY_NAME = Groups(lambda params: {name: name for name in params}, ('w', 'b'))


def x64(function, *args):
  with jax.enable_x64(True):
    out = jax.jit(function)(*jax.tree.map(jnp.asarray, args))
    return jax.tree.map(np.asarray, out)


class GroupsTest(absltest.TestCase):
  def test_split_merge_and_sample(self):
    tree = {'b': jnp.arange(3.0), 'w': jnp.arange(8.0).reshape(2, 4)}
    w, b = split(BY_NAME, tree)
    np.testing.assert_array_equal(w, np.arange(8))
    chex.assert_trees_all_equal(merge(BY_NAME, [w, b], tree), tree)
    iw, ib = sample(BY_NAME, tree, jax.random.key(0), 5)
    self.assertLen(set(np.asarray(iw).tolist()), 5)
    self.assertEqual(set(np.asarray(ib).tolist()), {0, 1, 2})

  def test_unknown_label(self):
    with self.assertRaisesRegex(ValueError, "'c'"):
      split(BY_NAME, {'w': jnp.ones(1), 'b': jnp.ones(1), 'c': jnp.ones(1)})


class DynamicsTest(parameterized.TestCase):
  def test_recovers_a_linear_system(self):
    rng = np.random.default_rng(0)
    T, D, A, S = 5, 4, 2, 50
    W = rng.normal(size=(T, D, D)) / 2
    B, c = rng.normal(size=(T, D, A)), rng.normal(size=(T, D))
    s = [rng.normal(size=(S, D))]
    a = rng.normal(size=(S, T, A))
    for t in range(T):
      s.append(s[-1] @ W[t].T + a[:, t] @ B[t].T + c[t])
    fit = x64(
      lambda s, a: dynamics.fit_dynamics(s, a, blend=0.0, ridge=0.0),
      np.stack(s, 1),
      a,
    )
    np.testing.assert_allclose(fit.state, W, atol=1e-8)
    np.testing.assert_allclose(fit.action, B, atol=1e-8)
    np.testing.assert_allclose(fit.offset, c, atol=1e-8)
    np.testing.assert_allclose(fit.noise, 0, atol=1e-12)
    np.testing.assert_allclose(fit.initial_mean, s[0].mean(0))

  @parameterized.parameters(1, 3)
  def test_curvature_of_a_quadratic(self, size):
    """Gradient g = H x: the secants and the structured row are exact."""
    rng = np.random.default_rng(1)
    T, S = 6, 40
    root = rng.normal(size=(size, size))
    H = root @ root.T + np.eye(size)
    a = rng.normal(size=(S, T, size))
    x = np.concatenate([rng.normal(size=(S, 1, size)), a], 1).cumsum(1)
    g = x @ H
    u = np.concatenate([np.zeros((S, 1, size)), a], 1)
    curvature = x64(
      lambda g, a: dynamics.secant_curvature(g, a, (0.01, 9.0)), g, a
    )
    self.assertEqual(curvature.shape, (T + 1, size, size))
    np.testing.assert_allclose(curvature, np.tile(H, (T + 1, 1, 1)), rtol=1e-4)
    states = np.concatenate([x, g, u], -1)
    fit = x64(
      lambda s, a, h: dynamics.fit_dynamics(
        s, a, step_ratios=(1.0, 1.0), curvature=h
      ),
      states,
      a,
      curvature,
    )
    after = (
      np.einsum('tij,stj->sti', fit.state, states[:, :-1])
      + np.einsum('tij,stj->sti', fit.action, a)
      + fit.offset
    )
    np.testing.assert_allclose(after, states[:, 1:], atol=2e-4)
    np.testing.assert_array_equal(fit.state[:, :size, size:], 0)

  def test_alone_needs_few_samples(self):
    """g' = g + H a, from fewer samples than the state has columns."""
    rng = np.random.default_rng(4)
    H, T, S = np.array([[2.0, 0.5], [0.5, 1.0]]), 5, 3
    a = rng.normal(size=(S, T, 2))
    x = np.concatenate([rng.normal(size=(S, 1, 2)), a], 1).cumsum(1)
    u = np.concatenate([np.zeros((S, 1, 2)), a], 1)
    fit = x64(
      lambda s, a, h: dynamics.fit_dynamics(
        s, a, step_ratios=(1.0, 1.0), curvature=h, alone=True
      ),
      np.concatenate([x, x @ H, u], -1),
      a,
      np.tile(H, (T + 1, 1, 1)),
    )
    want = np.zeros((2, 6))
    want[:, 2:4] = np.eye(2)
    for t in range(T):
      np.testing.assert_allclose(fit.state[t, 2:4], want, atol=1e-12)
      np.testing.assert_allclose(fit.action[t, 2:4], H, atol=1e-12)
    np.testing.assert_allclose(fit.offset[:, 2:4], 0, atol=1e-12)

  def test_curvature_is_cut(self):
    rng = np.random.default_rng(2)
    a = rng.normal(size=(30, 20, 1))
    h = np.where(np.arange(20) < 16, 2.0, -3.0)
    h[:4] = 100
    g = np.concatenate([np.zeros((30, 1, 1)), h[:, None] * a], 1).cumsum(1)
    got = x64(lambda g, a: dynamics.secant_curvature(g, a, (0.2, 5.0), 1), g, a)
    np.testing.assert_allclose(got[[0, 8, 18], 0, 0], [10, 2, 0.4], rtol=1e-4)

  def test_linear_policy_is_found(self):
    rng = np.random.default_rng(3)
    s, K = rng.normal(size=(60, 4, 3)), rng.normal(size=(4, 2, 3))
    k = rng.normal(size=(4, 2))
    a = np.einsum('tad,std->sta', K, s) + k
    fit = x64(
      lambda s, a, v: dynamics.fit_controller(s, a, v, blend=0.0, ridge=0.0),
      s,
      a,
      np.full((4, 2), 0.3),
    )
    np.testing.assert_allclose(fit.gain, K, atol=1e-8)
    np.testing.assert_allclose(
      fit.noise, np.tile(0.3 * np.eye(2), (4, 1, 1)), atol=1e-8
    )


class CostsTest(absltest.TestCase):
  def test_both_are_a_quadratic_function_up_to_a_constant(self):
    """f = 1/2 x^T H x - b^T x: the expansions are f and f - min f."""
    rng = np.random.default_rng(0)
    root = rng.normal(size=(3, 3))
    H, b = root @ root.T + np.eye(3), rng.normal(size=3)
    x = rng.normal(size=(7, 5, 3))
    f = np.einsum('sti,ij,stj->st', x, H, x) / 2 - x @ b
    g = x @ H - b
    Hs = np.tile(H, (5, 1, 1))
    states = np.concatenate([x, g, rng.normal(size=(7, 5, 2))], -1)
    lowest = -b @ np.linalg.solve(H, b) / 2
    for cost, want in (
      (x64(lambda *args: costs.taylor(*args, 8), x, g, Hs, f), f),
      (x64(lambda h: costs.gradient_share(h, 8), Hs), f - lowest),
    ):
      got = (
        np.einsum('sti,tij,stj->st', states, cost.quadratic, states) / 2
        + np.einsum('sti,ti->st', states, cost.linear)
        + cost.constant
      )
      np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-9)

  def test_positive(self):
    got = x64(lambda h: costs.positive(h, 0.1), np.diag([4.0, -2.0, 1.0]))
    np.testing.assert_allclose(got, np.diag([4.0, 0.4, 1.0]), atol=1e-12)


class ControllerTest(parameterized.TestCase):
  @parameterized.parameters(False, True)
  def test_momentum_is_a_linear_guide(self, joint):
    """On (x, g, u) it is optax's own gradient descent with momentum."""
    optimizee = quadratic(4)
    params, task = optimizee.init(jax.random.key(0))
    size = 4 if joint else 1
    gain = jnp.concatenate(
      [c * jnp.eye(size) for c in (0.0, -0.02, 0.8, 0.0)], 1
    )
    guide = Controller(
      jnp.tile(gain, (1, 20, 1, 1)),
      jnp.zeros((1, 20, size)),
      jnp.ones((1, 20, size, size)),
    )
    opt = controller(
      guide,
      state_features(1, 0),
      Groups(lambda params: 'all', ('all',)),
      joint=joint,
    )
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
      jnp.array([[[0.25]], [[1e9]]]),
      BY_NAME,
      jax.random.key(0),
      limits=(0.1, 0.6),
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


class PolicyTest(absltest.TestCase):
  def test_replay_is_what_the_optimizer_did(self):
    optimizee = quadratic(5)
    learned = policy_optimizer(relative_changes(), lstm_cell((4,)))
    theta = learned.init(jax.random.key(0))

    @jax.jit
    def run(theta):
      out = rollouts.rollout(
        optimizee,
        lambda gradient: learned.transform(theta),
        jax.random.key(1),
        jax.random.key(2),
        6,
        Groups(lambda params: 'all', ('all',)),
        num_coordinates=3,
        joint=False,
        with_hessian=False,
      )
      samples = rollouts.to_samples(
        jax.tree.map(lambda x: x[None, None], out),
        state_features(2, 1),
        relative_changes(),
        False,
      )
      return samples.actions[0, 0], policy.replay(
        standardised(lstm_cell((4,))), theta, samples.observations[0, 0]
      )

    actions, replayed = run(theta)
    np.testing.assert_allclose(replayed, actions, atol=1e-6)
    self.assertGreater(float(jnp.abs(replayed).max()), 1e-4)

  def test_retraced_is_what_the_optimizer_did(self):
    opt = optax.adamw(0.1, weight_decay=0.3)
    for joint in (False, True):

      @jax.jit
      def run(joint=joint):
        out = rollouts.rollout(
          quadratic(5),
          lambda gradient: opt,
          jax.random.key(1),
          jax.random.key(2),
          6,
          Groups(lambda params: 'all', ('all',)),
          num_coordinates=5,
          joint=joint,
          with_hessian=False,
        )
        samples = rollouts.to_samples(
          jax.tree.map(lambda x: x[None, None], out),
          state_features(2, 1),
          gradient(),
          joint,
        )
        return rollouts.retraced(opt, samples), samples.actions

      got, want = run()
      self.assertGreater(float(jnp.abs(want).min()), 1e-4)
      np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-7)

  def test_regression_finds_a_linear_policy(self):
    """Samples of weight 0 have no say."""
    rng = np.random.default_rng(0)
    o = rng.normal(size=(80, 3, 2)).astype(np.float32)
    targets = 2 * o[..., :1] - o[..., 1:] + 0.5
    targets[40:] = 1e3
    weights = np.where(np.arange(80) < 40, 1.0, 0.0)[:, None] * np.ones(3)
    cell = lstm_cell((), scale=1.0)
    theta, before, after = jax.jit(
      lambda: policy.regression(
        cell,
        cell.init(jax.random.key(0), 2),
        jnp.array(o),
        jnp.array(targets),
        jnp.float32(weights),
        jax.random.key(1),
        400,
        batch_size=20,
        learning_rate=0.1,
      )
    )()
    np.testing.assert_allclose(theta['linear']['w'][:, 0], [2, -1], atol=1e-2)
    np.testing.assert_allclose(theta['linear']['b'], [0.5], atol=1e-2)
    self.assertGreater(float(before), 0.1)
    self.assertLess(float(after), 1e-3)

  def test_curvature_of_rollouts(self):
    """2 W^T W, whole or its diagonal."""
    optimizee = quadratic(3)
    params, task = optimizee.init(jax.random.key(1))
    want = 2 * task['w'].T @ task['w']
    groups = Groups(lambda params: 'all', ('all',))
    run = lambda joint, key: (
      rollouts.rollout(
        optimizee,
        lambda gradient: optax.sgd(0.01),
        jax.random.key(1),
        key,
        2,
        groups,
        num_coordinates=3,
        joint=joint,
        with_hessian=True,
      ).curvature
    )
    whole, probes = jax.jit(
      lambda keys: (run(True, keys[0]), jax.vmap(lambda k: run(False, k))(keys))
    )(jax.random.split(jax.random.key(0), 4000))
    np.testing.assert_allclose(whole[1, 0], want, rtol=1e-4)
    np.testing.assert_allclose(probes.mean(), jnp.trace(want) / 3, rtol=0.05)

  def test_rollout_of_two_groups_by_hand(self):
    """x_T is seen too, and groups do not mix."""
    optimizee = bowls()
    params, task = optimizee.init(jax.random.key(1))
    groups = Groups(lambda params: {'w': 'w', 'b': 'b'}, ('w', 'b'))
    out = jax.jit(
      lambda: rollouts.rollout(
        optimizee,
        lambda gradient: optax.sgd(0.1),
        jax.random.key(1),
        jax.random.key(2),
        3,
        groups,
        num_coordinates=3,
        joint=False,
        with_hessian=False,
      )
    )()
    for m, name in enumerate(groups.names):
      chosen = np.arange(3) % params[name].size  # all, some of them twice
      x = np.array(out.x[:, m])
      np.testing.assert_allclose(x[0], params[name][chosen], atol=1e-6)
      self.assertEqual(x.shape, (4, 3))
      np.testing.assert_allclose(out.actions[:, m], x[1:] - x[:-1], atol=1e-6)
      np.testing.assert_allclose(
        out.actions[:, m], -0.1 * out.seen[:3, m], rtol=1e-5
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


def bowls(minibatch=False):
  """f = 1/2 Σ h_i (x_i - c)², two groups; noisy if `minibatch`."""
  curvature = {'w': jnp.array([0.5, 1.0, 2.0]), 'b': jnp.array([1.0, 4.0])}

  def init(key):
    return jax.tree.map(
      lambda h: 1 + jax.random.normal(jax.random.fold_in(key, h.size), h.shape),
      curvature,
    ), ()

  def objective(params, task):
    return 0.1 + sum(jnp.sum(curvature[k] * params[k] ** 2) / 2 for k in params)

  def loss(params, task, key):
    noise = 0.1 * jax.random.normal(key) * minibatch
    return objective(params, task) + noise * jnp.sum(params['w'])

  return Optimizee(
    Partial(init), Partial(loss), Partial(objective) if minibatch else None
  )


SMALL = dict(
  num_steps=8,
  initial=(0.05, 0.3),
  num_rollouts=6,
  num_coordinates=3,
  regression_steps=60,
  cloning_steps=120,
  batch_size=16,
  learning_rate=1e-2,
)


class GuidedPolicySearchTest(parameterized.TestCase):
  @parameterized.parameters(
    ('badmm', 'gradient_share', True, (0.05, 0.3), 1),
    ('mdgps', 'sample_taylor', False, optax.sgd(0.05, momentum=0.3), 2),
  )
  def test_improves_guide_and_policy(
    self, method, cost, minibatch, initial, cloning
  ):
    trainer = guided_policy_search(
      gradient(),
      lstm_cell((), scale=1.0),
      state_features(2, 1),
      groups=BY_NAME,
      method=method,
      cost=cost,
      policy_rollouts=0.5,
      inner_iterations=1,
      cloning_iterations=cloning,
      **{
        **SMALL,
        'initial': initial,
        'learning_rate': optax.constant_schedule(1e-2),
      },
    )
    state = trainer.init(jax.random.key(0))
    step = jax.jit(  # most of the test's time is compilation
      chex.assert_max_traces(1)(trainer.step),
      compiler_options={'xla_backend_optimization_level': 0},
    )
    chex.clear_trace_counter()
    costs_seen, optimizee = [], bowls(minibatch)
    for i in range(5):
      state, info = step(state, optimizee, jax.random.key(i))
      costs_seen.append(float(info.accepted_cost))
    self.assertLess(costs_seen[-1], 0.7 * costs_seen[0])
    chex.assert_tree_all_finite((state.theta, state.guide, state.dual))
    learned = policy_optimizer(gradient(), lstm_cell((), scale=1.0), BY_NAME)
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
        curve(learned.transform(theta)),
        curve(optax.sgd(0.05, momentum=0.3)),
      )
    )(state.theta)
    self.assertLess(float(mine), float(momentum))

  def test_no_lapack(self):
    """Two batched calls at a time block each other on two cores."""
    for options in (
      {'method': 'mdgps', 'cost': 'sample_taylor'},
      {'method': 'badmm', 'cost': 'taylor'},
    ):
      trainer = guided_policy_search(
        gradient(), lstm_cell(()), state_features(1, 0), **SMALL, **options
      )
      lowered = jax.jit(trainer.step).lower(
        trainer.init(jax.random.key(0)), bowls(), jax.random.key(1)
      )
      self.assertNotIn('lapack', lowered.as_text())

  def test_program_does_not_grow(self):
    """With steps, alternations, rollouts."""

    def size(**options):
      trainer = guided_policy_search(
        gradient(), lstm_cell(()), state_features(1, 0), **SMALL | options
      )
      text = (
        jax.jit(trainer.step)
        .lower(trainer.init(jax.random.key(0)), bowls(), jax.random.key(1))
        .as_text()
      )
      return text.count('\n')

    small = size(num_steps=3, inner_iterations=1)
    self.assertGreater(small, 1000)
    self.assertLess(
      size(num_steps=30, inner_iterations=4, num_rollouts=9), 1.02 * small
    )

  def test_cloning_scale_is_what_the_policy_sees_not_what_it_does(self):
    """An optimizer of the sign takes the same steps at every scale."""
    units = []
    for scale in (0.0, 2.0):
      trainer = guided_policy_search(
        gradient(),
        lstm_cell(()),
        state_features(1, 0),
        method='mdgps',
        **{
          **SMALL,
          'initial': optax.sign_sgd(0.05),
          'num_steps': 3,
          'cloning_steps': 1,
        },
        cloning_scale=scale,
      )
      state, info = jax.jit(
        trainer.step, compiler_options={'xla_backend_optimization_level': 0}
      )(trainer.init(jax.random.key(0)), bowls(), jax.random.key(1))
      units.append((info.losses, state.theta['output'], state.theta['std']))
    for of_actions in range(2):
      np.testing.assert_allclose(
        units[0][of_actions], units[1][of_actions], rtol=1e-5
      )
    self.assertGreater(float(units[1][2][0] / units[0][2][0]), 1.5)

  def test_joint_guides_one_per_function(self):
    """Every guide gets better, and penalties change once an iteration."""
    trainer = guided_policy_search(
      gradient(),
      mlp_cell((5,), outputs=3),
      state_features(1, 0),
      joint_size=3,
      num_functions=2,
      cost='taylor',
      inner_iterations=2,
      **{
        **SMALL,
        'initial': (0.01, 0.3),
        'num_steps': 4,
        'cloning_steps': 20,
        'regression_steps': 10,
      },
    )
    state = trainer.init(jax.random.key(0))
    self.assertEqual(state.guide.gain.shape, (2, 1, 4, 3, 12))
    step = jax.jit(
      trainer.step, compiler_options={'xla_backend_optimization_level': 0}
    )
    costs_seen = []
    for i in range(3):
      before = np.array(state.dual.penalties)
      state, info = step(state, quadratic(3), jax.random.key(i))
      costs_seen.append(float(info.accepted_cost))
      ratio = np.array(state.dual.penalties) / before
      self.assertLessEqual(set(ratio.ravel().tolist()), {0.5, 1.0, 2.0})
      self.assertEqual(float(info.rejected), 0.0)
    self.assertLess(costs_seen[2], costs_seen[1])
    self.assertLess(costs_seen[1], costs_seen[0])

  def test_bad_arguments(self):
    make = lambda **more: guided_policy_search(
      gradient(), lstm_cell(()), state_features(), **{**SMALL, **more}
    )
    for more, message in (
      ({'method': 'dagger'}, "got 'dagger'"),
      ({'cost': 'J'}, "got 'J'"),
      ({'cost': 'sample_taylor'}, "needs 'mdgps'"),
      ({'cost': 'sample_gradient'}, "needs 'mdgps'"),
      ({'initial': optax.adam(0.1)}, "needs 'mdgps'"),
      ({'joint_size': 3, 'groups': BY_NAME}, 'no groups'),
      ({'num_rollouts': 1}, 'got 8 and 1'),
    ):
      with self.assertRaisesRegex(ValueError, message):
        make(**more)


if __name__ == '__main__':
  absltest.main()
