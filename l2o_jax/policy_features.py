"""What the policies of Li & Malik see of each coordinate."""

from typing import NamedTuple

import chex
import jax.numpy as jnp
import optax

from l2o_jax.base import Features
from l2o_jax.checks import at_least, positive


class Recent(NamedTuple):
  """The last two iterates, and the last gradient and loss.

  Attributes:
    step: t, the number of updates seen.
    x: x(t - 1), x(t - 2) [2, ...].
    g: g(t - 1) [...].
    f: f(t - 1), or the last finite one before it [].
  """

  step: chex.Array
  x: chex.Array
  g: chex.Array
  f: chex.Array


def relative_changes() -> Features:
  r"""Ψ, what the policy of Li & Malik 2017 sees (section 3.5): F = 3.

      (f(t) - f(t-1)) / f(t-1)
      g(t) / (|g(max(t-1, 0))| + 1)
      |x(max(t-1, 1)) - x(max(t-2, 0))| / (|x(t) - x(t-1)| + 0.1)

  The first and the third are 0 at t = 0, the first also where f(t-1) is 0.  A
  loss that is not finite shows no change and counts as the last finite one, or
  as 0 if there is none.  Values and gradients come from the minibatches.
  `update` needs `params` and `value`.
  """

  def init(x):
    zero = jnp.zeros_like(x)
    past = jnp.zeros((2, *x.shape), x.dtype)
    f = jnp.zeros((), x.dtype)
    return Recent(jnp.zeros((), jnp.int32), past, zero, f)

  def update(memory, x, g, value):
    f, largest = jnp.asarray(value, memory.f.dtype), jnp.finfo(x.dtype).max / 4
    started = memory.step > 0
    last_g = jnp.where(started, memory.g, g)
    known = started & jnp.isfinite(f) & (memory.f != 0)
    change = (f - memory.f) / jnp.where(known, memory.f, 1)
    change = jnp.clip(jnp.where(known, change, 0), -largest, largest)
    # No difference of two large numbers overflows.
    moved = lambda a, b: 2 * jnp.clip(a / 2 - b / 2, -largest, largest)
    last = jnp.where(started, moved(x, memory.x[0]), 0)
    before = moved(memory.x[0], memory.x[1])
    before = jnp.where(memory.step > 1, before, last)
    change = jnp.broadcast_to(change, x.shape)
    slope = g / (jnp.abs(last_g) + 1)
    ratio = jnp.abs(before) / (jnp.abs(last) + 0.1)
    f = jnp.where(jnp.isfinite(f), f, memory.f)
    step = optax.safe_increment(memory.step)
    memory = Recent(step, jnp.stack([x, memory.x[0]]), g, f)
    return memory, jnp.stack([change, slope, ratio], -1)

  return Features(3, init, update, frozenset({'params', 'value'}))


def _shift(values, new):
  """`values`, newest first, with `new` in front and without the oldest."""
  return jnp.concatenate([new[None], values[:-1]])


class Window(NamedTuple):
  """Gradients and losses, newest first, zero where there is none.

  Attributes:
    step: t, the number of updates seen.
    g: g(t - 1), g(t - 2), ... [depth - 1, ...].
    f: f(t - 1), f(t - 2), ...; the last finite ones [depth].
  """

  step: chex.Array
  g: chex.Array
  f: chex.Array


def history(depth: int = 25) -> Features:
  """The window of Li & Malik 2016 (section 4): F = 2 H.

      g(t - i), i = 0 ... H - 1,  and  f(t) - f(t - i), i = 1 ... H

  with 0 where t - i < 0.  A loss that is not finite counts as in
  `relative_changes`.  `update` needs `value`.

  Args:
    depth: H >= 1; 25 in the paper.

  Raises:
    ValueError: depth is not positive.
  """
  positive('history', depth=depth)

  def init(x):
    g = jnp.zeros((depth - 1, *x.shape), x.dtype)
    return Window(jnp.zeros((), jnp.int32), g, jnp.zeros(depth, x.dtype))

  def update(memory, x, g, value):
    f = jnp.asarray(value, memory.f.dtype)
    gradients = jnp.concatenate([g[None].astype(x.dtype), memory.g])
    known = (jnp.arange(depth) < memory.step) & jnp.isfinite(f)
    change = jnp.where(known, f - memory.f, 0)
    change = jnp.broadcast_to(change, (*x.shape, depth))
    f = jnp.where(jnp.isfinite(f), f, memory.f[0])
    step = optax.safe_increment(memory.step)
    memory = Window(step, gradients[:-1], _shift(memory.f, f))
    return memory, jnp.concatenate([jnp.moveaxis(gradients, 0, -1), change], -1)

  return Features(2 * depth, init, update, frozenset({'value'}))


class Past(NamedTuple):
  """Three-point averages, newest first, and what the next ones need.

  Attributes:
    step: t, the number of updates seen.
    means: x̄(t), x̄(t - 1), ... [lag (L + 1) + 1, ...], the same of g, and of f
      [lag (L + 1) + 1].
    last: x(t), x(t - 1) [2, ...], the same of g, and of f [2].
  """

  step: chex.Array
  means: tuple[chex.Array, ...]
  last: tuple[chex.Array, ...]


def state_features(lag: int = 5, depth: int = 25) -> Features:
  r"""Φ, the history in the guide's state (Li & Malik 2017, section 3.5).

  With x̄(i), ḡ(i), f̄(i) the means over j = max(i - 2, 0) ... i, P the lag, L the
  depth and m = t mod P:

      (f̄(t-Pi) - f̄(t-P(i+1))) / f̄(t-P(i+1))                    i = 0 ... L - 1
      ḡ(t-Pi) / (|ḡ(max(t-P(i+1), m))| + 1)                    i = 0 ... L
      |x̄(max(t-P(i+1), m+P)) - x̄(max(t-P(i+2), m))|
        / (|x̄(t-Pi) - x̄(t-P(i+1))| + 0.1)                      i = 0 ... L - 1

  A feature that would need a negative time is 0.  A loss that is not finite
  counts as in `relative_changes`.  The third formula is a reconstruction
  (BUILD_NOTES.md).

  Args:
    lag: P >= 1; 5 in the paper.
    depth: L >= 0; 25 in the paper.  0 leaves the averaged gradient alone.

  Returns:
    Features with F = 3 L + 1; memory of P (L + 1) + 1 values.

  Raises:
    ValueError: lag or depth is no whole number, or too small.
  """
  positive('state_features', lag=lag)
  at_least(0, 'state_features', depth=depth)
  length = lag * (depth + 1) + 1

  def init(x):
    past = jnp.zeros((length, *x.shape), x.dtype)
    f = jnp.zeros(length, x.dtype)
    last = past[:2], past[:2], f[:2]
    return Past(jnp.zeros((), jnp.int32), (past, past, f), last)

  def update(past, x, g, value):
    last_f = past.last[2][0]
    f = jnp.asarray(value, last_f.dtype)
    t, now = past.step, (x, g, jnp.where(jnp.isfinite(f), f, last_f))
    count = jnp.minimum(t + 1, 3)
    average = lambda new, last: (new + last[0] + last[1]) / count
    means = tuple(map(_shift, past.means, map(average, now, past.last)))
    bar_x, bar_g, bar_f = means
    periods = t // lag  # whole lags since the start
    i = jnp.arange(depth + 1)
    j = i[:-1]
    back = lambda values, lags: values[lag * jnp.clip(lags, 0, depth + 1)]
    upright = lambda z: z.reshape(-1, *(1,) * x.ndim)  # [K] -> [K, 1, ...]
    before = back(bar_f, j + 1)
    change = (back(bar_f, j) - before) / jnp.where(before == 0, 1, before)
    change = upright(jnp.where(before == 0, 0, change))
    change = jnp.broadcast_to(change, (depth, *x.shape))
    last_g = back(bar_g, jnp.minimum(i + 1, periods))
    slope = back(bar_g, i) / (jnp.abs(last_g) + 1)
    first = back(bar_x, jnp.minimum(j + 1, periods - 1))
    earlier = first - back(bar_x, jnp.minimum(j + 2, periods))
    recent = back(bar_x, j) - back(bar_x, j + 1)
    ratio = jnp.abs(earlier) / (jnp.abs(recent) + 0.1)
    step = optax.safe_increment(past.step)
    past = Past(step, means, tuple(map(_shift, past.last, now)))
    lags = jnp.concatenate([j + 1, i, j + 1])
    features = jnp.concatenate([change, slope, ratio])
    features = jnp.where(upright(lags <= periods), features, 0)
    return past, jnp.moveaxis(features, 0, -1)

  return Features(3 * depth + 1, init, update, frozenset({'params', 'value'}))
