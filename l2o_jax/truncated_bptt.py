"""Meta-training by truncated back-propagation through time."""

import functools
from typing import Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from l2o_jax.base import LearnedOptimizer, MetaTrainer, Optimizee
from l2o_jax.unroll import unroll


class MetaState(NamedTuple):
  """theta and the state of the meta-optimizer."""

  theta: chex.ArrayTree
  opt_state: chex.ArrayTree


class Info(NamedTuple):
  """What an epoch reports.

  Attributes:
    losses: [U, B, T + 1], f(x_t) of every optimizee; the last value of an
      unroll and the first of the next are at the same x (on two minibatches).
    meta_loss: [U].
    gradient_norm: [U], global norm of the meta-gradient.
    skipped: [U], whether the meta-step was skipped: meta-loss or meta-gradient
      were not finite.
  """

  losses: chex.Array
  meta_loss: chex.Array
  gradient_norm: chex.Array
  skipped: chex.Array


def meta_loss(
  theta,
  learned: LearnedOptimizer,
  optimizee: Optimizee,
  tasks,
  params,
  opt_states,
  keys,
  *,
  weights=None,
  second_derivatives: bool = False,
  remat: bool | Literal['segments', 'blocks'] = False,
):
  """The weighted sum of losses along an unroll, mean over B optimizees.

      L(theta) = 1/B sum_b sum_{t=0..T} w_t f_b(x_t)

  (Andrychowicz et al., equation 3.)  It includes f after the last update: else
  that update would get no gradient.  f(x_0) contributes a value, no gradient.

  Args:
    theta: weights of the learned optimizer.
    learned: the learned optimizer.
    optimizee: the family that the tasks are of.
    tasks: leading axis B.
    params: x_0, leading axis B.
    opt_states: of the learned optimizer, leading axis B.
    keys: [B, T + 1].
    weights: w [T + 1]; all ones by default.
    second_derivatives: see `unroll`.
    remat: see `unroll`.

  Returns:
    (L, (params at T, opt_states at T, losses [B, T + 1])).
  """

  def run(theta, task, params, opt_state, keys):
    (params, opt_state), trajectory = unroll(
      lambda x, key: optimizee.loss(x, task, key),
      learned.transform(theta),
      params,
      opt_state,
      keys,
      second_derivatives=second_derivatives,
      remat=remat,
    )
    return params, opt_state, trajectory.losses

  batch = (tasks, params, opt_states, keys)
  num_optimizees = keys.shape[0]
  if num_optimizees == 1:  # vmap over one would cost time on a CPU
    out = run(theta, *jax.tree.map(lambda x: x[0], batch))
    params, opt_states, losses = jax.tree.map(lambda x: x[None], out)
  else:
    # A theta for each: all products then are batches of plain ones.  With one
    # theta for all, the axis B would stand between the rows and columns of
    # every product and be moved away and back, at two to three times the time.
    thetas = jax.tree.map(
      lambda x: jnp.broadcast_to(x, (num_optimizees, *x.shape)), theta
    )
    params, opt_states, losses = jax.vmap(run)(thetas, *batch)
  weights = jnp.ones(losses.shape[1:]) if weights is None else weights
  loss = jnp.mean(losses @ weights.astype(losses.dtype))
  return loss, (params, opt_states, losses)


def truncated_bptt(
  learned: LearnedOptimizer,
  meta_optimizer: optax.GradientTransformation,
  *,
  unroll_length: int,
  num_unrolls: int,
  num_optimizees: int = 1,
  weights: chex.Array | None = None,
  second_derivatives: bool = False,
  remat: bool | Literal['segments', 'blocks'] = False,
  clip_each: float | None = None,
  sharding: jax.sharding.NamedSharding | None = None,
) -> MetaTrainer:
  """Truncated BPTT: one meta-step per unroll of T steps, U unrolls an epoch.

  Every epoch draws B fresh optimizees and runs each for U T steps; parameters
  and optimizer state go from one unroll into the next as data, so no gradient
  crosses (Andrychowicz et al., section 3: U T = 100, T = 20).  With
  `num_unrolls=1` it is full back-propagation through time.

  A meta-step with a non-finite meta-loss or meta-gradient is skipped: theta and
  the meta-optimizer stay as they were, and `Info.skipped` says so.

  Args:
    learned: the learned optimizer.
    meta_optimizer: for theta; Adam in the paper.
    unroll_length: T, steps.
    num_unrolls: U.
    num_optimizees: B, optimizees in parallel.
    weights: w_t along the whole run, [U T + 1]; all ones by default.
      `jnp.zeros(U * T + 1).at[-1].set(1)` is the final loss alone.
    second_derivatives: see `unroll`.
    remat: see `unroll`.
    clip_each: norm to which the meta-gradient of each single optimizee is
      clipped before their mean is taken, so that the few whose run is chaotic,
      with gradients a thousand times the others', do not drown the rest.  None:
      never, as the paper.
    sharding: of the axis B over devices; theta is replicated, and a meta-step
      has one all-reduce, that of its gradient.  None: wherever the jitted step
      runs.

  Returns:
    MetaTrainer with state MetaState and info Info.

  Raises:
    ValueError: a size is not positive, weights are of another length, or B
      cannot be divided by the devices of `sharding`.
  """
  for name, size in (
    ('unroll_length', unroll_length),
    ('num_unrolls', num_unrolls),
    ('num_optimizees', num_optimizees),
  ):
    if size < 1:
      raise ValueError(f'truncated_bptt: {name} must be positive, got {size}')
  num_steps = unroll_length * num_unrolls
  if weights is None:
    weights = jnp.ones(num_steps + 1)
  weights = jnp.asarray(weights)
  if weights.shape != (num_steps + 1,):
    raise ValueError(
      f'truncated_bptt: weights must have shape '
      f'({num_steps + 1},), got {weights.shape}'
    )
  if sharding is not None and num_optimizees % sharding.num_devices:
    raise ValueError(
      f'truncated_bptt: num_optimizees must be a multiple of the '
      f'{sharding.num_devices} devices, got {num_optimizees}'
    )
  spread = (
    (lambda batch: batch)
    if sharding is None
    else (lambda batch: jax.lax.with_sharding_constraint(batch, sharding))
  )
  if clip_each is not None and not clip_each > 0:
    raise ValueError(
      f'truncated_bptt: clip_each must be positive, got {clip_each!r}'
    )
  window = jnp.arange(num_unrolls)[:, None] * unroll_length + jnp.arange(
    unroll_length + 1
  )

  def gradient_of(theta, optimizee, weights, *batch):
    differentiate = jax.value_and_grad(
      lambda theta, *batch: meta_loss(
        theta,
        learned,
        optimizee,
        *batch,
        weights=weights,
        remat=remat,
        second_derivatives=second_derivatives,
      ),
      has_aux=True,
    )
    if clip_each is None:
      return differentiate(theta, *batch)

    def differentiate_one(*one):
      (loss, aux), gradient = differentiate(
        theta, *jax.tree.map(lambda x: x[None], one)
      )
      return loss, jax.tree.map(lambda x: x[0], aux), gradient

    losses, aux, gradients = jax.vmap(differentiate_one)(*batch)
    leaves, structure = jax.tree.flatten(gradients)
    leaves, _ = optax.per_example_global_norm_clip(leaves, clip_each)
    mean = [x / num_optimizees for x in leaves]
    return (jnp.mean(losses), aux), structure.unflatten(mean)

  def init(key):
    theta = learned.init(key)
    return MetaState(theta, meta_optimizer.init(theta))

  def step(state, optimizee, key):
    key_init, key_loss = jax.random.split(key)
    params, tasks = spread(
      jax.vmap(optimizee.init)(
        spread(jax.random.split(key_init, num_optimizees))
      )
    )
    opt_states = spread(jax.vmap(learned.transform(state.theta).init)(params))
    keys = jax.random.split(
      key_loss, (num_unrolls, num_optimizees, unroll_length + 1)
    )

    def meta_step(carry, inputs):
      state, params, opt_states = carry
      keys, weights = inputs
      (loss, (params, opt_states, losses)), gradient = gradient_of(
        state.theta, optimizee, weights, tasks, params, opt_states, spread(keys)
      )
      norm = optax.tree.norm(gradient)
      updates, opt_state = meta_optimizer.update(
        gradient, state.opt_state, state.theta
      )
      moved = MetaState(optax.apply_updates(state.theta, updates), opt_state)
      finite = jnp.isfinite(loss) & jnp.isfinite(norm)
      state = jax.tree.map(functools.partial(jnp.where, finite), moved, state)
      info = Info(losses, loss, norm, ~finite)
      return (state, params, opt_states), info

    (state, _, _), info = jax.lax.scan(
      meta_step, (state, params, opt_states), (keys, weights[window])
    )
    return state, info

  return MetaTrainer(init, step)
