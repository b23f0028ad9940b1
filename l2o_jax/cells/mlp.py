"""A feed-forward net as the cell (Li & Malik 2016, section 4)."""

from collections.abc import Sequence

import jax

from l2o_jax.base import Cell
from l2o_jax.cells.lstm import affine, linear_init


def _layer_init(key, fan_in, fan_out):
  w = jax.random.truncated_normal(key, -2, 2, (fan_in, fan_out))
  return {'w': fan_in**-0.5 * w, 'b': jax.numpy.zeros(fan_out)}


def mlp_cell(
  hidden: Sequence[int] = (50,), scale: float = 1.0, outputs: int | None = None
) -> Cell:
  """Softplus layers and a linear layer; no memory of its own.

      delta = scale (w_2^T log(1 + exp(w_1^T x + b_1)) + b_2)

  Args:
    hidden: units of each layer; (50,) in the paper.
    scale: factor of the output.
    outputs: None: one step, for `coordinatewise`.  A: a vector [A], for
      `joint`.

  Returns:
    Cell with theta {'hidden': [{'w', 'b'}, ...], 'linear': {'w', 'b'}} and
    state ().

  Raises:
    ValueError: a size is not positive.
  """
  hidden = tuple(hidden)
  if min(hidden + (outputs or 1,)) < 1:
    raise ValueError(
      f'mlp_cell: sizes must be positive, got {hidden} and {outputs}'
    )

  def init(key, num_features):
    keys = jax.random.split(key, len(hidden) + 1)
    sizes = (num_features,) + hidden
    last = (
      linear_init(keys[-1], sizes[-1])
      if outputs is None
      else _layer_init(keys[-1], sizes[-1], outputs)
    )
    return {
      'hidden': [_layer_init(k, f, h) for k, f, h in zip(keys, sizes, hidden)],
      'linear': last,
    }

  def step(theta, x, state):
    for layer in theta['hidden']:
      x = jax.nn.softplus(affine(layer, x))
    delta = scale * affine(theta['linear'], x)
    return (delta[0] if outputs is None else delta), state

  return Cell(init, lambda: (), step)
