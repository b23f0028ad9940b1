"""Meta-training by imitation of a known optimizer, as a MetaTrainer."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from l2o_jax.base import Info, MetaTrainer, Theta
from l2o_jax.checks import finite as in_bounds
from l2o_jax.checks import ready, require
from l2o_jax.coordinatewise import LeafwiseState, WholeState
from l2o_jax.gps import policy as policies
from l2o_jax.gps import rollouts as runs
from l2o_jax.gps.iteration import choose
from l2o_jax.gps.policy import Policy, Regression


class ImitationState(NamedTuple):
  """What passes from one epoch to the next.

  Attributes:
    theta: weights of the policy.
    function_keys: key of each rollout's function and x_0, [P, N].
    epoch: number of finished epochs; 0 again after a skipped one, [].
    learned: number of all finished epochs, [].
  """

  theta: Theta
  function_keys: chex.PRNGKey
  epoch: chex.Array
  learned: chex.Array


def steps_along(opt, x: chex.Array, g: chex.Array) -> chex.Array:
  """What an optimizer of single coordinates would have done along samples.

  The optimizer sees the samples' x and gradients; its own actions do not feed
  back.

  Args:
    opt: for example `optax.rmsprop(...)`.
    x: iterates [..., T, A].
    g: gradients [..., T, A].

  Returns:
    Actions [..., T, A].
  """
  x, g = (jnp.moveaxis(z, -2, 0) for z in (x, g))  # [T, ..., A]

  def step(state, inputs):
    x, g = inputs
    action, state = opt.update(g, state, x)
    return state, action

  _, actions = jax.lax.scan(step, opt.init(x[0]), (x, g))
  return jnp.moveaxis(actions, 0, -2)


def _rescaled(run: runs.Rollout, scale: float, key) -> runs.Rollout:
  """Gradients and losses of each rollout times exp(U(-s, s))."""
  shape = run.values.shape[:2]  # [P, N]
  draws = jax.random.uniform(key, shape, minval=-scale, maxval=scale)
  factor = jnp.exp(draws)[..., None]  # [P, N, 1]
  times = lambda z, factor: (z * factor).astype(z.dtype)
  gradients = times(run.gradients, factor[..., None, None])
  return run._replace(gradients=gradients, values=times(run.values, factor))


def _lesson(policy, teacher, run):
  """(Lesson, actions [P, M, S, T, A]): the teacher's steps along the runs."""
  joint = policy.coordinates is not None
  o = runs.features_along(policy.features, run)  # [P, N, T + 1, M, J, F]
  parts = (o[:, :, :-1], run.x[:, :, :-1], run.gradients[:, :, :-1])
  parts = (runs.by_unit(z, joint) for z in (*parts, run.actions))
  o, x, g, actions = parts  # [P, M, S, T, F A], then [P, M, S, T, A]
  targets = steps_along(teacher, x, g)
  precision = 1 / (1e-30 + jnp.mean(targets**2, (2, 4)))  # [P, M, T]
  return policies.Lesson(o, targets, precision, jnp.ones(len(o))), actions


def imitation(
  policy: Policy,
  teacher: optax.GradientTransformation,
  rollouts: runs.Rollouts,
  *,
  regression: Regression = Regression(steps=600),
  scale: float = 0.0,
) -> MetaTrainer:
  """A learned optimizer learns the steps of a known one.

  The first epoch rolls the teacher out and sets the units of theta by what was
  seen; theta learns the teacher's steps along these runs (behavioural
  cloning).  Every later epoch rolls the policy out, and theta learns what the
  teacher would have done along its runs (DAgger, Ross et al. 2011).
  Exploration is added to all rollouts.  Imitation is useful by itself, or as
  the start of guided policy search:
  `guided_policy_search(...).init(key)._replace(theta=state.theta)`.

  An epoch with a rollout that is not finite is skipped, and the next one rolls
  the teacher out again.

  Args:
    policy: what is trained (`make_policy`).
    teacher: an optimizer of single coordinates, for example
      `optax.rmsprop(...)`.
    rollouts: which runs an epoch makes; the noise is always `initial_noise`.
    regression: how the policy learns, `steps` per epoch.  The precision of a
      target is 1 / E[a_t²], so that errors count relative to the steps at t.
    scale: s >= 0.  The gradients and losses of each rollout are multiplied by
      exp(U(-s, s)) before policy and teacher see them.  Most teachers are
      invariant to this, and the policy learns to be.

  Returns:
    MetaTrainer with state ImitationState.  Info.losses are exact
    [P, N, T + 1].  Info.summary has regression_error, in units of the action,
    and policy_cost, the sum over t of f along the policy's rollouts, nan where
    the teacher acts.

  Raises:
    ValueError: fewer than 2 steps or rollouts, no coordinates, a number that is
      out of its bounds, or coordinates of the teacher that depend on others.
    TypeError: the policy is not of `make_policy`, or the teacher no optax
      transformation.
  """
  policies.check_policy(policy, 'imitation')
  runs.check(rollouts, 'imitation')
  policies.check_regression(regression, 'imitation')
  in_bounds('imitation', 0, scale=scale)
  ready('imitation', teacher=teacher)
  kinds = LeafwiseState | WholeState
  of_more = lambda state: isinstance(state, kinds)
  state = jax.eval_shape(teacher.init, jnp.zeros(2))
  alone = not any(map(of_more, jax.tree.leaves(state, is_leaf=of_more)))
  more = 'its coordinates communicate, or their rule depends on the leaf'
  require(alone, f'imitation: no teacher of single coordinates: {more}')
  M = len(policy.groups.names)

  def init(key):
    theta = policy.learned.init(jax.random.fold_in(key, 0))
    keys = runs.function_keys(rollouts, key)
    zero = jnp.zeros((), jnp.int32)
    return ImitationState(theta, keys, zero, zero)

  def roll_out(state, optimizee, key):
    P, N = state.function_keys.shape
    use_policy = jnp.full(N, state.epoch > 0)
    # Any variance does: the limits alone fix the size of the noise.
    variance = jnp.ones((P, M, rollouts.num_steps, 1))
    limits = (rollouts.initial_noise,) * 2
    first = lambda guide, gradient: teacher
    cast = runs.Cast(state.theta, first, (), use_policy, variance, limits)
    keys = state.function_keys
    return runs.collect(rollouts, policy, optimizee, cast, keys, key)

  def step(state, optimizee, key):
    key = runs.typed(key)
    key_rollouts, key_policy, key_scale = jax.random.split(key, 3)
    exact = roll_out(state, optimizee, key_rollouts)
    run = _rescaled(exact, scale, key_scale) if scale else exact
    lesson, actions = _lesson(policy, teacher, run)
    seen = lesson.observations
    units = policies.calibrated(policy, state.theta, seen, actions)
    theta = choose(state.learned == 0, units, state.theta)
    knobs = policies.of_iteration(regression, state.learned)
    theta, error = policies.learn(policy, theta, lesson, knobs, key_policy)

    cost = jnp.mean(jnp.sum(exact.objective, -1))
    finite = jnp.isfinite(cost) & jnp.isfinite(error)
    policy_cost = jnp.where(state.epoch > 0, cost, jnp.nan)
    summary = {'regression_error': error, 'policy_cost': policy_cost}
    info = Info(exact.objective, cost[None], ~finite[None], summary)
    theta = choose(finite, theta, state.theta)
    epoch = jnp.where(finite, state.epoch + 1, 0)
    learned = state.learned + finite
    return ImitationState(theta, state.function_keys, epoch, learned), info

  return MetaTrainer(init, step)
