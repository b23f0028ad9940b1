"""Random arrays that compile quickly."""

import math
from collections.abc import Callable, Sequence

import chex


def draw(sampler: Callable[..., chex.Array], key: chex.PRNGKey,
         shape: Sequence[int]) -> chex.Array:
  """`sampler(key, shape)`: the same numbers, drawn as a vector.

  For 12,800 uniform numbers XLA compiles 0.3 s on a CPU, for the same numbers
  in the shape [128, 10, 10] 2.2 s.
  """
  return sampler(key, (math.prod(shape),)).reshape(shape)
