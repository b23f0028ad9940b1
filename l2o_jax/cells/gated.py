"""An LSTM that corrects Adam: a direction, and a gate on its length."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from l2o_jax.base import Cell
from l2o_jax.cells.layers import linear, truncated_normal
from l2o_jax.cells.lstm import lstm_layer, lstm_layer_init
from l2o_jax.checks import positive
from l2o_jax.cpu import sigmoid, tanh


def gated_cell(
  hidden: Sequence[int] = (8,), scale: float = 0.1, rate: float = 0.03
) -> Cell:
  r"""LSTM layers, then a bounded step from what they and the features say.

      (d, m) = w^T [h_L, x] + b
      delta = -scale tanh(d) σ(m)

  No step is longer than `scale`, and the gate σ can make it shorter by orders
  of magnitude: where m is negative, σ(m) is nearly exp(m).  m is linear in the
  features, so with a feature log(1 + t / age) the length of steps can fall as a
  power of time, at any t.

  Made for `adam_ratios` with an age.  At the start theta is nearly Adam with a
  rate that falls as the root of time: d is the first feature, m the last one
  times -1/2, and scale σ(m) is `rate` at t = 0.  This nominal term (Harrison et
  al. 2022) is part of theta and trained with it.

  Args:
    hidden: H of each LSTM layer.
    scale: bound of a step, in units of the parameters.
    rate: length of a step of size 1 at the start, 0 < rate < scale.

  Returns:
    A whole Cell with theta {'lstm': [{'w', 'b'}, ...], 'linear': {'w': [H + F,
    2], 'b': [2]}} and state ((h [H, ...], c [H, ...]), ...).

  Raises:
    ValueError: a layer size is not positive, or the rate is out of bounds.
  """
  hidden = tuple(hidden)
  positive('gated_cell', hidden=min(hidden, default=1))
  if not 0 < rate < scale:
    raise ValueError(f'gated_cell: rate must be in (0, {scale}), got {rate!r}')

  def init(key, num_features):
    keys = jax.random.split(key, len(hidden) + 1)
    sizes = (num_features,) + hidden
    layers = list(map(lstm_layer_init, keys, sizes, hidden))
    of_h = 0.1 * truncated_normal(keys[-1], sizes[-1], (sizes[-1], 2))
    of_h = of_h if hidden else jnp.zeros((0, 2))
    of_x = jnp.zeros((num_features, 2)).at[0, 0].set(1.0).at[-1, 1].set(-0.5)
    bias = jnp.array([0.0, jnp.log(rate / (scale - rate))])
    readout = {'w': jnp.concatenate([of_h, of_x]), 'b': bias}
    return {'lstm': layers, 'linear': readout}

  def initial_state(n):
    return tuple((jnp.zeros((h, n)), jnp.zeros((h, n))) for h in hidden)

  def step(theta, x, state):
    h, new_state = x[:0] if not hidden else x, []
    for layer, layer_state in zip(theta['lstm'], state, strict=True):
      h, c = lstm_layer(layer, h, layer_state)  # [H, ...], [H, ...]
      new_state.append((h, c))
    d, m = linear(theta['linear'], jnp.concatenate([h, x]))  # [2, ...]
    return -scale * tanh(d) * sigmoid(m), tuple(new_state)

  return Cell(init, initial_state, step, whole=True)
