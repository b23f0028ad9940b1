"""A gate on the length of Adam's steps, learned; signs do not matter to it."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp

from l2o_jax.base import Cell
from l2o_jax.cells.layers import truncated_normal
from l2o_jax.cells.lstm import lstm_layer, lstm_layer_init
from l2o_jax.checks import (
  above_zero,
  at_least,
  finite,
  positive,
  require,
  traced,
)
from l2o_jax.cpu import tanh


def _even(x, even):
  """What does not change with the sign of a coordinate.

  |x_i|, then x_i x_j for i < j, all through tanh, then the last `even` features
  as they are: [F, ...] -> E = R (R + 1) / 2 + even arrays [...], R = F - even.
  """
  ratios, rest = x[:-even], x[-even:]
  products = [a * b for a, b in itertools.combinations(ratios, 2)]
  return [*map(tanh, [*map(jnp.abs, ratios), *products]), *rest]


def _weighted(w, x):
  """Σ w_k x_k; a matrix product would be one more pass through memory."""
  return sum(w_k * x_k for w_k, x_k in zip(w, x, strict=True))


def gated_cell(
  hidden: int = 8,
  scale: float = 0.3,
  rate: float = 0.03,
  direction: int = 0,
  even: int = 1,
  slope: float = 1.0,
  trust: float = 0.0,
  shrink: float = 0.0,
  length: float = 0.0,
) -> Cell:
  r"""Adam's direction, and a learned gate on the length of the step.

      d = slope w^T x
      m = u^T [h, e] + b,   h from an LSTM layer of H units that sees e
      delta = -scale tanh(d) σ(m)

  e holds what does not change when the sign of the coordinate is flipped:
  tanh|x_i|, tanh(x_i x_j), and the last features, which are even.  Flipping a
  coordinate's sign therefore flips the sign of its step, whatever theta is.  No
  step is longer than `scale`, and the gate σ can make it shorter by orders of
  magnitude: where m is negative, σ(m) is nearly exp(m).  With a feature log(1 +
  t / age) the length of steps can fall as a power of time, at any t.

  Made for `adam_ratios` with an age.  At the start theta is Adam with a rate
  that falls as the root of time: w^T x is one feature, m the last one times
  -1/2 plus b, and scale slope σ(m) is `rate` at t = 0, but for what an LSTM and
  `trust` add.  This nominal term (Harrison et al. 2022) is part of theta and
  trained with it.

  Args:
    hidden: H; 0: no LSTM.
    scale: bound of a step, in units of the parameters.
    rate: at the start the step is -rate times that feature, where the feature
      is small; 0 < rate < scale slope.
    direction: which of the F - even first features is d at the start, as an
      index.
    even: how many features, the last, do not change with the coordinate's sign,
      >= 1.
    slope: > 0; tanh bends where w^T x is 1 / slope.
    trust: weight of tanh|x_0| in m at the start: where gradients agree over
      time, steps are longer.
    shrink: minus the weight of the last feature but one in m at the start: with
      log(1 + n / size), n the coordinates of the leaf, its steps fall as
      n^-shrink.
    length: weight of the last feature but two in m at the start; 1 with ℓ of
      `adam_ratios`: steps are about exp(ℓ) times as long.

  Returns:
    A whole Cell with theta {'lstm': [{'w', 'b'}], 'direction': [F - even],
    'gate': {'w': [H + E, 1], 'b': [1]}}, E the size of e, and state
    ((h [H, ...], c [H, ...]),); without an LSTM 'lstm' is [] and the state ().

  Raises:
    ValueError: H is no whole number >= 0, the rate is out of bounds, `even` is
      not positive, or (from `init`) all features are even or none is
      `direction`.
  """
  at_least(0, 'gated_cell', hidden=hidden)
  positive('gated_cell', even=even)
  above_zero('gated_cell', slope=slope)
  finite('gated_cell', trust=trust, shrink=shrink, length=length)
  within = f'gated_cell: rate must be in (0, {scale * slope}), got {rate!r}'
  known = traced(rate, scale, slope) or 0 < rate < scale * slope < math.inf
  require(known, within)
  for least, name, weight in (2, 'shrink', shrink), (3, 'length', length):
    needs = f'gated_cell: {name} {weight!r} needs {least} even features'
    unused = not traced(weight) and weight == 0
    require(unused or even >= least, f'{needs}, got {even!r}')

  def init(key, num_features):
    ratios = num_features - even
    enough = f'gated_cell: needs more than {even} features, got {num_features}'
    require(ratios > 0, enough)
    among = f'gated_cell: direction must be one of {ratios} features'
    require(-ratios <= direction < ratios, f'{among}, got {direction}')
    key_lstm, key_h = jax.random.split(key)
    size = ratios * (ratios + 1) // 2 + even  # E
    lstm = [lstm_layer_init(key_lstm, size, hidden)] if hidden else []
    of_h = 0.1 * truncated_normal(key_h, max(hidden, 1), (hidden, 1))
    zeros = functools.partial(jnp.zeros, dtype=jnp.float32)
    of_e = zeros((size, 1)).at[-1].set(-0.5).at[0].set(trust)
    of_e = of_e.at[-2].add(-shrink).at[-3].add(length)
    b = jnp.log(jnp.array([rate / (scale * slope - rate)], jnp.float32))
    gate = {'w': jnp.concatenate([of_h, of_e]), 'b': b}
    of_x = zeros(ratios).at[direction].set(1.0)
    return {'lstm': lstm, 'direction': of_x, 'gate': gate}

  def initial_state(n):
    zero = jnp.zeros((hidden, n))
    return ((zero, zero),) if hidden else ()

  def step(theta, x, state):
    e, new_state = _even(x, even), ()
    (u,), (b,) = theta['gate']['w'].T, theta['gate']['b']  # u: [H + E]
    if hidden:
      h, c = lstm_layer(theta['lstm'][0], jnp.stack(e), state[0])  # [H, ...]
      e, new_state = [*h, *e], ((h, c),)
    d, m = _weighted(theta['direction'], x[:-even]), _weighted(u, e) + b
    # The exact σ: the one of cpu.py does not fall below 3e-8.
    return -scale * tanh(slope * d) * jax.nn.sigmoid(m), new_state

  return Cell(init, initial_state, step, whole=True)
