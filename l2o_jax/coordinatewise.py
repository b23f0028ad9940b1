"""From one coordinate to all of them: learned optimizers as optax's own."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from l2o_jax.base import Cell, Features, LearnedOptimizer


class CoordinatewiseState(NamedTuple):
  """What every coordinate remembers.

  Where a coordinate remembers an array [...], here stands a tree like the
  parameters with leaves [..., *leaf.shape], as Adam's moments are trees:
  `optax.tree.map_params` finds them.

  Attributes:
    memory: of the features, in a tuple of one.
    cell: state of the cell, leaves [H, *leaf.shape], in a tuple of one.
  """

  memory: tuple[chex.ArrayTree]
  cell: tuple[chex.ArrayTree]


class WholeState(NamedTuple):
  """The same where coordinates communicate: all n of them as one axis.

  Attributes:
    memory: of the features, leaves [..., n], in a tuple of one.
    cell: of the cell, as its `initial_state(n)` makes it, in a tuple of one.
  """

  memory: tuple[chex.ArrayTree]
  cell: tuple[chex.ArrayTree]


def each(function, num_axes: int):
  """`function` of one coordinate -> of arrays with coordinates' axes last."""
  for _ in range(num_axes):
    function = jax.vmap(function, -1, -1)
  return function


def _cast(tree, dtype):
  """Floating-point arrays to another type; counters stay what they are."""
  is_float = lambda x: jnp.issubdtype(jnp.result_type(x), jnp.inexact)
  return jax.tree.map(
    lambda x: jnp.asarray(x).astype(dtype) if is_float(x) else x, tree
  )


def _array(x):
  """An array of a leaf of the parameters; zeros for a struct."""
  is_struct = isinstance(x, jax.ShapeDtypeStruct)
  return jnp.zeros_like(x) if is_struct else jnp.asarray(x)


def check_real(tree, what: str):
  """Raises a TypeError that names a leaf which is not floating-point."""
  for path, x in jax.tree.leaves_with_path(tree):
    dtype = x.dtype if hasattr(x, 'dtype') else jnp.result_type(x)
    if not jnp.issubdtype(dtype, jnp.floating):
      name = jax.tree_util.keystr(path) or 'array'
      kind = 'float0' if dtype == jax.dtypes.float0 else dtype.name
      raise TypeError(
        f'coordinatewise: the {what} {name} is {kind}, not real '
        'floating-point numbers'
      )


def _check_given(needs, **given):
  for name in sorted(needs):
    if given[name] is None:
      raise TypeError(f'coordinatewise: the features need `{name}` in update')


def _flatten_as(outer, tree, what):
  """Leaves of a tree like the parameters; None where one is frozen."""
  try:
    leaves = outer.flatten_up_to(tree)
    fits = jax.tree_util.all_leaves([x for x in leaves if x is not None])
  except ValueError:
    fits = False
  if not fits:
    raise ValueError(
      f'coordinatewise: the state is of parameters {outer}, the {what} are '
      f'{jax.tree.structure(tree)}'
    )
  return leaves


def check_shape(what: str, found, wanted):
  """Raises a ValueError unless the shapes of a leaf are the same."""
  if found != wanted:
    raise ValueError(
      f'coordinatewise: the {what} of a leaf has shape {found}, its gradient '
      f'{wanted}'
    )


def _of_each(value, g, dtype):
  """f(x), for each coordinate: of one function, or of several side by side."""
  value = jnp.asarray(value).astype(dtype)
  if value.shape not in ((), g.shape):
    raise ValueError(
      f'coordinatewise: `value` must be a scalar, got shape {value.shape}'
    )
  return value + jnp.zeros_like(g, dtype)  # sharded as g is


def _to_trees(rows, inner, outer):
  """[what the coordinates of a leaf remember] -> trees like the parameters."""
  columns = (
    zip(*map(jax.tree.leaves, rows)) if rows else [()] * inner.num_leaves
  )
  return inner.unflatten([outer.unflatten(column) for column in columns])


def _from_trees(state, inner, outer):
  """The inverse of `_to_trees`."""
  columns = map(outer.flatten_up_to, inner.flatten_up_to(state))
  rows = zip(*columns) if inner.num_leaves else [()] * outer.num_leaves
  return [inner.unflatten(row) for row in rows]


def _ravel(tree, dtype):
  """All coordinates as one axis [n]."""
  leaves = jax.tree.leaves(jax.tree.map(_array, tree))
  leaves = [jnp.ravel(x).astype(dtype) for x in leaves]
  return jnp.concatenate(leaves) if leaves else jnp.zeros(0, dtype)


def _unravel(vector, like):
  """The inverse of `_ravel`, in shapes and types of `like`."""
  leaves, structure = jax.tree.flatten(like)
  ends = np.cumsum([np.size(x) for x in leaves])[:-1]
  parts = zip(jnp.split(vector, ends), leaves)
  parts = [x.reshape(np.shape(y)).astype(jnp.result_type(y)) for x, y in parts]
  return structure.unflatten(parts if leaves else [])


class _Rule(NamedTuple):
  """What a theta makes of features and cell.

  Attributes:
    start: x [*s] -> what its coordinates remember at first.
    move: g [*s], x [*s] or None, what they remember, value -> delta [*s], what
      they remember.
    dtype: of theta, and so of all computations.
  """

  start: Callable
  move: Callable
  dtype: jnp.dtype


def _rule(features, cell, theta, state_dtype):
  weights = jax.tree.leaves(theta)
  dtype = jnp.result_type(*weights) if weights else jnp.float32

  def seen(x):
    """In theta's type, 0 where it is not finite."""
    x = jnp.asarray(x).astype(dtype)
    return jnp.where(jnp.isfinite(x), x, 0)

  def start(x):
    x = seen(x)
    memory = each(features.init, x.ndim)(x)
    if cell.communicates:
      state = cell.initial_state(x.size)
      return WholeState((memory,), (_cast(state, state_dtype or dtype),))
    state = cell.initial_state(1) if cell.whole else cell.initial_state()
    box = lambda s: s.reshape(s.shape + (1,) * x.ndim)
    flat = lambda s: s[..., 0] if cell.whole else jnp.asarray(s)
    state = jax.tree.map(lambda s: box(flat(s)), state)  # [H, 1, ...]
    # [H, *s], made of x to be where x is.  x is finite, so this adds 0, but
    # the compiler does not know and keeps the sharding; 0 x it would drop.
    follow = lambda s: s + (x != x).astype(s.dtype)
    memory, state = jax.tree.map(follow, (memory, state))
    return CoordinatewiseState((memory,), (_cast(state, state_dtype or dtype),))

  def move(g, x, old, value):
    check_shape('parameter', np.shape(g if x is None else x), g.shape)
    for s in [] if cell.communicates else jax.tree.leaves(old):
      check_shape('state', s.shape[s.ndim - g.ndim :], g.shape)
    if value is not None:
      value = _of_each(value, g, dtype)
    g, x = seen(g), seen(g if x is None else x)
    memory, inputs = each(features.update, g.ndim)(old.memory[0], x, g, value)
    inputs = inputs.astype(dtype)  # [F, *s]
    state = _cast(old.cell[0], dtype)
    if cell.whole:
      delta, state = cell.step(theta, inputs, state)
    else:
      step = functools.partial(cell.step, theta)
      delta, state = each(step, g.ndim)(inputs, state)
    new = type(old)((memory,), (state,))
    return delta, jax.tree.map(lambda a, b: a.astype(b.dtype), new, old)

  return _Rule(start, move, dtype)


def leaf_by_leaf(start: Callable, move: Callable):
  """init and update of a rule that looks at one leaf at a time.

  Args:
    start: x -> what is remembered of a leaf at first; its structure is the same
      for all leaves.
    move: g, x or None, what is remembered, **extra_args -> the update of the
      leaf, what is remembered.

  Returns:
    (init, update) of an optax transformation.
  """

  def inner():
    """Structure of what is remembered of a leaf."""
    return jax.tree.structure(jax.eval_shape(start, jnp.zeros(())))

  def init(params):
    check_real(params, 'parameter')
    leaves, outer = jax.tree.flatten(params)
    leaves = list(map(_array, leaves))
    return _to_trees(list(map(start, leaves)), inner(), outer)

  def update(updates, state, params=None, **extra_args):
    check_real(updates, 'gradient')
    trees = inner().flatten_up_to(state)
    like = updates if params is None else params
    outer = jax.tree.structure(trees[0] if trees else like)
    rows = _from_trees(state, inner(), outer)
    gs = _flatten_as(outer, updates, 'gradients')
    xs = _flatten_as(outer, like, 'parameters')
    deltas = [None] * len(gs)
    for i, (g, x, row) in enumerate(zip(gs, xs, rows, strict=True)):
      if g is not None:  # None: a frozen parameter
        g, x = jnp.asarray(g), None if params is None else x
        delta, rows[i] = move(g, x, row, **extra_args)
        deltas[i] = delta.astype(g.dtype)
    return outer.unflatten(deltas), _to_trees(rows, inner(), outer)

  return init, update


def _all_at_once(rule):
  """init and update for coordinates that communicate: one axis of all."""

  def init(params):
    check_real(params, 'parameter')
    return rule.start(_ravel(params, rule.dtype))

  def update(updates, state, params, value):
    check_real(updates, 'gradient')
    g = _ravel(updates, rule.dtype)
    x = None if params is None else _ravel(params, rule.dtype)
    shapes = lambda tree: jax.tree.map(jnp.shape, tree)
    if shapes(jax.eval_shape(rule.start, g)) != shapes(state):
      raise ValueError(
        f'coordinatewise: the gradients have {g.size} coordinates, the state '
        'is of another number'
      )
    delta, state = rule.move(g, x, state, value)
    return _unravel(delta, updates), state

  return init, update


def coordinatewise(
  features: Features, cell: Cell, state_dtype: jnp.dtype | None = None
) -> LearnedOptimizer:
  """Runs one cell on every coordinate: shared weights, separate state.

      delta_i, state_i = cell(theta, features(x_i, g_i, f), state_i)
      x_i <- x_i + delta_i

  (Andrychowicz et al., section 2.1.)  Permuting coordinates permutes updates.
  The leaves of the parameters keep their shapes, and so their sharding; a leaf
  of shape [*s] has cell state [H, *s].  Computations are in theta's type, the
  updates in the gradients'.  `None` and empty leaves pass through.

  A gradient that is not finite is seen as 0, and so is a parameter: the
  coordinate goes on as its memory tells it, its state and update stay finite,
  and no other coordinate notices.

  A cell that communicates gets the coordinates of all leaves as one axis.

  Args:
    features: what the cell sees.
    cell: what it computes.
    state_dtype: type that the cell's state is stored in between steps, for
      example `jnp.bfloat16` for half the memory; theta's by default.

  Returns:
    A LearnedOptimizer; `transform(theta).update` takes `value=f(x)` where the
    features need it and accepts any further keyword.  It raises a TypeError
    that names what the features need and were not given, or a leaf that is not
    real, and a ValueError for gradients of another structure than the state's.

  Raises:
    ValueError: a cell communicates and is not whole.
  """
  if cell.communicates and not cell.whole:
    raise ValueError('coordinatewise: a cell that communicates must be whole')

  def transform(theta):
    rule = _rule(features, cell, theta, state_dtype)
    apart = lambda rule: leaf_by_leaf(rule.start, rule.move)
    init, move = (_all_at_once if cell.communicates else apart)(rule)

    def update(updates, state, params=None, *, value=None, **extra_args):
      del extra_args
      _check_given(features.needs, params=params, value=value)
      return move(updates, state, params, value=value)

    return optax.GradientTransformationExtraArgs(init, update)

  return LearnedOptimizer(
    init=lambda key: cell.init(key, features.size),
    transform=transform,
    communicates=cell.communicates,
  )
