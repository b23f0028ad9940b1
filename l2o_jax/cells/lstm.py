"""The LSTM cell of Andrychowicz et al. (section 2.1 and appendix D)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from l2o_jax.base import Cell
from l2o_jax.cells.layers import linear, linear_init, truncated_normal
from l2o_jax.checks import at_least, finite, given, positive, require
from l2o_jax.cpu import sigmoid, tanh


def lstm_layer_init(key, num_inputs: int, hidden: int):
  """{'w': [F + H, 4H], 'b': [4H]}, see `truncated_normal`."""
  fan_in = num_inputs + hidden
  key_w, key_b = jax.random.split(key)
  w = truncated_normal(key_w, fan_in, (fan_in, 4 * hidden))
  return {'w': w, 'b': truncated_normal(key_b, fan_in, (4 * hidden,))}


def lstm_layer(theta, x, state):
  """One LSTM layer with forget gates.

      i, j, f, o = w^T [x, h] + b
      c' = sigmoid(f + 1) c + sigmoid(i) tanh(j)
      h' = sigmoid(o) tanh(c')

  Args:
    theta: {'w': [F + H, 4H], 'b': [4H]}; columns in the order i, j, f, o.
    x: [F, ...], with the coordinates' axes last.
    state: (h [H, ...], c [H, ...]).

  Returns:
    (h' [H, ...], c' [H, ...]).
  """
  h, c = state
  gates = linear(theta, jnp.concatenate([x, h]))  # [F + H, ...] -> [4H, ...]
  i, j, f, o = jnp.split(gates, 4)  # [H, ...] each
  c = sigmoid(f + 1) * c + sigmoid(i) * tanh(j)
  return sigmoid(o) * tanh(c), c


def _average(h, count):
  """Global averaging: the first `count` rows of h [H, n] -> their means."""
  mean = jnp.mean(h[:count], axis=-1, keepdims=True)  # [count, 1]
  mean = jnp.broadcast_to(mean, h[:count].shape)
  return jnp.concatenate([mean, h[count:]])


def lstm_layers(layers, x, state, averaged: int = 0):
  """LSTM layers, one on the other; see `lstm_layer` and `lstm_cell`.

  Args:
    layers: theta of each layer.
    x: [F, ...]; with averaging [F, n].
    state: ((h [H, ...], c [H, ...]), ...) of the layers.
    averaged: how many outputs h of each layer are replaced by their means.

  Returns:
    (h [H, ...] of the last layer, or x if there is none; new state).
  """
  new_state = []
  for layer, layer_state in zip(layers, state, strict=True):
    x, c = lstm_layer(layer, x, layer_state)  # [H, ...], [H, ...]
    x = _average(x, averaged) if averaged else x
    new_state.append((x, c))
  return x, tuple(new_state)


def lstm_state(hidden: Sequence[int], n: int):
  """The state of `lstm_layers` at the start: zeros, H units a layer."""
  return tuple((jnp.zeros((h, n)), jnp.zeros((h, n))) for h in hidden)


def lstm_cell(
  hidden: Sequence[int] = (20, 20),
  scale: float = 0.1,
  averaged: int = 0,
  *,
  bounded: bool = False,
  projection: int | None = None,
) -> Cell:
  """A stack of LSTM layers and a linear layer that emits the step.

      delta = scale (w^T h_L + b)

  The step is added to the parameter, so the cell itself learns the minus sign.
  With `hidden=()` it reduces to a linear function of the features.

  Args:
    hidden: H of each layer; (20, 20) in all experiments of the paper.
    scale: factor of the output.  The paper has 0.1 on MNIST and 1 on
      quadratics, the released code 0.01.
    averaged: number of global averaging cells per layer (appendix D): the first
      `averaged` outputs h are replaced by their means over all coordinates,
      both for the layer above and for the recurrence.  The coordinates then
      communicate.  0 is the plain LSTM.
    bounded: the step is scale tanh(w^T h_L + b), never longer than `scale`
      (RNNprop, Lv et al. 2017).
    projection: units of a linear layer with ELU between the features and the
      first LSTM layer; 20 in RNNprop.  None: no such layer.

  Returns:
    A whole Cell with theta {'lstm': [{'w', 'b'}, ...], 'linear': {'w', 'b'}},
    and 'projection': {'w', 'b'} if there is one, and state
    ((h [H, ...], c [H, ...]), ...).

  Raises:
    ValueError: a layer size is not positive, the scale not finite, or
      `averaged` no whole number >= 0 or larger than a layer.
  """
  hidden = tuple(hidden)
  positive('lstm_cell', hidden=hidden, **given(projection=projection))
  at_least(0, 'lstm_cell', averaged=averaged)
  finite('lstm_cell', scale=scale)
  within = f'lstm_cell: averaged must fit the layers {hidden}, got {averaged}'
  require(averaged <= min(hidden, default=0), within)

  def init(key, num_features):
    theta = {}
    if projection is not None:
      key, key_first = jax.random.split(key)
      theta['projection'] = linear_init(key_first, num_features, projection)
      num_features = projection
    keys = jax.random.split(key, len(hidden) + 1)
    sizes = (num_features, *hidden)
    theta['lstm'] = list(map(lstm_layer_init, keys, sizes, hidden))
    theta['linear'] = linear_init(keys[-1], sizes[-1], 1)
    return theta

  def initial_state(n):
    return lstm_state(hidden, n)

  def step(theta, x, state):
    if projection is not None:
      x = jax.nn.elu(linear(theta['projection'], x))
    h, state = lstm_layers(theta['lstm'], x, state, averaged)
    delta = linear(theta['linear'], h)[0]  # [1, ...] -> [...]
    delta = tanh(delta) if bounded else delta
    return scale * delta, state

  return Cell(init, initial_state, step, whole=True, communicates=averaged > 0)
