"""The meta-loss, and truncated back-propagation through time that lowers it."""

import functools
from collections.abc import Callable
from typing import Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from l2o_jax.base import Info, LearnedOptimizer, MetaTrainer, Optimizee
from l2o_jax.checks import (
  above_zero,
  given,
  one_of,
  pair,
  positive,
  ready,
  require,
  trainable,
)
from l2o_jax.leaves import check_real, to_array, to_tree
from l2o_jax.unroll import REMAT, scalar
from l2o_jax.unroll import unroll as plain_unroll


class MetaState(NamedTuple):
  """theta and the state of the meta-optimizer."""

  theta: chex.ArrayTree
  opt_state: chex.ArrayTree


def _on_array(opt: optax.GradientTransformation, batch: tuple[int]):
  """Runs `opt` on the coordinates of all leaves of all optimizees, as [B n]."""

  def update(updates, state, params, *, value, **extra_args):
    g, x = to_array(updates, batch), to_array(params, batch)
    values = jnp.repeat(value, g.size // value.size)  # [B] -> [B n]
    delta, state = opt.update(g, state, x, value=values, **extra_args)
    return to_tree(delta, updates, batch), state

  return optax.GradientTransformationExtraArgs(opt.init, update)


def initial_state(learned: LearnedOptimizer, theta, params):
  """The state of one optimizee as `meta_loss` takes it, at x_0.

  Where coordinates do not communicate, it is the state of one array [n] that
  holds them all: their leaf and their optimizee do not matter.

  Raises:
    TypeError: a parameter is not real.
  """
  check_real(params, 'parameter')
  x = params if learned.communicates else to_array(params)
  return learned.transform(theta).init(x)


def _side_by_side(function, count):
  """`jax.vmap`; but over an axis of one it would cost time on a CPU."""
  if count > 1:
    return jax.vmap(function)

  def only_one(*args):
    out = function(*jax.tree.map(lambda x: x[0], args))
    return jax.tree.map(lambda x: x[None], out)

  return only_one


def run_one(run, who, learned, optimizee, theta, task, params, state, keys):
  """One run of one optimizee: ((x_T, state), losses [T + 1])."""
  loss = scalar(lambda x, key: optimizee.loss(x, task, key), who)
  end, trajectory = run(loss, learned.transform(theta), params, state, keys)
  return end, trajectory.losses


def _run_as_one(run, theta, learned, optimizee, tasks, params, states, keys):
  """B runs whose coordinates do not communicate: one run of one array."""
  count = len(keys)
  join = lambda s: jnp.moveaxis(s, 0, -2).reshape(*s.shape[1:-1], -1)
  apart = lambda s: jnp.moveaxis(s.reshape(*s.shape[:-1], count, -1), -2, 0)
  state = jax.tree.map(join, states)  # [B, K, n] -> [K, B n]
  opt = _on_array(learned.transform(theta), (count,))
  of_all = _side_by_side(optimizee.loss, count)
  losses_of = lambda params, keys: of_all(params, tasks, keys)  # [B]
  keys = jnp.swapaxes(keys, 0, 1)  # [T + 1, B]
  (params, state), trajectory = run(losses_of, opt, params, state, keys)
  states = jax.tree.map(apart, state)
  return (params, states), trajectory.losses.T  # [B, T + 1]


def _run_apart(run, theta, learned, optimizee, *batch):
  """B runs, each with its own optimizer state, under vmap."""
  # Each optimizee gets a copy of theta, so that every product is a batch of
  # plain products.  With one theta for all, the axis B would lie between the
  # rows and columns of every product and be moved away and back, at two to
  # three times the time.
  count = len(batch[-1])
  one = functools.partial(run_one, run, 'meta_loss', learned, optimizee)
  return _side_by_side(one, count)(_copies(theta, count), *batch)


def _copies(theta, count):
  return jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *x.shape)), theta)


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
  of_loss: Callable = lambda loss: loss,
  second_derivatives: bool = False,
  remat: bool | Literal['segments'] = True,
  unroll: Callable = plain_unroll,
):
  """The meta-loss: weighted sum of losses along an unroll, mean over B.

      L(theta) = 1/B sum_b sum_{t=0..T} w_t h(f_b(x_t))

  (Andrychowicz et al., equation 3.)  The sum includes f after the last
  update, which would otherwise get no gradient.  f(x_0) adds a value but no
  gradient.

  Args:
    theta: weights of the learned optimizer.
    learned: the learned optimizer.
    optimizee: the family that the tasks come from.
    tasks: leading axis B.
    params: x_0, leading axis B.
    opt_states: `initial_state` of each, leading axis B.
    keys: [B, T + 1].
    weights: w [T + 1]; all ones by default.
    of_loss: h, what of a loss is summed; h(f) = f in the paper.  With `jnp.log`
      halving a loss of 0.01 counts as much as halving a loss of 1.
    second_derivatives: see `unroll`.
    remat: see `unroll`.
    unroll: runs the optimizer; `blocks.unroll` may stand here where coordinates
      do not communicate.

  Returns:
    (L, (params at T, opt_states at T, losses [B, T + 1])).

  Raises:
    ValueError: a loss is not a scalar, or `unroll` is not l2o_jax.unroll and
      the learned optimizer communicates.
  """
  how = {'second_derivatives': second_derivatives, 'remat': remat}
  run = functools.partial(unroll, **how)
  alone = not learned.communicates or unroll is plain_unroll
  blind = 'for coordinates that communicate, or whose rule depends on the leaf'
  require(alone, f'meta_loss: {blind}, unroll must be l2o_jax.unroll itself')
  batch = (tasks, params, opt_states, keys)
  # If the update rule of a coordinate does not depend on its leaf or optimizee,
  # all coordinates are one array, and a layer is one matrix product.
  way = _run_apart if learned.communicates else _run_as_one
  end, losses = way(run, theta, learned, optimizee, *batch)
  count = losses.shape[1:]
  weights = jnp.ones(count) if weights is None else jnp.asarray(weights)
  wrong = f'meta_loss: weights must have shape {count}, got {weights.shape}'
  require(weights.shape == count, wrong)
  wide = jnp.promote_types(losses.dtype, jnp.float32)  # sums of many losses
  values = of_loss(losses.astype(wide))
  summed = values @ weights.astype(values.dtype)  # [B, T + 1] -> [B]
  return jnp.mean(summed), (*end, losses)


def _clipped(differentiate, bound, count):
  """The mean of the optimizees' own gradients, each clipped to a norm."""

  def one(theta, *batch):
    batch = jax.tree.map(lambda x: x[None], batch)
    (loss, aux), gradient = differentiate(theta, *batch)
    return loss, jax.tree.map(lambda x: x[0], aux), gradient

  def all_of_them(theta, *batch):
    losses, aux, gradients = jax.vmap(one)(_copies(theta, count), *batch)
    leaves, structure = jax.tree.flatten(gradients)
    sums, _ = optax.per_example_global_norm_clip(leaves, bound)
    mean = structure.unflatten([x / count for x in sums])
    return (jnp.mean(losses), aux), mean

  return all_of_them


def meta_update(meta_optimizer, state, loss, gradient):
  """A meta-step: (MetaState, whether it was skipped, norm of the gradient)."""
  norm = optax.tree.norm(gradient)
  theta, opt_state = state
  updates, opt_state = meta_optimizer.update(gradient, opt_state, theta)
  moved = MetaState(optax.apply_updates(theta, updates), opt_state)
  finite = jnp.isfinite(loss) & jnp.isfinite(norm)
  return optax.tree.where(finite, moved, state), ~finite, norm


def first_state(learned, meta_optimizer, key) -> MetaState:
  """The state of a trainer before its first meta-step."""
  theta = learned.init(key)
  return MetaState(theta, meta_optimizer.init(theta))


def fresh(optimizee, keys):
  """(x_0, tasks) of fresh optimizees, one for each of B keys."""
  return jax.vmap(lambda key: pair(optimizee.init(key)))(keys)


def checked_weights(who, weights, unroll_length, num_unrolls, num_optimizees):
  """Weights of the losses of a run, [U T + 1], all 1 where None.

  Raises:
    ValueError: a size is not positive, or weights have a wrong shape or are not
      finite.
  """
  sizes = {'unroll_length': unroll_length, 'num_unrolls': num_unrolls}
  positive(who, **sizes, num_optimizees=num_optimizees)
  count = unroll_length * num_unrolls + 1
  weights = np.ones(count) if weights is None else np.asarray(weights)
  shape = f'{who}: weights must have shape ({count},), got {weights.shape}'
  require(weights.shape == (count,), shape)
  require(np.isfinite(weights).all(), f'{who}: weights must be finite')
  return weights


def _spread(sharding, count):
  """A function that puts the axis B on the devices, if there is a sharding."""
  if sharding is None:
    return lambda batch: batch
  auto = jax.sharding.AxisType.Auto
  free = all(kind == auto for kind in sharding.mesh.axis_types)
  ask = 'axes of the mesh must be Auto, as with jax.make_mesh(axis_types=)'
  require(free, f'truncated_bptt: {ask}, got {sharding.mesh.axis_types}')
  devices = sharding.num_devices
  even = f'truncated_bptt: num_optimizees must be a multiple of the {devices}'
  require(not count % devices, f'{even} devices, got {count}')
  return lambda batch: jax.lax.with_sharding_constraint(batch, sharding)


def truncated_bptt(
  learned: LearnedOptimizer,
  meta_optimizer: optax.GradientTransformation,
  *,
  unroll_length: int,
  num_unrolls: int,
  num_optimizees: int = 1,
  weights: chex.Array | None = None,
  of_loss: Callable = lambda loss: loss,
  second_derivatives: bool = False,
  remat: bool | Literal['segments'] = True,
  clip_each: float | None = None,
  sharding: jax.sharding.NamedSharding | None = None,
  unroll: Callable = plain_unroll,
) -> MetaTrainer:
  """Truncated BPTT: one meta-step per unroll of T steps, U unrolls per epoch.

  Every epoch draws B fresh optimizees and runs each for U T steps.  Truncation:
  parameters and optimizer state pass from one unroll to the next as data, so no
  gradient crosses (Andrychowicz et al., section 3: U T = 100, T = 20).  With
  `num_unrolls=1` this is full back-propagation through time.

  A meta-step with a non-finite meta-loss or meta-gradient is skipped: theta and
  the meta-optimizer stay as they were, and `Info.skipped` says so.

  Args:
    learned: the learned optimizer.
    meta_optimizer: the optimizer of theta; Adam in the paper.
    unroll_length: T, steps.
    num_unrolls: U.
    num_optimizees: B, optimizees in parallel.
    weights: w_t along the whole run, [U T + 1]; all ones by default.
      `jnp.zeros(U * T + 1).at[-1].set(1)` counts only the final loss.
    of_loss: see `meta_loss`.
    second_derivatives: see `unroll`.
    remat: see `unroll`.
    clip_each: norm to which the meta-gradient of each single optimizee is
      clipped before their mean is taken, so that a few chaotic runs, whose
      gradients can be 1,000 times larger, do not dominate the mean.  None:
      never, as in the paper.
    sharding: how the axis B is spread over devices.  theta is replicated; a
      meta-step has one all-reduce for its gradient and one for the meta-loss, a
      single number.  None: wherever the jitted step runs.
    unroll: see `meta_loss`.

  Returns:
    MetaTrainer with state MetaState; Info.summary['gradient_norm'] is the
    largest global norm of the epoch's meta-gradients.

  Raises:
    ValueError: a size or `clip_each` is not positive, `remat` is unknown,
      weights have the wrong length or are not finite, the mesh of `sharding`
      has an axis that is not Auto, or B is not a multiple of its devices.
    TypeError: the meta-optimizer is no optax transformation.
  """
  ready('truncated_bptt', meta_optimizer=meta_optimizer)
  trainable('truncated_bptt', learned)
  sizes = unroll_length, num_unrolls, num_optimizees
  weights = checked_weights('truncated_bptt', weights, *sizes)
  one_of('truncated_bptt', REMAT, remat=remat)
  above_zero('truncated_bptt', **given(clip_each=clip_each))
  spread = _spread(sharding, num_optimizees)
  # [U, T + 1]: an unroll's last loss and the next unroll's first are at the
  # same x.
  windows = np.lib.stride_tricks.sliding_window_view(weights, unroll_length + 1)
  windows = jnp.asarray(windows[::unroll_length], jnp.float32)
  how = {'of_loss': of_loss, 'second_derivatives': second_derivatives}
  how |= {'remat': remat, 'unroll': unroll}

  def step(state, optimizee, key):
    key_init, key_loss = jax.random.split(key)
    keys = spread(jax.random.split(key_init, num_optimizees))
    params, tasks = spread(fresh(optimizee, keys))
    state_of = functools.partial(initial_state, learned, state.theta)
    states = spread(jax.vmap(state_of)(params))
    shape = (num_unrolls, num_optimizees, unroll_length + 1)
    keys = jax.random.split(key_loss, shape)  # [U, B, T + 1]

    def meta_step(carry, inputs):
      state, params, states = carry
      keys, weights = inputs
      loss_of = lambda theta, *batch: meta_loss(
        theta, learned, optimizee, *batch, weights=weights, **how
      )
      differentiate = jax.value_and_grad(loss_of, has_aux=True)
      if clip_each is not None:
        differentiate = _clipped(differentiate, clip_each, num_optimizees)
      batch = tasks, params, states, spread(keys)
      (loss, (*carry, losses)), gradient = differentiate(state.theta, *batch)
      state, skipped, norm = meta_update(meta_optimizer, state, loss, gradient)
      return (state, *carry), (losses, loss, skipped, norm)

    # Truncation: parameters and states pass from unroll to unroll as the carry
    # of this scan, which is never differentiated.
    (state, _, _), (losses, loss, skipped, norm) = jax.lax.scan(
      meta_step, (state, params, states), (keys, windows)
    )
    summary = {'gradient_norm': jnp.max(norm)}
    return state, Info(losses, loss, skipped, summary)

  init = functools.partial(first_state, learned, meta_optimizer)
  return MetaTrainer(init, step)
