"""A feed-forward net as the cell (Li & Malik 2016, section 4)."""

from collections.abc import Sequence

import jax

from l2o_jax.base import Cell
from l2o_jax.cells.layers import linear, linear_init
from l2o_jax.checks import finite, positive, require


def mlp_cell(
  hidden: Sequence[int] = (50,),
  scale: float = 1.0,
  coordinates: int | None = None,
) -> Cell:
  """Softplus layers, then a linear layer; no memory of its own.

      delta = scale (w_2^T log(1 + exp(w_1^T x + b_1)) + b_2)

  Args:
    hidden: units of each layer; (50,) in the paper.
    scale: factor of the output.
    coordinates: None: the net sees one coordinate.  n: one net for all n
      coordinates of a small function, as in the paper.  It has n outputs and
      F n inputs, which begin with the first feature of all coordinates.
      Permuting the coordinates then changes the problem.

  Returns:
    A whole Cell with theta {'hidden': [{'w', 'b'}, ...], 'linear': {'w', 'b'}}
    and state ().  With `coordinates`, its step raises a ValueError for any
    other number of coordinates.

  Raises:
    ValueError: a size is not positive, or the scale not finite.
  """
  hidden, outputs = tuple(hidden), 1 if coordinates is None else coordinates
  positive('mlp_cell', hidden=hidden, coordinates=outputs)
  finite('mlp_cell', scale=scale)

  def init(key, num_features):
    keys = jax.random.split(key, len(hidden) + 1)
    sizes = (num_features * outputs, *hidden, outputs)
    layers = list(map(linear_init, keys, sizes, sizes[1:]))
    return {'hidden': layers[:-1], 'linear': layers[-1]}

  def net(theta, x):  # [inputs, ...] -> [outputs, ...]
    for layer in theta['hidden']:
      x = jax.nn.softplus(linear(layer, x))
    return scale * linear(theta['linear'], x)

  def step(theta, x, state):
    if coordinates is None:
      return net(theta, x)[0], state
    made = f'mlp_cell: theta is for {coordinates} coordinates'
    require(x.shape[1:] == (coordinates,), f'{made}, got {x.shape[1:]}')
    return net(theta, x.reshape(-1)), state  # [F, n] -> [F n] -> [n]

  joint = coordinates is not None
  return Cell(init, lambda n: (), step, whole=True, communicates=joint)
