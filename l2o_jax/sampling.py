"""Random arrays that compile quickly."""

import math
from collections.abc import Callable, Sequence

import chex
import jax


def draw(
  sampler: Callable[..., chex.Array], key: chex.PRNGKey, shape: Sequence[int]
) -> chex.Array:
  """`sampler(key, shape)`: the same numbers, drawn as a vector.

  For 12,800 uniform numbers XLA compiles 0.3 s on a CPU, for the same numbers
  in the shape [128, 10, 10] 2.2 s.
  """
  return sampler(key, (math.prod(shape),)).reshape(shape)


def draw_all(
  sampler: Callable[..., chex.Array],
  keys: chex.PRNGKey,
  shapes: Sequence[Sequence[int]],
) -> list[chex.Array]:
  """`[sampler(key, shape), ...]`: the same numbers, drawn in one go.

  Each key draws as many numbers as the largest array has; the first ones are
  those that it would draw for its own shape.  Four normal draws for a small net
  compile in 2.2 s, this in 1.1 s.

  Args:
    sampler: such as `jax.random.normal`.
    keys: one for each array.
    shapes: of the arrays.
  """
  sizes = [math.prod(shape) for shape in shapes]
  drawn = jax.vmap(lambda key: sampler(key, (max(sizes),)))(keys)
  return [
    row[:size].reshape(shape)
    for row, size, shape in zip(drawn, sizes, shapes, strict=True)
  ]
