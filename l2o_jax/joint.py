"""From one cell for all coordinates at once to an optax optimizer."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from l2o_jax.base import Cell, Features, LearnedOptimizer


class JointState(NamedTuple):
  """Of the features, for a vector of n coordinates, and of the cell."""

  memory: chex.ArrayTree
  cell: chex.ArrayTree


def joint(
  features: Features, cell: Cell, num_coordinates: int
) -> LearnedOptimizer:
  """One cell sees all coordinates and moves all (Li & Malik 2016, section 4).

      Δx [n] = cell(theta, (features(x_i, g_i, f), i = 1 ... n), state)

  For functions of a few parameters: theta is made for n coordinates, and
  permuting them is another problem.  The cell's input is feature-major: the
  first feature of all coordinates, then the second.  Gradients and parameters
  that are not finite are seen as 0.

  Args:
    features: what is seen of each coordinate.
    cell: with F · n inputs and n outputs, such as `mlp_cell(outputs=n)`.
    num_coordinates: n.

  Returns:
    A LearnedOptimizer; `transform(theta).init` raises a ValueError for another
    number of coordinates.
  """

  def init(key):
    return cell.init(key, features.size * num_coordinates)

  def vector(tree):
    leaves = [jnp.ravel(x).astype(jnp.float32) for x in jax.tree.leaves(tree)]
    x = jnp.concatenate(leaves) if leaves else jnp.zeros(0)
    return jnp.where(jnp.isfinite(x), x, 0)

  def transform(theta):
    def init(params):
      x = vector(params)
      if x.size != num_coordinates:
        raise ValueError(
          f'joint: theta is for {num_coordinates} coordinates, got {x.size}'
        )
      return JointState(features.init(x), cell.initial_state())

    def update(updates, state, params=None, *, value=None, **extra_args):
      del extra_args
      g = vector(updates)
      x = jnp.zeros_like(g) if params is None else vector(params)
      memory, seen = features.update(state.memory, x, g, value)
      delta, cell_state = cell.step(theta, jnp.ravel(seen.T), state.cell)
      leaves, structure = jax.tree.flatten(updates)
      ends = [sum(y.size for y in leaves[: i + 1]) for i in range(len(leaves))]
      parts = [
        part.reshape(y.shape).astype(y.dtype)
        for part, y in zip(jnp.split(delta, ends[:-1]), leaves, strict=True)
      ]
      return structure.unflatten(parts), JointState(memory, cell_state)

    return optax.GradientTransformationExtraArgs(init, update)

  return LearnedOptimizer(init, transform)
