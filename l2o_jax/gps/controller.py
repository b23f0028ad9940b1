"""The guide at work: a linear-Gaussian controller as an optax optimizer."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from l2o_jax.gps.lqr import Controller
from l2o_jax.groups import merge, split


def coordinate_state(x, g, u, phi):
  """s = (x, g, u, Φ) of coordinates: [...] x 3, [..., F] -> [..., F + 3].

  Li & Malik's state is (x, Φ).  The exact gradient g is what makes the cost of
  a coordinate depend on its own state, and with the last step u = x_t - x_{t-1}
  gradient descent with momentum is a linear function of the state.  Both exist
  in meta-training only: the policy sees neither.
  """
  return jnp.concatenate([jnp.stack([x, g, u], -1), phi], -1)


def momentum_guide(shape, initial, columns: int, A: int) -> Controller:
  """Gradient descent with momentum: Δx = -rate g + momentum u.

  Args:
    shape: leading axes of the result, (P, M, T).
    initial: (rate, momentum).
    columns: D / A, of s = (x, g, u, Φ) for a coordinate.
    A: actions of a unit.
  """
  rate, momentum = initial
  eye, zero = jnp.eye(A), jnp.zeros((A, A))
  rest = [zero] * (columns - 3)
  gain = jnp.concatenate([zero, -rate * eye, momentum * eye, *rest], 1)
  repeat = lambda x: jnp.tile(x, shape + (1,) * x.ndim)
  return Controller(repeat(gain), repeat(jnp.zeros(A)), repeat(eye))


class ControllerState(NamedTuple):
  """What a guide remembers.

  Attributes:
    step: t.
    last: x_{t-1} [n] of each of the M groups.
    memory: the memory of the state features, for each group.
  """

  step: chex.Array
  last: list[chex.Array]
  memory: list[chex.ArrayTree]


def controller(guide, features, groups, gradient=None):
  """psi's mean action as an optimizer: Δx = K_t s + k_t.

  The same K_t, k_t move every coordinate of a group (Li & Malik 2017, section
  3.4); with A > 1 one K_t [A, D] moves all coordinates of the only group (Li &
  Malik 2016).  After T steps the controller keeps its last K_t, k_t.

  Args:
    guide: Controller [M, T, ...]; its noise is not used.
    features: Φ, for example `state_features()`.
    groups: of the parameters.
    gradient: params -> exact gradient; None: the gradient given to `update`.

  Returns:
    Optax transformation; `update` needs `params`, and `value` if the features
    do.
  """
  T, A = guide.offset.shape[1:]

  def init(params):
    vectors = split(groups, params)
    memory = [features.init(x) for x in vectors]
    return ControllerState(jnp.zeros((), jnp.int32), vectors, memory)

  def update(updates, state, params=None, *, value=None, **extra_args):
    del extra_args
    exact = updates if gradient is None else gradient(params)
    t = jnp.minimum(state.step, T - 1)
    trees = (params, updates, exact)
    xs, seen, gs = (split(groups, tree) for tree in trees)
    moves, memories = [], []
    for m, x in enumerate(xs):
      memory, phi = features.update(state.memory[m], x, seen[m], value)
      s = coordinate_state(x, gs[m], x - state.last[m], phi)  # [n, F + 3]
      s = jnp.ravel(s.T)[None] if A > 1 else s  # [1, D] or [n, D]
      moves.append(jnp.ravel(s @ guide.gain[m, t].T + guide.offset[m, t]))
      memories.append(memory)
    state = ControllerState(state.step + 1, xs, memories)
    return merge(groups, moves, updates), state

  return optax.GradientTransformationExtraArgs(init, update)


def mixture(first, second, use_second):
  """Both optimizers watch the run; one of them moves."""
  first, second = map(optax.with_extra_args_support, (first, second))

  def init(params):
    return first.init(params), second.init(params)

  def update(updates, state, params=None, **extra_args):
    one, state_one = first.update(updates, state[0], params, **extra_args)
    two, state_two = second.update(updates, state[1], params, **extra_args)
    return optax.tree.where(use_second, two, one), (state_one, state_two)

  return optax.GradientTransformationExtraArgs(init, update)


def exploration(variance, groups, key, limits, common=0.0):
  """Adds noise to actions: N(0, diag G_t), within limits of the action itself.

      std = clip(√G_t, low · rms, high · rms),  rms over the group's actions

  Actions shrink by orders of magnitude along a run and from one guide to the
  next; G_t alone would soon drown or freeze them.

  Args:
    variance: diagonal of G, [M, T, A]; A = 1: the same for all coordinates.
    groups: of the parameters.
    key: of the noise.
    limits: (low, high).
    common: share c of the noise, in [0, 1], that all coordinates have in common
      along the action: √c z_0 a / rms + √(1 - c) z.  It lets the curvature
      along the direction of movement show.

  Returns:
    Optax transformation, to be chained after the optimizer that acts.
  """
  low, high = limits
  M, T = variance.shape[:2]

  def init(params):
    del params
    return jnp.zeros((), jnp.int32)  # t

  def update(updates, step, params=None):
    del params
    std = jnp.sqrt(variance[:, jnp.minimum(step, T - 1)])  # [M, A]
    actions = split(groups, updates)
    ends = np.cumsum([a.size for a in actions])
    key_step = jax.random.fold_in(key, step)
    # One draw for every coordinate, then z_0 of every group.
    *draws, z_0 = jnp.split(jax.random.normal(key_step, (ends[-1] + M,)), ends)
    moves = []
    for m, (a, z) in enumerate(zip(actions, draws, strict=True)):
      rms = jnp.sqrt(jnp.mean(a**2)) + 1e-30
      z = jnp.sqrt(1 - common) * z + jnp.sqrt(common) * z_0[m] * a / rms
      moves.append(a + jnp.clip(std[m], low * rms, high * rms) * z)
    return merge(groups, moves, updates), step + 1

  return optax.GradientTransformation(init, update)
