"""From one leaf to a tree of leaves, with the state that optax expects.

What an optimizer remembers of the leaves is kept in trees like the parameters,
as Adam keeps its moments.  None, masked and empty leaves pass through; a leaf
that cannot be optimized is refused by name.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np


def _array(x):
  """A leaf of the parameters as an array; zeros for a ShapeDtypeStruct."""
  is_struct = isinstance(x, jax.ShapeDtypeStruct)
  return jnp.zeros_like(x) if is_struct else jnp.asarray(x)


def check_real(tree, what: str):
  """Raises a TypeError that names the first leaf that is not floating-point."""
  for path, x in jax.tree.leaves_with_path(tree):
    dtype = x.dtype if hasattr(x, 'dtype') else jnp.result_type(x)
    if not jnp.issubdtype(dtype, jnp.floating):
      name = jax.tree_util.keystr(path) or 'array'
      kind = 'float0' if dtype == jax.dtypes.float0 else dtype.name
      raise TypeError(
        f'coordinatewise: the {what} {name} is {kind}, not real '
        'floating-point numbers'
      )


def _flatten_as(outer, tree, what):
  """Leaves of a tree like the parameters; None for a frozen leaf."""
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


def _to_trees(rows, inner, outer):
  """[what each leaf's coordinates remember] -> trees like the parameters."""
  columns = (
    zip(*map(jax.tree.leaves, rows)) if rows else [()] * inner.num_leaves
  )
  return inner.unflatten([outer.unflatten(column) for column in columns])


def _from_trees(state, inner, outer):
  """The inverse of `_to_trees`."""
  columns = map(outer.flatten_up_to, inner.flatten_up_to(state))
  rows = zip(*columns) if inner.num_leaves else [()] * outer.num_leaves
  return [inner.unflatten(row) for row in rows]


def ravel(tree, dtype):
  """All coordinates of a tree as one array [n]."""
  leaves = jax.tree.leaves(jax.tree.map(_array, tree))
  leaves = [jnp.ravel(x).astype(dtype) for x in leaves]
  return jnp.concatenate(leaves) if leaves else jnp.zeros(0, dtype)


def unravel(vector, like):
  """The inverse of `ravel`, with the shapes and types of `like`."""
  leaves, structure = jax.tree.flatten(like)
  ends = np.cumsum([np.size(x) for x in leaves])[:-1]
  parts = zip(jnp.split(vector, ends), leaves)
  parts = [x.reshape(np.shape(y)).astype(jnp.result_type(y)) for x, y in parts]
  return structure.unflatten(parts if leaves else [])


def leaf_by_leaf(start: Callable, move: Callable):
  """init and update of an update rule that looks at one leaf at a time.

  Args:
    start: x [*s] -> what is remembered of the leaf at first; its structure is
      the same for all leaves.
    move: g [*s], x [*s] or None, what is remembered, **extra_args -> the update
      [*s] of the leaf, what is remembered now.

  Returns:
    (init, update) for an optax transformation.
  """

  def inner():
    """The structure of what is remembered of one leaf."""
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
