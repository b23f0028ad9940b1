"""The LSTM cell of Andrychowicz et al. (section 2.1 and appendix D)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from l2o_jax.base import Cell
from l2o_jax.cpu import sigmoid, tanh


def lstm_layer_init(key, num_inputs: int, hidden: int):
  """{'w': [F + H, 4H], 'b': [4H]}, truncated normal of std 1/sqrt(F + H)."""
  std = (num_inputs + hidden) ** -0.5
  key_w, key_b = jax.random.split(key)
  shape = (num_inputs + hidden, 4 * hidden)
  return {
    'w': std * jax.random.truncated_normal(key_w, -2, 2, shape),
    'b': std * jax.random.truncated_normal(key_b, -2, 2, shape[1:]),
  }


def affine(theta, *inputs):
  """w^T [inputs] + b for one coordinate: [F_1], [F_2], ... -> [K].

  Under `vmap` with the coordinates as the trailing axis, everything stays
  [K, n]: one plain matrix product and no transposition, which on a CPU halves
  the time of a meta-gradient.  For that the bias is a product too, with a one
  that is mapped like the inputs (adding an unmapped [K] to a mapped [K, n]
  would make `vmap` move the coordinates to the front), the inputs are stacked
  by `pad` (`concatenate` would move them likewise), and an input of one row,
  an outer product, stays out of the stack.
  """
  one = 1 + 0 * jax.lax.stop_gradient(inputs[-1][:1])
  total, row = theta['b'][:, None] @ one, 0
  tall = []
  for x in inputs:
    w = theta['w'][row : row + len(x)]
    row += len(x)
    if len(x) == 1:
      total += w.T @ x
    else:
      tall.append((w, x))
  if tall:
    weights, columns = zip(*tall)
    total += jnp.concatenate(weights).T @ _stack(columns)
  return total


def _stack(columns):
  """[F_1], [F_2], ... -> [F_1 + F_2 + ...]."""
  size = sum(map(len, columns))
  total, row = 0, 0
  for x in columns:
    total += jax.lax.pad(
      x, jnp.zeros((), x.dtype), [(row, size - row - len(x), 0)]
    )
    row += len(x)
  return total


def lstm_layer(theta, x, state):
  """One LSTM layer with forget gates, for one coordinate.

      i, j, f, o = [x, h] w + b
      c' = sigmoid(f + 1) c + sigmoid(i) tanh(j)
      h' = sigmoid(o) tanh(c')

  Args:
    theta: {'w': [F + H, 4H], 'b': [4H]}; columns in the order i, j, f, o.
    x: [F].
    state: (h [H], c [H]).

  Returns:
    (h' [H], c' [H]).
  """
  h, c = state
  gates = affine(theta, x, h)
  i, j, f, o = jnp.split(gates, 4)
  c = sigmoid(f + 1) * c + sigmoid(i) * tanh(j)
  return sigmoid(o) * tanh(c), c


def linear_init(key, num_inputs: int):
  """{'w': [H, 1] truncated normal of std 1/sqrt(H), 'b': [1] zero}."""
  w = jax.random.truncated_normal(key, -2, 2, (num_inputs, 1))
  return {'w': num_inputs**-0.5 * w, 'b': jnp.zeros(1)}


def lstm_cell(
  hidden: Sequence[int] = (20, 20), scale: float = 0.1, averaged: int = 0
) -> Cell:
  """A stack of LSTM layers and a linear layer that emits the step.

      delta = scale (w^T h_L + b)

  The step is added to the parameter: the cell learns the minus sign itself.
  With `hidden=()` it reduces to a linear function of the features.

  Args:
    hidden: H of each layer; (20, 20) in all experiments of the paper.
    scale: factor of the output: 0.1 on MNIST, 1 on quadratics in the paper;
      0.01 in the released code.
    averaged: number of global averaging cells per layer (appendix D): the first
      `averaged` outputs h are replaced by their mean over all coordinates, both
      for the layer above and for the recurrence.  Such a cell needs the named
      axis 'coordinates': run it under `optax.flatten` (see `coordinatewise`).
      0 is the plain LSTM.

  Returns:
    Cell with theta {'lstm': [{'w', 'b'}, ...], 'linear': {'w', 'b'}} and state
    ((h [H], c [H]), ...).

  Raises:
    ValueError: a layer size is not positive, or averaged exceeds a layer.
  """
  hidden = tuple(hidden)
  if any(h < 1 for h in hidden):
    raise ValueError(f'lstm_cell: hidden must be positive, got {hidden}')
  if not 0 <= averaged <= min(hidden, default=0):
    raise ValueError(
      f'lstm_cell: averaged must lie between 0 and the smallest '
      f'layer of {hidden}, got {averaged}'
    )

  def init(key, num_features):
    keys = jax.random.split(key, len(hidden) + 1)
    sizes = (num_features,) + hidden
    return {
      'lstm': [
        lstm_layer_init(k, f, h) for k, f, h in zip(keys, sizes, hidden)
      ],
      'linear': linear_init(keys[-1], sizes[-1]),
    }

  def initial_state():
    return tuple((jnp.zeros(h), jnp.zeros(h)) for h in hidden)

  def step(theta, x, state):
    new_state = []
    for layer, layer_state in zip(theta['lstm'], state, strict=True):
      x, c = lstm_layer(layer, x, layer_state)
      if averaged:
        mean = jax.lax.pmean(x[:averaged], 'coordinates')
        x = jnp.concatenate([mean, x[averaged:]])
      new_state.append((x, c))
    delta = affine(theta['linear'], x)
    return scale * delta[0], tuple(new_state)

  return Cell(init, initial_state, step)
