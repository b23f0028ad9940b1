"""The guide at work: a linear-Gaussian controller as an optax optimizer."""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from l2o_jax.base import Features
from l2o_jax.gps.lqr import Controller
from l2o_jax.groups import Groups, merge, split


def coordinate_state(x, g, u, phi):
  """s = (x, g, u, Φ) of coordinates: [...], [...], [...], [..., F] -> [..., D].

  Li & Malik's state is (x, Φ).  The exact gradient g is what makes the cost of
  a coordinate depend on its own state, and with the last step u = x_t - x_{t-1}
  gradient descent with momentum is a linear function of the state.  Both exist
  in meta-training only: the policy sees neither.
  """
  return jnp.concatenate([jnp.stack([x, g, u], -1), phi], -1)


def unit_state(s, joint):
  """[n, D] -> what the guide acts on: the same, or [1, D n], feature-major."""
  return jnp.ravel(s.T)[None] if joint else s


class ControllerState(NamedTuple):
  """Of the guide.

  Attributes:
    step: t.
    last: x_{t-1} of each group [n_m].
    memory: of the state features, for each group.
  """

  step: chex.Array
  last: list[chex.Array]
  memory: list[chex.ArrayTree]


def controller(
  guide: Controller,
  features: Features,
  groups: Groups,
  *,
  joint: bool = False,
  gradient: Callable | None = None,
) -> optax.GradientTransformationExtraArgs:
  """psi's mean action as an optimizer: Δx = K_t s + k_t.

  Every coordinate of a group is moved by the same K_t, k_t (Li & Malik 2017,
  section 3.4); with `joint`, all coordinates of the group by one K_t [n, D n]
  (Li & Malik 2016).  After T steps it goes on with the last ones.

  Args:
    guide: gain [M, T, A, D], offset [M, T, A]; the noise is not used.
    features: Φ, such as `state_features()`.
    groups: of the parameters.
    joint: A = n instead of 1.
    gradient: params -> exact gradient; None: the one given to `update`.

  Returns:
    Optax transformation; `update` needs `params`, and `value` if the features
    do.
  """

  def init(params):
    vectors = split(groups, params)
    return ControllerState(
      jnp.zeros((), jnp.int32), vectors, [features.init(x) for x in vectors]
    )

  def update(updates, state, params=None, *, value=None, **extra_args):
    del extra_args
    exact = updates if gradient is None else gradient(params)
    t = jnp.minimum(state.step, guide.offset.shape[1] - 1)
    xs, moves, memories = split(groups, params), [], []
    for m, (x, seen, g) in enumerate(
      zip(xs, split(groups, updates), split(groups, exact), strict=True)
    ):
      memory, phi = features.update(state.memory[m], x, seen, value)
      u = x - state.last[m]
      s = unit_state(coordinate_state(x, g, u, phi), joint)
      a = s @ guide.gain[m, t].T + guide.offset[m, t]
      moves.append(jnp.ravel(a))
      memories.append(memory)
    return (
      merge(groups, moves, updates),
      ControllerState(state.step + 1, xs, memories),
    )

  return optax.GradientTransformationExtraArgs(init, update)


class ExplorationState(NamedTuple):
  step: chex.Array


def exploration(
  variance: chex.Array,
  groups: Groups,
  key: chex.PRNGKey,
  *,
  limits: tuple,
  common: float = 0.0,
  joint: bool = False,
) -> optax.GradientTransformation:
  """Adds noise to actions: N(0, diag G_t), within limits of the action itself.

      std = clip(√G_t, low · rms, high · rms),  rms over the group's actions

  Actions shrink by orders of magnitude along a run and from one guide to the
  next; G_t alone would soon drown or freeze them.

  Args:
    variance: diagonal of G, [M, T, A].
    groups: of the parameters.
    key: of the noise.
    limits: (low, high).
    common: share c of the noise, in [0, 1], that all coordinates have in common
      along the action: √c z_0 a / rms + √(1 - c) z.  It lets the curvature
      along the direction of movement show.
    joint: variances of each coordinate (A = n) or one for all (A = 1).

  Returns:
    Optax transformation, to be chained after the one that acts.
  """
  low, high = limits

  def init(params):
    del params
    return ExplorationState(jnp.zeros((), jnp.int32))

  def update(updates, state, params=None):
    del params
    t = jnp.minimum(state.step, variance.shape[1] - 1)
    actions = split(groups, updates)
    ends = [sum(a.size for a in actions[: m + 1]) for m in range(len(actions))]
    draws = jax.random.normal(
      jax.random.fold_in(key, state.step), (ends[-1] + len(actions),)
    )
    moves = []
    for m, (a, z) in enumerate(zip(actions, jnp.split(draws, ends))):
      rms = jnp.sqrt(jnp.mean(a**2)) + 1e-30
      spread = jnp.sqrt(variance[m, t])
      std = jnp.clip(spread if joint else spread[0], low * rms, high * rms)
      z = (
        jnp.sqrt(1 - common) * z
        + jnp.sqrt(common) * draws[ends[-1] + m] * a / rms
      )
      moves.append(a + std * z)
    return merge(groups, moves, updates), ExplorationState(state.step + 1)

  return optax.GradientTransformation(init, update)
