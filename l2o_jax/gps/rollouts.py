"""Rollouts of guide and policy, and the samples that they leave."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from l2o_jax.base import Theta
from l2o_jax.checks import pair, positive, require, several_keys
from l2o_jax.gps.controller import coordinate_state, exploration, mixture
from l2o_jax.groups import merge, sample, split
from l2o_jax.unroll import unroll


class Rollouts(NamedTuple):
  """Which runs an iteration makes, and what is looked at.

  Attributes:
    num_steps: T >= 2.
    functions: keys [P] of the functions to train on, each with its own guides
      (2016).  None: all rollouts share one guide per group, and each runs on a
      different function that `init` draws.  Every iteration runs the same
      functions from the same x_0.
    num_rollouts: N >= 2 of each function (or in all); 20 in 2016.
    num_coordinates: J of each group and rollout, redrawn every iteration.
    noise: (low, high), standard deviation of the noise relative to the actions
      of a group; see `exploration`.
    initial_noise: the same for rollouts of the first guide or of a teacher.
    common_noise: see `exploration`.
  """

  num_steps: int
  functions: chex.PRNGKey | None = None
  num_rollouts: int = 20
  num_coordinates: int = 64
  noise: tuple[float, float] = (0.02, 0.6)
  initial_noise: float = 0.3
  common_noise: float = 0.0


def check(knobs: Rollouts, who: str) -> None:
  """Raises a ValueError where there is nothing to fit."""
  T, N = knobs.num_steps, knobs.num_rollouts
  positive(who, num_steps=T, num_rollouts=N)
  enough = f'{who}: num_steps and num_rollouts must be at least 2'
  require(T >= 2 and N >= 2, f'{enough}, got {T} and {N}')
  positive(who, num_coordinates=knobs.num_coordinates)
  low, high = knobs.noise
  noise = f'{who}: Rollouts.noise must be 0 <= low <= high, got {knobs.noise}'
  require(0 <= low <= high < np.inf, noise)
  first = f'{who}: Rollouts.initial_noise must be >= 0 and finite, got '
  require(0 <= knobs.initial_noise < np.inf, f'{first}{knobs.initial_noise}')
  common = f'{who}: Rollouts.common_noise must be 0 ... 1, got '
  require(0 <= knobs.common_noise <= 1, f'{common}{knobs.common_noise}')
  if knobs.functions is not None:
    several_keys(f'{who}: Rollouts.functions', knobs.functions)
    one_axis = f'{who}: Rollouts.functions must be keys [P], P >= 1, got shape '
    shape = typed(knobs.functions).shape
    require(len(shape) == 1 and shape[0], f'{one_axis}{shape}')


def function_keys(knobs: Rollouts, key: chex.PRNGKey) -> chex.PRNGKey:
  """Keys of the function and x_0 of every rollout, [P, N]."""
  N = knobs.num_rollouts
  if knobs.functions is None:
    return jax.random.split(jax.random.fold_in(typed(key), 1), N)[None]
  return jnp.tile(typed(knobs.functions)[:, None], (1, N))


def typed(key: chex.PRNGKey) -> chex.PRNGKey:
  """A key of `jax.random.PRNGKey` as one of `jax.random.key`."""
  is_typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
  return key if is_typed else jax.random.wrap_key_data(key)


class Rollout(NamedTuple):
  """One run, J coordinates of each of M groups.

  Attributes:
    x: [T + 1, M, J].
    gradients: of minibatches, as the optimizer saw them, [T + 1, M, J].
    exact: gradients of the objective, [T + 1, M, J].
    curvature: joint: the Hessian H [T + 1, M, J, J]; else v (H v) for a random
      v of ±1, whose mean over v is the diagonal of H, [T + 1, M, J].
    values: losses that the optimizer saw, [T + 1].
    objective: exact, [T + 1].
    actions: x_{t+1} - x_t, [T, M, J].
  """

  x: chex.Array
  gradients: chex.Array
  exact: chex.Array
  curvature: chex.Array
  values: chex.Array
  objective: chex.Array
  actions: chex.Array


def _as_seen(x):
  """Finite, and of at least 32 bits, as features see it."""
  x = jnp.where(jnp.isfinite(x), x, 0)
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def rollout(knobs, policy, optimizee, make_opt, keys, with_hessian=False):
  """One run of T steps.

  Args:
    knobs: Rollouts.
    policy: Policy; its groups and coordinates are looked at.
    optimizee: the family.
    make_opt: (exact gradient as a function of params, None if the optimizer
      sees it anyway) -> optimizer.
    keys: one draws f and x_0; one minibatches, coordinates and probes.
    with_hessian: otherwise curvature is zero.

  Returns:
    Rollout.
  """
  groups, joint = policy.groups, policy.coordinates is not None
  J = policy.coordinates or knobs.num_coordinates
  params, task = pair(optimizee.init(keys[0]))
  minibatches = optimizee.objective is not None
  if minibatches:
    f = lambda params: optimizee.objective(params, task)
  else:
    f = lambda params: optimizee.loss(params, task, jax.random.key(0))
  key_loss, key_sample, key_probe = jax.random.split(keys[1], 3)
  sizes = [x.size for x in split(groups, params)]
  starts = np.cumsum([0] + sizes[:-1])  # of the groups in one long vector
  indices = jnp.stack(sample(groups, params, key_sample, J))  # [M, J]
  indices += starts[:, None]
  pick = lambda tree: jnp.concatenate(split(groups, tree))[indices]

  def hessian(params):
    if not with_hessian:
      return jnp.zeros(indices.shape + (J,) * joint)
    if joint:
      vector = split(groups, params)[0]
      return jax.hessian(lambda x: f(merge(groups, [x], params)))(vector)[None]
    probe = optax.tree.random_like(key_probe, params, jax.random.rademacher)
    _, product = jax.jvp(jax.grad(f), (params,), (probe,))
    return pick(jax.tree.map(jnp.multiply, probe, product))

  def record(step):
    objective, exact = step.loss, step.gradients
    if minibatches:
      objective, exact = jax.value_and_grad(f)(step.params)
    trees = step.params, step.gradients, exact, step.updates
    x, g, exact, moved = map(pick, trees)
    x, g = map(_as_seen, (x, g))
    curvature = hessian(step.params)
    return Rollout(x, g, exact, curvature, step.loss, objective, moved)

  opt = make_opt(jax.grad(f) if minibatches else None)
  # One extra step, whose action is dropped, so that x_T is recorded by the same
  # code.
  keys = jax.random.split(key_loss, knobs.num_steps + 2)
  loss = lambda params, key: optimizee.loss(params, task, key)
  state = opt.init(params)
  _, trajectory = unroll(loss, opt, params, state, keys, record=record)
  run = trajectory.record
  return run._replace(actions=run.actions[:-1])


class Cast(NamedTuple):
  """Who acts in the rollouts of an iteration.

  Attributes:
    theta: of the policy.
    first: (guide of the function, exact gradient as a function of params or
      None) -> optimizer that moves where the policy does not.
    guides: leaves [P, ...].
    use_policy: whose rollouts these are, [N].
    variance: of the noise before it is cut, [P, M, T, A].
    limits: (low, high), see `exploration`.
  """

  theta: Theta
  first: Callable
  guides: Any
  use_policy: chex.Array
  variance: chex.Array
  limits: Any


def collect(knobs, policy, optimizee, cast, functions, key, with_hessian=False):
  """All rollouts of an iteration: Rollout with leaves [P, N, ...].

  Args:
    knobs: Rollouts.
    policy: Policy.
    optimizee: the family.
    cast: Cast.
    functions: keys [P, N].
    key: draws all else.
    with_hessian: see `rollout`.
  """

  def run(guide, variance, function, key, use_policy):
    key, key_noise = jax.random.split(key)

    def make_opt(gradient):
      learned = policy.learned.transform(cast.theta)
      opt = mixture(cast.first(guide, gradient), learned, use_policy)
      common, groups = knobs.common_noise, policy.groups
      noise = exploration(variance, groups, key_noise, cast.limits, common)
      return optax.chain(opt, noise)

    keys = (function, key)
    return rollout(knobs, policy, optimizee, make_opt, keys, with_hessian)

  each = jax.vmap(run, (None, None, 0, 0, 0))
  all_runs = jax.vmap(each, (0, 0, 0, 0, None))
  keys = (functions, jax.random.split(key, functions.shape))
  return all_runs(cast.guides, cast.variance, *keys, cast.use_policy)


class Samples(NamedTuple):
  """Rollouts from the units' point of view.

  Attributes:
    states: [P, M, S, T + 1, D].
    observations: what the policy sees, [P, M, S, T, F A].
    actions: [P, M, S, T, A].
    exact: gradients of the objective, [P, M, S, T + 1, A].
    values: exact objective, [P, M, S, T + 1].
    curvature: mean over the samples, [P, M, T + 1, A, A].
  """

  states: chex.Array
  observations: chex.Array
  actions: chex.Array
  exact: chex.Array
  values: chex.Array
  curvature: chex.Array


def by_unit(z: chex.Array, joint: bool) -> chex.Array:
  """[P, N, T, M, J] or [..., K] -> [P, M, S, T, K A], feature-major."""
  z = z if z.ndim == 6 else z[..., None]
  P, N, T, M, J, K = z.shape
  if joint:  # A = J, S = N
    return z.transpose(0, 3, 1, 2, 5, 4).reshape(P, M, N, T, K * J)
  return z.transpose(0, 3, 1, 4, 2, 5).reshape(P, M, N * J, T, K)


def features_along(features, rollouts) -> chex.Array:
  """Features along recorded runs, [P, N, T + 1, M, J, F]."""

  def of_one(run):
    update = lambda memory, inputs: features.update(memory, *inputs)
    inputs = (run.x, run.gradients, run.values)
    return jax.lax.scan(update, features.init(run.x[0]), inputs)[1]

  return jax.vmap(jax.vmap(of_one))(rollouts)


def to_samples(rollouts, state_features, features, joint) -> Samples:
  """Rollout [P, N] -> Samples; Φ and the policy's features along the runs."""
  x = rollouts.x  # [P, N, T + 1, M, J]
  u = jnp.concatenate([jnp.zeros_like(x[:, :, :1]), jnp.diff(x, axis=2)], 2)
  phi = features_along(state_features, rollouts)
  states = coordinate_state(x, rollouts.exact, u, phi)
  observations = features_along(features, rollouts)[:, :, :-1]
  P, N, length, M, J = x.shape
  values = rollouts.objective[:, None, :, None]
  values = jnp.broadcast_to(values, (P, M, N, 1 if joint else J, length))
  # Over rollouts, and unless joint over coordinates: [P, M, T + 1, A, A].
  curvature = jnp.mean(rollouts.curvature, 1).swapaxes(1, 2)
  if not joint:
    curvature = jnp.mean(curvature, -1)[..., None, None]
  parts = (states, observations, rollouts.actions, rollouts.exact)
  parts = (by_unit(z, joint) for z in parts)
  return Samples(*parts, values.reshape(P, M, -1, length), curvature)
