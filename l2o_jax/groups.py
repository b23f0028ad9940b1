"""Coordinate groups, one theta for each, and their coordinates as vectors."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from l2o_jax.base import LearnedOptimizer
from l2o_jax.checks import require
from l2o_jax.leaves import to_array, to_tree


class Groups(NamedTuple):
  """How the parameters are divided into groups.

  Attributes:
    labels: a tree of names like the parameters, or a prefix of one; or a
      function params -> tree of names.
    names: the M names, in the order of the groups.
  """

  labels: Callable[[chex.ArrayTree], Any] | Any
  names: Sequence[str]


def by_label(labels) -> Groups:
  """Groups by a tree of names, in the order in which names first appear.

  Raises:
    ValueError: `labels` is a function; `Groups(labels, names)` takes one.
  """
  named = 'by_label: for a function of the parameters use Groups(labels, names)'
  require(not callable(labels), named)
  return Groups(labels, tuple(dict.fromkeys(jax.tree.leaves(labels))))


def grouped(learned: LearnedOptimizer, groups: Groups) -> LearnedOptimizer:
  """One theta per group of leaves, on `optax.partition`.

  Used where coordinates of different kinds need different rules: convolutional
  and fully connected weights (Andrychowicz et al., section 3.3), one policy per
  weight matrix and bias vector (Li & Malik 2017, section 3.4).

  Args:
    learned: the optimizer that every group runs with its own theta.
    groups: the groups of the parameters.

  Returns:
    A LearnedOptimizer with theta {name: theta of learned}.  With one group it
    reduces to `learned`.

  Raises:
    ValueError: there are no groups, or two have the same name; (from
      `transform`) theta is of other groups.
  """
  names = groups.names
  right = not isinstance(names, str) and 0 < len(names) == len(set(names))
  require(right, f'grouped: groups must be distinct names, got {names!r}')

  def init(key):
    keys = jax.random.split(key, len(names))
    return {name: learned.init(k) for name, k in zip(names, keys)}

  def transform(theta):
    named = isinstance(theta, Mapping)  # flax's FrozenDict is one
    parts = set(theta) if named else {type(theta).__name__}
    ask = f'grouped: theta must have the groups {sorted(names)}'
    require(parts == set(names), f'{ask}, got {sorted(parts)}')
    rules = {name: learned.transform(theta[name]) for name in names}
    opt = optax.partition(rules, groups.labels)

    def start(params):
      try:
        return opt.init(params)
      except ValueError:
        _label_tree(groups, params)  # the error in one line
        raise

    return opt._replace(init=start)

  return LearnedOptimizer(init, transform)


def sized(
  learned: LearnedOptimizer, groups: Groups, sizes: dict[str, int]
) -> LearnedOptimizer:
  """Shorter steps in leaves of more weights than in meta-training.

  In a leaf of n weights, whose group had leaves of n₀ weights in meta-training,
  steps are √((1 + n₀ / 1000) / (1 + n / 1000)) times as long.  So in large
  layers that are twice as wide they are half as long, as wide nets want them.
  On the nets of meta-training it reduces to `learned`.

  Args:
    learned: the optimizer.
    groups: the groups of the parameters.
    sizes: {name of a group: n₀ > 0}.  Leave a net's last layer out: its number
      of classes says nothing about how long steps should be.  Groups without a
      size keep their steps.

  Raises:
    ValueError: a size is not positive, or there is no group of that name.
  """
  right = isinstance(sizes, dict) and sizes.keys() <= set(groups.names)
  sane = lambda n: isinstance(n, int | float) and 0 < n < math.inf
  right = right and all(map(sane, sizes.values()))
  among = f'sized: sizes must be positive, of groups in {list(groups.names)}'
  require(right, f'{among}, got {sizes!r}')

  def of_leaf(u, name):
    n = sizes.get(name, u.size)
    return u * math.sqrt((1000 + n) / (1000 + u.size))

  def transform(theta):
    opt = learned.transform(theta)

    def update(updates, state, params=None, **extra_args):
      updates, state = opt.update(updates, state, params, **extra_args)
      names = _label_tree(groups, updates)
      return jax.tree.map(of_leaf, updates, names), state

    return opt._replace(update=update)

  # A trainer must not put the leaves into one array, and the call that built
  # `learned` does not build this.
  return LearnedOptimizer(learned.init, transform)


def _label_tree(groups, tree):
  """The names as a tree like the parameters."""
  labels = groups.labels(tree) if callable(groups.labels) else groups.labels
  name_all = lambda name, part: jax.tree.map(lambda _: name, part)
  try:
    return jax.tree.map(name_all, labels, tree)
  except ValueError:
    found = jax.tree.structure(tree)
    raise ValueError(
      f'groups: labels do not fit the leaves: labels are {labels!r:.200}, '
      f'parameters are {found!s:.200}'
    ) from None


def _labels(groups, tree):
  """The name of every leaf."""
  names = jax.tree.leaves(_label_tree(groups, tree))
  unknown = set(names) ^ set(groups.names)
  require(not unknown, f'groups: labels and names differ: {sorted(unknown)}')
  return names


def _of_groups(groups, tree):
  """[leaves of each group]."""
  labels, leaves = _labels(groups, tree), jax.tree.leaves(tree)
  of = lambda name: [x for label, x in zip(labels, leaves) if label == name]
  return [of(name) for name in groups.names]


def split(groups: Groups, tree: chex.ArrayTree) -> list[chex.Array]:
  """The coordinates of each group, [n_m] in the order of the leaves."""
  return [to_array(leaves) for leaves in _of_groups(groups, tree)]


def merge(groups: Groups, vectors, like: chex.ArrayTree) -> chex.ArrayTree:
  """The inverse of `split`, with structure, shapes and dtypes of `like`."""
  parts = map(to_tree, vectors, _of_groups(groups, like))  # leaves of each
  parts = dict(zip(groups.names, parts, strict=True))
  leaves = [parts[label].pop(0) for label in _labels(groups, like)]
  return jax.tree.structure(like).unflatten(leaves)


def sample(groups: Groups, tree, key, count: int) -> list[chex.Array]:
  """Random indices [count] into each group's vector, without replacement.

  A group with fewer coordinates repeats them.
  """

  def of_group(m, size):
    if size <= count:
      return jnp.arange(count) % size
    drawn = jax.random.uniform(jax.random.fold_in(key, m), (size,))
    return jax.lax.top_k(-drawn, count)[1]

  return [of_group(m, x.size) for m, x in enumerate(split(groups, tree))]
