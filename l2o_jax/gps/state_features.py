"""What the guide sees of a coordinate's past, in meta-training only."""

from typing import NamedTuple

import chex
import jax.numpy as jnp

from l2o_jax.base import Features


class Past(NamedTuple):
  """Three-point averages, newest first, and what the next ones need.

  Attributes:
    step: t, the number of updates seen.
    x: x̄(t), x̄(t - 1), ... [lag (L + 1) + 1, ...].
    g: ḡ, likewise.
    f: f̄, likewise without coordinates.
    last_x: x(t), x(t - 1) [2, ...].
    last_g: likewise.
    last_f: likewise [2].
  """

  step: chex.Array
  x: chex.Array
  g: chex.Array
  f: chex.Array
  last_x: chex.Array
  last_g: chex.Array
  last_f: chex.Array


def _shift(values, new):
  return jnp.concatenate([new[None], values[:-1]])


def state_features(lag: int = 5, depth: int = 25) -> Features:
  r"""Φ, the history in the guide's state (Li & Malik 2017, section 3.5).

  With x̄(i), ḡ(i), f̄(i) the means over j = max(i - 2, 0) ... i, P the lag, L the
  depth and m = t mod P:

      (f̄(t-Pi) - f̄(t-P(i+1))) / f̄(t-P(i+1))                    i = 0 ... L - 1
      ḡ(t-Pi) / (|ḡ(max(t-P(i+1), m))| + 1)                    i = 0 ... L
      |x̄(max(t-P(i+1), m+P)) - x̄(max(t-P(i+2), m))|
        / (|x̄(t-Pi) - x̄(t-P(i+1))| + 0.1)                      i = 0 ... L - 1

  A feature that would need a negative time is 0.  The third formula is a
  reconstruction: see BUILD_NOTES.md.

  Args:
    lag: P >= 1; 5 in the paper.
    depth: L >= 0; 25 in the paper.  0 leaves the averaged gradient alone.

  Returns:
    Features with F = 3 L + 1; memory of P (L + 1) + 1 values.

  Raises:
    ValueError: lag or depth are too small.
  """
  if lag < 1 or depth < 0:
    raise ValueError(
      f'state_features: lag must be positive and depth not '
      f'negative, got {lag} and {depth}'
    )
  length = lag * (depth + 1) + 1

  def init(x):
    past = jnp.zeros((length, *x.shape), x.dtype)
    f = jnp.zeros(length, x.dtype)
    return Past(
      jnp.zeros((), jnp.int32), past, past, f, past[:2], past[:2], f[:2]
    )

  def update(past, x, g, value):
    if value is None:
      raise TypeError('state_features need `value`, the loss, in update')
    t = past.step
    value = jnp.asarray(value, past.f.dtype)
    average = lambda new, last: (
      (new + last[0] + last[1]) / jnp.minimum(t + 1, 3).astype(new.dtype)
    )
    bar_x = _shift(past.x, average(x, past.last_x))
    bar_g = _shift(past.g, average(g, past.last_g))
    bar_f = _shift(past.f, average(value, past.last_f))
    periods = t // lag  # whole lags since the start
    i = jnp.arange(depth + 1)
    back = lambda values, lags: values[lag * jnp.clip(lags, 0, depth + 1)]
    among = lambda lags, feature: jnp.where(
      (lags <= periods).reshape((-1,) + (1,) * (feature.ndim - 1)), feature, 0
    )
    j = i[:-1]
    before = back(bar_f, j + 1)
    change = (back(bar_f, j) - before) / jnp.where(before == 0, 1, before)
    change = among(j + 1, jnp.where(before == 0, 0, change))
    change = jnp.broadcast_to(
      change.reshape((-1,) + (1,) * x.ndim), (depth, *x.shape)
    )
    slope = among(
      i,
      back(bar_g, i) / (jnp.abs(back(bar_g, jnp.minimum(i + 1, periods))) + 1),
    )
    earlier = back(bar_x, jnp.minimum(j + 1, periods - 1)) - back(
      bar_x, jnp.minimum(j + 2, periods)
    )
    recent = back(bar_x, j) - back(bar_x, j + 1)
    ratio = among(j + 1, jnp.abs(earlier) / (jnp.abs(recent) + 0.1))
    past = Past(
      t + 1,
      bar_x,
      bar_g,
      bar_f,
      _shift(past.last_x, x),
      _shift(past.last_g, g),
      _shift(past.last_f, value),
    )
    features = jnp.concatenate([change, slope, ratio])
    return past, jnp.moveaxis(features, 0, -1)

  return Features(3 * depth + 1, init, update)
