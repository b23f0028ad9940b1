"""The policy's side: what it would do along samples, and its regression."""

import jax
import jax.numpy as jnp
import optax

from l2o_jax.base import Cell, Features, LearnedOptimizer
from l2o_jax.cells.standardised import standardised
from l2o_jax.coordinatewise import coordinatewise
from l2o_jax.groups import Groups, grouped


def policy_optimizer(
  features: Features,
  cell: Cell,
  groups: Groups | None = None,
  *,
  shared: bool = False,
  joint_size: int | None = None,
) -> LearnedOptimizer:
  """The policy that `guided_policy_search` trains, as a learned optimizer.

  Args:
    features: what it sees of a coordinate.
    cell: its program.
    groups: one theta for each; None: one for all.
    shared: one for all even so.
    joint_size: n, if the cell sees and moves all coordinates at once.
  """
  cell = standardised(cell, coordinates=joint_size or 1)
  learned = coordinatewise(features, cell)
  if groups is None or shared:
    return learned
  return grouped(learned, groups)


def replay(cell: Cell, theta, observations, joint_size=None):
  """The cell's actions along recorded observations.

  Args:
    cell: of a unit.
    theta: its weights.
    observations: [S, T, F].

  Returns:
    [S, T, A].
  """

  samples = observations.shape[0]
  state = cell.initial_state(samples)

  def step(state, o):  # [F, S], or of joint policies [F A, S]
    if cell.communicates:
      one = lambda o: cell.step(theta, o.reshape(-1, joint_size), ())[0]
      return state, jax.vmap(one, -1, -1)(o)  # [A, S]
    actions, state = cell.step(theta, o, state)
    return state, actions

  _, actions = jax.lax.scan(step, state, observations.transpose(1, 2, 0))
  if actions.ndim == 2:
    actions = actions[:, None]
  return actions.transpose(2, 0, 1)


def regression(
  cell: Cell,
  theta,
  observations,
  targets,
  weights,
  key,
  num_steps,
  *,
  batch_size: int,
  learning_rate: float,
  clip_norm: float = 1.0,
):
  """Fits the cell's mean actions to targets, through time.

      min_theta  mean_{s,t} w_t ‖μ_theta(o_s0 ... o_st) - target_st‖²

  The sequences are those that occurred: the policy's own actions do not feed
  back.  Adam, gradients clipped; the rate falls to 10 % by a cosine.

  Args:
    cell: of a unit.
    theta: where to start.
    observations: [S, T, F].
    targets: [S, T, A].
    weights: w, [S, T].
    key: draws minibatches of samples.
    num_steps: of Adam; may be traced.
    batch_size: samples a step, with replacement.
    learning_rate: of Adam.
    clip_norm: global norm.

  Returns:
    (theta, loss before, loss after), each loss the mean over 20 steps.
  """
  opt = optax.chain(optax.clip_by_global_norm(clip_norm), optax.adam(1.0))
  count = observations.shape[0]

  def loss(theta, rows):
    error = replay(cell, theta, observations[rows], targets.shape[-1]) - targets[rows]
    return jnp.mean(weights[rows] * jnp.sum(error**2, -1))

  def step(i, carry):
    theta, state, first, last = carry
    rows = jax.random.randint(
      jax.random.fold_in(key, i), (batch_size,), 0, count
    )
    value, gradient = jax.value_and_grad(loss)(theta, rows)
    updates, state = opt.update(gradient, state, theta)
    rate = learning_rate * (0.55 + 0.45 * jnp.cos(jnp.pi * i / num_steps))
    theta = optax.apply_updates(
      theta, jax.tree.map(lambda u: rate * u, updates)
    )
    return (
      theta,
      state,
      first + jnp.where(i < 20, value, 0) / 20,
      last + jnp.where(i >= num_steps - 20, value, 0) / 20,
    )

  zero = jnp.zeros((), jnp.float32)
  theta, _, first, last = jax.lax.fori_loop(
    0, num_steps, step, (theta, opt.init(theta), zero, zero)
  )
  return theta, first, last
