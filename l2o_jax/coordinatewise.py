"""The update rule: one cell on every coordinate, as an optax transformation."""

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from l2o_jax.base import Cell, Features, LearnedOptimizer
from l2o_jax.checks import require, same_arrays
from l2o_jax.leaves import (
  check_real,
  check_shape,
  leaf_by_leaf,
  to_array,
  to_tree,
)


class CoordinatewiseState(NamedTuple):
  """What every coordinate remembers.

  An array [...] of one coordinate is kept for all of them as a tree like the
  parameters, with leaves [..., *leaf.shape].  Adam keeps its moments the same
  way, so `optax.tree.map_params` finds these trees.

  Attributes:
    memory: the memory of the features, in a tuple of one.
    cell: the state of the cell, leaves [H, *leaf.shape], in a tuple of one.
  """

  memory: tuple[chex.ArrayTree]
  cell: tuple[chex.ArrayTree]


class LeafwiseState(CoordinatewiseState):
  """The same where features need the leaf; what is of the leaf is []."""

  __slots__ = ()


class WholeState(NamedTuple):
  """What coordinates that communicate remember: all n of them are one axis.

  Attributes:
    memory: the memory of the features, leaves [..., n], in a tuple of one.
    cell: the state of the cell, as `initial_state(n)` makes it, in a tuple of
      one.
  """

  memory: tuple[chex.ArrayTree]
  cell: tuple[chex.ArrayTree]


def each(function, num_axes: int):
  """Maps a function of one coordinate over arrays, coordinates' axes last."""
  for _ in range(num_axes):
    function = jax.vmap(function, -1, -1)
  return function


def as_whole(cell: Cell) -> Cell:
  """The cell as one that takes all coordinates at once, features first."""
  if cell.whole:
    return cell

  def initial_state(n):
    repeat = lambda s: jnp.repeat(jnp.asarray(s)[..., None], n, -1)
    return jax.tree.map(repeat, cell.initial_state())

  def step(theta, x, state):
    of_one = functools.partial(cell.step, theta)
    return each(of_one, x.ndim - 1)(x, state)

  return cell._replace(initial_state=initial_state, step=step, whole=True)


def _on_leaf(features):
  """init: x [*s] -> memory;  update: ... -> memory, features [F, *s]."""
  if 'leaf' not in features.needs:
    init = lambda x: each(features.init, x.ndim)(x)
    update = lambda *args: each(features.update, args[1].ndim)(*args)
    return init, update

  def update_leaf(*args):
    memory, seen = features.update(*args)  # [*s, F]
    return memory, jnp.moveaxis(seen, -1, 0)

  return features.init, update_leaf


def _cast(tree, dtype):
  """Floating-point arrays to another type; counters stay what they are."""
  is_float = lambda x: jnp.issubdtype(jnp.result_type(x), jnp.inexact)
  cast = lambda x: jnp.asarray(x).astype(dtype) if is_float(x) else x
  return jax.tree.map(cast, tree)


def _as_before(new, old):
  """The new state in the dtype of the old; refused if its shape has changed."""
  new = jnp.asarray(new)
  kinds = [jnp.issubdtype(x.dtype, jnp.inexact) for x in (new, old)]
  same = new.shape == old.shape and kinds[0] == kinds[1]
  began = f'{old.dtype}{list(old.shape)} became {new.dtype}{list(new.shape)}'
  require(same, f'coordinatewise: memory or state that began as {began}')
  return new.astype(old.dtype)


def _of_each(value, g, dtype):
  """f(x) [], or [n] of several functions side by side -> a value for each g."""
  value = jnp.asarray(value).astype(dtype)
  wrong = f'coordinatewise: `value` must be a scalar, got shape {value.shape}'
  require(value.shape in ((), g.shape), wrong)
  return value + jnp.zeros_like(g, dtype)  # sharded as g is


def _finite(x, dtype):
  """In another type, 0 where it is not finite."""
  x = jnp.asarray(x)
  x = jnp.where(jnp.isfinite(x), x, jnp.zeros((), x.dtype))
  if jnp.promote_types(x.dtype, dtype) != dtype:  # the other type is narrower
    largest = jnp.finfo(dtype).max.astype(x.dtype)
    x = jnp.clip(x, -largest, largest)
  return x.astype(dtype)


def _sharded_as(x, s):
  """s [H, *s] of a leaf x [*s], or [] of all of it, computed from x.

  x is finite, so this adds 0; the compiler, which would drop 0 * x, cannot know
  that.
  """
  nothing = x != x if s.ndim >= x.ndim else jnp.any(x != x)
  nothing = nothing.astype(s.dtype)
  return s + jnp.expand_dims(nothing, range(s.ndim - nothing.ndim))


def _rule(features, cell, theta, state_dtype):
  """The update rule of one leaf: features and cell with the weights theta.

  Returns:
    start: x [*s] -> what is remembered of it at first;
    move: g [*s], x [*s] or None, what is remembered, value -> delta [*s], what
      is remembered now.
  """
  of_leaf, weights = 'leaf' in features.needs, jax.tree.leaves(theta)
  cell, (remember, look) = as_whole(cell), _on_leaf(features)
  dtype = jnp.result_type(*weights) if weights else jnp.float32
  dtype = dtype if jnp.issubdtype(dtype, jnp.inexact) else jnp.float32

  def start(x):
    x = _finite(x, dtype)
    memory = remember(x)
    if cell.communicates:
      state = cell.initial_state(x.size)
      # Copies, since a cell may start several arrays from one buffer, which a
      # user could then not donate.
      state = jax.tree.map(jnp.array, _cast(state, state_dtype or dtype))
      return WholeState((memory,), (state,))
    box = lambda s: s.reshape(*s.shape[:-1], *(1,) * x.ndim)
    state = jax.tree.map(box, cell.initial_state(1))  # [H, 1] -> [H, 1, ...]
    follow = lambda s: _sharded_as(x, s)
    memory, state = jax.tree.map(follow, (memory, state))
    kind = LeafwiseState if of_leaf else CoordinatewiseState
    return kind((memory,), (_cast(state, state_dtype or dtype),))

  def move(g, x, old, value):
    check_shape('parameter', np.shape(g if x is None else x), g.shape)
    for s in [] if cell.communicates else jax.tree.leaves(old):
      if s.ndim or not of_leaf:
        check_shape('state', s.shape[s.ndim - g.ndim :], g.shape)
    if value is not None:
      value = _of_each(value, g, dtype)
    g, x = _finite(g, dtype), _finite(g if x is None else x, dtype)
    memory, inputs = look(old.memory[0], x, g, value)
    check_shape('array of features', inputs.shape, (features.size, *g.shape))
    state = _cast(old.cell[0], dtype)  # [H, *s]
    delta, state = cell.step(theta, inputs.astype(dtype), state)
    check_shape('step', jnp.shape(delta), g.shape)
    new = type(old)((memory,), (state,))
    kinds = [jax.tree.structure(x) for x in (old, new)]
    began = f'coordinatewise: memory and state began as {kinds[0]}'
    require(kinds[0] == kinds[1], f'{began}, became {kinds[1]}')
    return delta, jax.tree.map(_as_before, new, old)

  # Traced once for all leaves of one shape, and quick outside of jit too.
  return start, jax.jit(move)


def _all_at_once(start, move):
  """init and update for coordinates that communicate: all on one axis [n]."""

  def init(params):
    check_real(params, 'parameter')
    return start(to_array(params))

  def update(updates, state, params, value):
    check_real(updates, 'gradient')
    g = to_array(updates)  # [n]
    x = None if params is None else to_array(params)
    shapes = lambda tree: jax.tree.map(jnp.shape, tree)
    fits = shapes(jax.eval_shape(start, g)) == shapes(state)
    found = f'coordinatewise: the gradients have {g.size} coordinates'
    require(fits, f'{found}, the state is of another number')
    delta, state = move(g, x, state, value)
    return to_tree(delta, updates), state

  return init, update


def coordinatewise(
  features: Features, cell: Cell, state_dtype: jnp.dtype | None = None
) -> LearnedOptimizer:
  """The update rule: one cell on every coordinate, shared weights, own state.

      delta_i, state_i = cell(theta, features(x_i, g_i, f), state_i)
      x_i <- x_i + delta_i

  (Andrychowicz et al., section 2.1.)  Permuting coordinates permutes updates.
  The leaves of the parameters keep their shapes, and so their sharding; a leaf
  of shape [*s] has cell state [H, *s].  Computations are in theta's type;
  updates have the gradients' type.  `None` and empty leaves pass through.
  Features that need the leaf see all of it: its coordinates may then depend on
  each other, and what is remembered of the leaf is [].

  A gradient or parameter that is not finite is seen as 0.  The coordinate goes
  on as its memory tells it, its state and update stay finite, and no other
  coordinate notices, unless the features take means over the leaf.

  A cell that communicates gets the coordinates of all leaves as one axis.

  Args:
    features: what the cell sees.
    cell: what it computes.
    state_dtype: type in which the cell's state is stored between steps, for
      example `jnp.bfloat16` for half the memory; theta's type by default.

  Returns:
    A LearnedOptimizer; `transform(theta).update` takes `value=f(x)` where the
    features need it and accepts any further keyword.  It raises a TypeError
    that names what the features need and were not given, or a leaf that is not
    real, and a ValueError if the gradients and the state differ in structure,
    or features, step, memory or state do not have the shapes of the contract.

  Raises:
    ValueError: the cell communicates but is not whole, the features need
      something else than params, value and leaf, or `state_dtype` is not a
      floating-point type.
  """
  known = state_dtype is None or jnp.issubdtype(state_dtype, jnp.floating)
  floating = f'state_dtype must be a floating-point type, got {state_dtype!r}'
  require(known, f'coordinatewise: {floating}')
  needs = set(features.needs) - {'params', 'value', 'leaf'}
  require(not needs, f'coordinatewise: features cannot need {sorted(needs)}')
  whole = cell.whole or not cell.communicates
  require(whole, 'coordinatewise: a cell that communicates must be whole')

  init_theta = lambda key: cell.init(key, features.size)

  def transform(theta):
    key = jax.eval_shape(jax.random.key, 0)  # of shapes alone: nothing is run
    other = 'coordinatewise: theta is not for these features and this cell'
    same_arrays(other, theta, jax.eval_shape(init_theta, key), jnp.shape)
    rule = _rule(features, cell, theta, state_dtype)
    over_leaves = _all_at_once if cell.communicates else leaf_by_leaf
    init, move = over_leaves(*rule)

    def update(updates, state, params=None, *, value=None, **extra_args):
      del extra_args
      for name, given in ('params', params), ('value', value):
        missing = name in features.needs and given is None
        needed = f'coordinatewise: the features need `{name}` in update'
        require(not missing, needed, TypeError)
      return move(updates, state, params, value=value)

    return optax.GradientTransformationExtraArgs(init, update)

  together = cell.communicates or 'leaf' in features.needs
  return LearnedOptimizer(init_theta, transform, together)
