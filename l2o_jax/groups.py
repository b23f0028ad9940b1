"""Coordinate groups: the leaves of one label as one vector."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from l2o_jax.sampling import draw_all


class Groups(NamedTuple):
  """How parameters fall into groups.

  Attributes:
    label_fn: params -> tree of names (or a prefix of it), as for `grouped`.
    names: all names; M of them.
  """

  label_fn: Callable[[chex.ArrayTree], Any]
  names: Sequence[str]


def _labels(groups, tree):
  labels = jax.tree.leaves(
    jax.tree.map(
      lambda name, part: jax.tree.map(lambda _: name, part),
      groups.label_fn(tree),
      tree,
    )
  )
  unknown = set(labels) ^ set(groups.names)
  if unknown:
    raise ValueError(f'groups: labels and names differ: {sorted(unknown)}')
  return labels


def split(groups: Groups, tree: chex.ArrayTree) -> list[chex.Array]:
  """The coordinates of each group, [n_m] in the order of the leaves."""
  labels, leaves = _labels(groups, tree), jax.tree.leaves(tree)
  return [
    jnp.concatenate(
      [jnp.ravel(x) for label, x in zip(labels, leaves) if label == name]
    )
    for name in groups.names
  ]


def merge(
  groups: Groups, vectors: list[chex.Array], like: chex.ArrayTree
) -> chex.ArrayTree:
  """The inverse of `split`; `like` gives structure, shapes and dtypes."""
  labels, (leaves, structure) = _labels(groups, like), jax.tree.flatten(like)
  used = dict.fromkeys(groups.names, 0)
  merged = []
  for label, leaf in zip(labels, leaves):
    vector = vectors[list(groups.names).index(label)]
    start = used[label]
    used[label] += leaf.size
    part = vector[start : start + leaf.size]
    merged.append(part.reshape(leaf.shape).astype(leaf.dtype))
  return structure.unflatten(merged)


def sample(
  groups: Groups, tree: chex.ArrayTree, key: chex.PRNGKey, count: int
) -> list[chex.Array]:
  """Indices [count] into each group's vector, without replacement.

  A group of fewer coordinates shows some of them several times.
  """
  sizes = [x.size for x in split(groups, tree)]
  large = [m for m, size in enumerate(sizes) if size > count]
  indices = [jnp.arange(count) % size for size in sizes]
  if large:
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.array(large))
    draws = draw_all(jax.random.uniform, keys, [(sizes[m],) for m in large])
    for m, drawn in zip(large, draws, strict=True):
      indices[m] = jax.lax.top_k(-drawn, count)[1]
  return indices
