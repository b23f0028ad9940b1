"""From one leaf to a tree of leaves, with the state that optax expects.

What an optimizer remembers of the leaves is kept in trees like the parameters,
as Adam keeps its moments.  None, masked and empty leaves pass through; a leaf
that cannot be optimized is refused by name.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from l2o_jax.checks import require


def _array(x):
  """A leaf of the parameters as an array; zeros for a ShapeDtypeStruct."""
  is_struct = isinstance(x, jax.ShapeDtypeStruct)
  return jnp.zeros_like(x) if is_struct else jnp.asarray(x)


def check_real(tree, what: str):
  """Raises a TypeError that names the first leaf that is not floating-point."""
  for path, x in jax.tree.leaves_with_path(tree):
    name = jax.tree_util.keystr(path) or 'array'
    found = f'coordinatewise: the {what} {name} is'
    try:
      dtype = x.dtype if hasattr(x, 'dtype') else jnp.result_type(x)
    except TypeError:
      raise TypeError(f'{found} no array: {x!r:.80}') from None
    real = jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize >= 2
    kind = 'float0' if dtype == jax.dtypes.float0 else dtype.name
    wanted = 'not real floating-point numbers of 16 bits or more'
    require(real, f'{found} {kind}, {wanted}', TypeError)


def _flatten_as(outer, tree, what):
  """Leaves of a tree like the parameters; None for a frozen leaf."""
  try:
    leaves = outer.flatten_up_to(tree)
    fits = jax.tree_util.all_leaves([x for x in leaves if x is not None])
  except ValueError:
    fits = False
  found = f'the {what} are {jax.tree.structure(tree)}'
  require(fits, f'coordinatewise: the state is of parameters {outer}, {found}')
  return leaves


def check_shape(what: str, found, wanted):
  """Raises a ValueError unless what belongs to a leaf has the wanted shape."""
  wrong = f'the {what} of a leaf has shape {found}, expected {wanted}'
  require(found == wanted, f'coordinatewise: {wrong}')


def to_array(tree, batch=()):
  """All coordinates of a tree as one array, one function after another.

  Leaves [*batch, *s] -> [B n]; batch is () for one function, (B,) for several.
  """
  leaves = [_array(x) for x in jax.tree.leaves(tree)]
  if len(leaves) == 1:  # `blocks` gives a slice; B need not divide it
    return leaves[0].reshape(-1)
  parts = [x.reshape(*batch, -1) for x in leaves]
  return jnp.concatenate(parts or [jnp.zeros(0)], -1).reshape(-1)


def to_tree(array, like, batch=()):
  """The inverse of `to_array`, with structure, shapes and types of `like`."""
  leaves, structure = jax.tree.flatten(like)
  ends = np.cumsum([np.size(x) // math.prod(batch) for x in leaves])[:-1]
  whole = len(leaves) == 1
  parts = [array] if whole else jnp.split(array.reshape(*batch, -1), ends, -1)
  shaped = lambda a, x: a.reshape(np.shape(x)).astype(jnp.result_type(x))
  return structure.unflatten(map(shaped, parts, leaves))


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

  def structure():
    """The structure of what is remembered of one leaf."""
    return jax.tree.structure(jax.eval_shape(start, jnp.zeros(())))

  def to_trees(rows, outer):
    """What is remembered, from a row of arrays for each leaf."""
    inner = structure()
    columns = [[row[k] for row in rows] for k in range(inner.num_leaves)]
    return inner.unflatten(map(outer.unflatten, columns))

  def init(params):
    check_real(params, 'parameter')
    leaves, outer = jax.tree.flatten(params)
    return to_trees([jax.tree.leaves(start(_array(x))) for x in leaves], outer)

  def update(updates, state, params=None, **extra_args):
    check_real(updates, 'gradient')
    inner = structure()
    try:
      trees = inner.flatten_up_to(state)
    except ValueError:
      raise ValueError(
        f'coordinatewise: the state is not of this optimizer: {type(state)}; '
        'the order is update(gradients, state, params)'
      ) from None
    like = updates if params is None else params
    outer = jax.tree.structure(trees[0] if trees else like)
    columns = [outer.flatten_up_to(tree) for tree in trees]
    gs = _flatten_as(outer, updates, 'gradients')
    xs = _flatten_as(outer, like, 'parameters')

    def of_leaf(g, x, *row):
      if g is None:  # a frozen parameter
        return None, row
      frozen = params is not None and x is None
      require(not frozen, 'coordinatewise: a gradient for a parameter None')
      g, x = jnp.asarray(g), None if params is None else x
      delta, new = move(g, x, inner.unflatten(row), **extra_args)
      return delta.astype(g.dtype), jax.tree.leaves(new)

    found = [of_leaf(*leaf) for leaf in zip(gs, xs, *columns, strict=True)]
    deltas = outer.unflatten([delta for delta, _ in found])
    return deltas, to_trees([row for _, row in found], outer)

  return init, update
