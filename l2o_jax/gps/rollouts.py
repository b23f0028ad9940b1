"""Rollouts of guide and policy, and the samples that they leave."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from l2o_jax.base import Features, Optimizee
from l2o_jax.gps.controller import coordinate_state
from l2o_jax.groups import Groups, merge, sample, split
from l2o_jax.unroll import unroll


class Rollout(NamedTuple):
  """One run, J coordinates of each of M groups.

  Attributes:
    x: [T + 1, M, J].
    seen: gradients that the optimizer saw, likewise.
    exact: gradients of the objective, likewise.
    curvature: joint: the Hessian [T + 1, M, J, J]; else v (H v) for a random
      v = ±1, whose mean is its diagonal, [T + 1, M, J].
    values: losses that the optimizer saw, [T + 1].
    objective: exact, [T + 1].
    actions: x_{t+1} - x_t, [T, M, J].
  """

  x: chex.Array
  seen: chex.Array
  exact: chex.Array
  curvature: chex.Array
  values: chex.Array
  objective: chex.Array
  actions: chex.Array


def mixture(
  first: optax.GradientTransformation,
  second: optax.GradientTransformation,
  use_second: chex.Array,
) -> optax.GradientTransformationExtraArgs:
  """Both optimizers watch the run; one of them moves."""
  first, second = map(optax.with_extra_args_support, (first, second))

  def init(params):
    return first.init(params), second.init(params)

  def update(updates, state, params=None, **extra_args):
    one, state_one = first.update(updates, state[0], params, **extra_args)
    two, state_two = second.update(updates, state[1], params, **extra_args)
    return (
      jax.tree.map(lambda a, b: jnp.where(use_second, b, a), one, two),
      (state_one, state_two),
    )

  return optax.GradientTransformationExtraArgs(init, update)


def objective_of(optimizee: Optimizee, task):
  """params -> exact f, whether or not the family has minibatches."""
  if optimizee.objective is not None:
    return lambda params: optimizee.objective(params, task)
  return lambda params: optimizee.loss(params, task, jax.random.key(0))


def rollout(
  optimizee: Optimizee,
  make_opt,
  function_key: chex.PRNGKey,
  key: chex.PRNGKey,
  num_steps: int,
  groups: Groups,
  *,
  num_coordinates: int,
  joint: bool,
  with_hessian: bool,
) -> Rollout:
  """One run of T steps.

  Args:
    optimizee: the family.
    make_opt: (exact gradient as a function of params) -> optimizer.
    function_key: draws f and x_0.
    key: draws minibatches, coordinates and probes.
    num_steps: T.
    groups: of the parameters.
    num_coordinates: J; with `joint` the size of the one group.
    joint: see `Rollout.curvature`.
    with_hessian: otherwise curvature is zero.
  """
  params, task = optimizee.init(function_key)
  f = objective_of(optimizee, task)
  key_loss, key_sample, key_probe = jax.random.split(key, 3)
  indices = sample(groups, params, key_sample, num_coordinates)
  sizes = [x.size for x in split(groups, params)]
  indices = jnp.stack(indices) + np.cumsum([0] + sizes[:-1])[:, None]
  pick = lambda tree: jnp.concatenate(split(groups, tree))[indices]

  def hessian(params):
    if not with_hessian:
      size = (num_coordinates,) * joint
      return jnp.zeros((len(groups.names), num_coordinates, *size))
    if joint:
      vector = split(groups, params)[0]
      return jax.hessian(lambda x: f(merge(groups, [x], params)))(vector)[None]
    probe = optax.tree.random_like(key_probe, params, jax.random.rademacher)
    _, product = jax.jvp(jax.grad(f), (params,), (probe,))
    return pick(jax.tree.map(jnp.multiply, probe, product))

  def observe(params, value, gradients):
    if optimizee.objective is None:
      exact, exact_gradients = value, gradients
    else:
      exact, exact_gradients = jax.value_and_grad(f)(params)
    return (
      pick(params),
      pick(gradients),
      pick(exact_gradients),
      hessian(params),
      value,
      exact,
    )

  opt = make_opt(jax.grad(f) if optimizee.objective is not None else None)
  # One step more, whose action is dropped: x_T is seen as all others are, by
  # the same code.
  keys = jax.random.split(key_loss, num_steps + 2)
  loss = lambda params, key: optimizee.loss(params, task, key)
  _, trajectory = unroll(
    loss,
    opt,
    params,
    opt.init(params),
    keys,
    record=lambda step: (
      observe(step.params, step.loss, step.gradients),
      pick(step.updates),
    ),
  )
  seen, actions = trajectory.record
  return Rollout(*seen, actions[:-1])


class Samples(NamedTuple):
  """Rollouts from the units' point of view; S of them for each guide.

  P guides a group (one a function, or one in all), M groups.  A unit is a
  coordinate (A = 1, S = rollouts · J), or with `joint` all coordinates of the
  group at once, feature-major (A = J, S = rollouts).

  Attributes:
    states: [P, M, S, T + 1, D A], D counted for a coordinate.
    observations: what the policy sees, [P, M, S, T, F A].
    actions: [P, M, S, T, A].
    seen: gradients that the optimizer saw [P, M, S, T + 1, A].
    exact: gradients [P, M, S, T + 1, A].
    values: exact objective, [P, M, S, T + 1].
    curvature: mean over the samples, [P, M, T + 1, A, A].
  """

  states: chex.Array
  observations: chex.Array
  actions: chex.Array
  seen: chex.Array
  exact: chex.Array
  values: chex.Array
  curvature: chex.Array


def retraced(opt: optax.GradientTransformation, samples: Samples) -> chex.Array:
  """What an optimizer of single coordinates would have done along samples.

  It sees their x and gradients; its own actions do not feed back.

  Args:
    opt: such as `optax.rmsprop(...)`.
    samples: of any optimizer's rollouts.

  Returns:
    Actions [P, M, S, T, A].
  """
  size = samples.seen.shape[-1]
  x, g = (
    jnp.moveaxis(z[..., :-1, :size], -2, 0)
    for z in (samples.states, samples.seen)
  )

  def step(state, inputs):
    x, g = inputs
    action, state = opt.update(g, state, x)
    return state, action

  _, actions = jax.lax.scan(step, opt.init(x[0]), (x, g))
  return jnp.moveaxis(actions, 0, -2)


def _history(features: Features, rollout: Rollout):
  """Runs features along a recorded run: [T + 1, M, J, F]."""

  def step(memory, inputs):
    return features.update(memory, *inputs)

  _, seen = jax.lax.scan(
    step, features.init(rollout.x[0]), (rollout.x, rollout.seen, rollout.values)
  )
  return seen


def to_samples(
  rollouts: Rollout, state_features: Features, features: Features, joint: bool
) -> Samples:
  """Rollouts [P, N] -> Samples."""

  def of_one(rollout):
    u = jnp.concatenate(
      [jnp.zeros_like(rollout.x[:1]), rollout.x[1:] - rollout.x[:-1]]
    )
    return (
      coordinate_state(
        rollout.x, rollout.exact, u, _history(state_features, rollout)
      ),
      _history(features, rollout)[:-1],
    )

  states, observations = jax.vmap(jax.vmap(of_one))(rollouts)

  def units(z):  # [P, N, T, M, J, K]
    P, N, T, M, J, K = z.shape
    if joint:
      return z.transpose(0, 3, 1, 2, 5, 4).reshape(P, M, N, T, K * J)
    return z.transpose(0, 3, 1, 4, 2, 5).reshape(P, M, N * J, T, K)

  P, N, length, M, J, _ = states.shape
  values = jnp.broadcast_to(
    rollouts.objective[:, None, :, None], (P, M, N, 1 if joint else J, length)
  )
  curvature = jnp.mean(rollouts.curvature, 1)  # over rollouts
  if joint:
    curvature = curvature.transpose(0, 2, 1, 3, 4)
  else:
    curvature = jnp.mean(curvature, -1).transpose(0, 2, 1)[..., None, None]
  return Samples(
    units(states),
    units(observations),
    units(rollouts.actions[..., None]),
    units(rollouts.seen[..., None]),
    units(rollouts.exact[..., None]),
    values.reshape(P, M, -1, length),
    curvature,
  )
