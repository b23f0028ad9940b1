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


def coordinatewise(features: Features, cell: Cell) -> LearnedOptimizer:
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
                s.astype(dtype).reshape(s.shape + (1,) * x.ndim),
                s.shape + x.shape),
            cell.initial_state())
      def memory_of(x):
        return _map_coordinates(features.init, x, None)(x.astype(dtype))
      return CoordinatewiseState(tuple(map(memory_of, leaves)),
                                 tuple(map(state_of, leaves)))

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
            memory, _finite_or_zero(x), _finite_or_zero(g), value)
        delta, cell_state = cell.step(theta, seen.astype(dtype), cell_state)
        return delta, memory, cell_state

      deltas, memories, cells = [], [], []
      for memory, cell_state, x, g in zip(
          state.memory, state.cell, xs, gradients, strict=True):
        delta, memory, cell_state = _map_coordinates(
            coordinate, jnp.asarray(g), axis_name)(memory, cell_state, x, g)
        deltas.append(delta.astype(g.dtype))
        memories.append(memory)
        cells.append(cell_state)
      return (structure.unflatten(deltas),
              CoordinatewiseState(tuple(memories), tuple(cells)))

    return optax.GradientTransformationExtraArgs(init, update)

  return LearnedOptimizer(
      init=lambda key: cell.init(key, features.size), transform=transform)


def grouped(learned: LearnedOptimizer,
            label_fn: Callable[[chex.ArrayTree], Any] | Any,
            groups: Sequence[str]) -> LearnedOptimizer:
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
    return {group: learned.init(k)
            for group, k in zip(groups, jax.random.split(key, len(groups)))}

  def transform(theta):
    return optax.partition(
        {group: learned.transform(theta[group]) for group in groups}, label_fn)

  return LearnedOptimizer(init, transform)
