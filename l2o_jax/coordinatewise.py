"""From one coordinate to all of them: learned optimizers as optax's own."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from l2o_jax.base import Cell, Features, LearnedOptimizer


class CoordinatewiseState(NamedTuple):
  """Per leaf of the parameters, the coordinates as trailing axes.

  Attributes:
    memory: of the features, [..., *leaf.shape].
    cell: of the cell, [H, *leaf.shape].
  """

  memory: tuple[chex.ArrayTree, ...]
  cell: tuple[chex.ArrayTree, ...]


def _map_coordinates(function, leaf, axis_name):
  """`function` of one coordinate -> of all coordinates, as trailing axes."""
  if leaf.ndim == 1:
    return jax.vmap(function, -1, -1, axis_name=axis_name)
  for _ in range(leaf.ndim):
    function = jax.vmap(function, -1, -1)
  return function


def _finite_or_zero(x):
  return jnp.where(jnp.isfinite(x), x, 0)


def coordinatewise(
  features: Features, cell: Cell, state_dtype: jnp.dtype | None = None
) -> LearnedOptimizer:
  """Runs one cell on every coordinate: shared weights, separate state.

      delta_i, state_i = cell(theta, features(x_i, g_i, f), state_i)
      x_i <- x_i + delta_i

  (Andrychowicz et al., section 2.1.)  Permuting coordinates permutes updates.
  The leaves of the parameters keep their shapes (and so their sharding); a leaf
  of shape [*s] has cell state [H, *s].  Computations are in theta's type, the
  updates in the gradients'.  `None` and empty leaves pass through.

  A gradient that is not finite is seen as 0, and so is such a parameter: the
  coordinate goes on as its memory tells it, its state and update stay finite,
  and no other coordinate notices.

  Cells that communicate over the axis 'coordinates' need all coordinates to be
  one axis: `optax.flatten(learned.transform(theta))`; on a tree of several
  leaves they fail with an unbound axis name rather than average within a leaf.
  Flattening is also the faster form for nets of several small leaves.

  Args:
    features: what the cell sees.
    cell: the program of one coordinate.
    state_dtype: type that the cell's state is stored in between steps, for
      example `jnp.bfloat16` for half the memory; theta's by default.

  Returns:
    A LearnedOptimizer; `transform(theta).update` takes `value=f(x)` where the
    features need it and accepts any further keyword.
  """

  def transform(theta):
    weights = jax.tree.leaves(theta)
    dtype = jnp.result_type(*weights) if weights else jnp.float32

    def init(params):
      leaves = [jnp.asarray(x) for x in jax.tree.leaves(params)]

      def state_of(x):
        return jax.tree.map(
          lambda s: jnp.broadcast_to(
            s.astype(state_dtype or dtype).reshape(s.shape + (1,) * x.ndim),
            s.shape + x.shape,
          ),
          cell.initial_state(),
        )

      def memory_of(x):
        return _map_coordinates(features.init, x, None)(x.astype(dtype))

      return CoordinatewiseState(
        tuple(map(memory_of, leaves)), tuple(map(state_of, leaves))
      )

    def update(updates, state, params=None, *, value=None, **extra_args):
      del extra_args
      gradients, structure = jax.tree.flatten(updates)
      if params is None:
        xs = [jnp.zeros_like(g) for g in gradients]
      else:
        xs = structure.flatten_up_to(params)
      axis_name = 'coordinates' if len(gradients) == 1 else None

      def coordinate(memory, cell_state, x, g):
        memory, seen = features.update(
          memory, _finite_or_zero(x), _finite_or_zero(g), value
        )
        delta, new = cell.step(
          theta,
          seen.astype(dtype),
          jax.tree.map(lambda s: s.astype(dtype), cell_state),
        )
        return (
          delta,
          memory,
          jax.tree.map(lambda s, old: s.astype(old.dtype), new, cell_state),
        )

      deltas, memories, cells = [], [], []
      for memory, cell_state, x, g in zip(
        state.memory, state.cell, xs, gradients, strict=True
      ):
        delta, memory, cell_state = _map_coordinates(
          coordinate, jnp.asarray(g), axis_name
        )(memory, cell_state, x, g)
        deltas.append(delta.astype(g.dtype))
        memories.append(memory)
        cells.append(cell_state)
      return (
        structure.unflatten(deltas),
        CoordinatewiseState(tuple(memories), tuple(cells)),
      )

    return optax.GradientTransformationExtraArgs(init, update)

  return LearnedOptimizer(
    init=lambda key: cell.init(key, features.size), transform=transform
  )


def _bits(x):
  """bfloat16 as integers, which XLA writes in place on a CPU.

  It would convert all of the array to float32 and back for every block.
  """
  if x.dtype != jnp.bfloat16:
    return x
  return jax.lax.bitcast_convert_type(x, jnp.uint16)


def _number(bits, like):
  """The inverse of `_bits`, to the type of `like`."""
  if like.dtype != jnp.bfloat16:
    return bits
  return jax.lax.bitcast_convert_type(bits, jnp.bfloat16)


def chunked(learned: LearnedOptimizer, size: int = 1280) -> LearnedOptimizer:
  """`learned` on blocks of coordinates, one after another, in place.

  The same updates for less memory: beside state and gradients an application
  needs what one block needs, and with the state donated to the jitted function
  no second state.  On a CPU it is also the faster form for large leaves, as a
  block stays in the cache.  For applying an optimizer, not for meta-training:
  differentiating it would store the whole state for every block.

  Args:
    learned: an optimizer whose coordinates do not communicate.
    size: coordinates of a block; on CPUs no power of two, or the rows of a
      matrix [H, size] fall into the same sets of the cache.

  Returns:
    A LearnedOptimizer whose state has a leading axis of blocks in each leaf of
    the parameters and keeps bfloat16 as uint16, bit by bit; the last block is
    padded with zeros.  With a block as large as the leaf it reduces to
    `learned`.

  Raises:
    ValueError: size is not positive.
  """
  if size < 1:
    raise ValueError(f'chunked: size must be positive, got {size}')

  def transform(theta):
    opt = optax.with_extra_args_support(learned.transform(theta))

    def blocks(x):
      width = max(min(size, x.size), 1)
      padding = -x.size % width if x.size else 1
      return jnp.pad(jnp.ravel(x), (0, padding)).reshape(-1, width)

    def init(params):
      return tuple(
        jax.tree.map(_bits, jax.vmap(opt.init)(blocks(x)))
        for x in jax.tree.leaves(params)
      )

    def update_leaf(g, state, x, **extra_args):
      def one(i, carry):
        updates, state, x = jax.tree.map(
          lambda leaf, like: _number(
            jax.lax.dynamic_index_in_dim(leaf, i, keepdims=False), like
          ),
          (*carry, parameters),
          like,
        )
        # Always true.  A branch is not fused with the writing of its result,
        # which XLA would otherwise not do in place.
        new = jax.lax.cond(
          i >= 0,
          lambda block: opt.update(*block, **extra_args),
          lambda block: block[:2],
          (updates, state, x),
        )
        return jax.tree.map(
          lambda leaf, block: jax.lax.dynamic_update_index_in_dim(
            leaf, _bits(block), i, 0
          ),
          carry,
          new,
        )

      given = blocks(g), None if x is None else blocks(x)
      like = (given[0], jax.eval_shape(opt.init, given[0][0]), given[1])
      gradients, parameters = jax.tree.map(_bits, given)
      updates, state = jax.lax.fori_loop(
        0, len(gradients), one, (gradients, state)
      )
      updates = _number(updates, g)
      return jnp.ravel(updates)[: g.size].reshape(g.shape), state

    def update(updates, state, params=None, **extra_args):
      leaves, structure = jax.tree.flatten(updates)
      xs = (
        [None] * len(leaves)
        if params is None
        else structure.flatten_up_to(params)
      )
      new = [
        update_leaf(*leaf, **extra_args)
        for leaf in zip(leaves, state, xs, strict=True)
      ]
      return (
        structure.unflatten([u for u, _ in new]),
        tuple(s for _, s in new),
      )

    return optax.GradientTransformationExtraArgs(init, update)

  return LearnedOptimizer(learned.init, transform)


def grouped(
  learned: LearnedOptimizer,
  label_fn: Callable[[chex.ArrayTree], Any] | Any,
  groups: Sequence[str],
) -> LearnedOptimizer:
  """One theta per group of leaves, on `optax.partition`.

  Used where coordinates of different kinds need different rules: convolutional
  and fully connected weights (Andrychowicz et al., section 3.3), one policy per
  weight matrix and bias vector (Li & Malik 2017, section 3.4).

  Args:
    learned: the optimizer that every group runs, each with its own theta.
    label_fn: params -> tree of group names (or that tree, or a prefix of it).
    groups: all names.

  Returns:
    A LearnedOptimizer with theta {group: theta of learned}.  With one group it
    reduces to `learned`.

  Raises:
    ValueError: no groups, or a name twice.
  """
  groups = tuple(groups)
  if not groups or len(set(groups)) < len(groups):
    raise ValueError(f'grouped: groups must be distinct names, got {groups}')

  def init(key):
    return {
      group: learned.init(k)
      for group, k in zip(groups, jax.random.split(key, len(groups)))
    }

  def transform(theta):
    return optax.partition(
      {group: learned.transform(theta[group]) for group in groups}, label_fn
    )

  return LearnedOptimizer(init, transform)
