"""What a learned optimizer sees of each coordinate."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from l2o_jax.base import Features
from l2o_jax.checks import above_zero, given, positive, require, traced


def gradient() -> Features:
  """The raw gradient, x = (g): F = 1 (Andrychowicz et al., section 3.1)."""
  update = lambda memory, x, g, value: (memory, g[..., None])
  return Features(1, lambda x: (), update)


def log_and_sign(p: float = 10.0) -> Features:
  r"""Logarithm and sign of the gradient (Andrychowicz et al., appendix A).

      g -> (log|g| / p, sign(g))   where |g| >= exp(-p)
           (-1, exp(p) g)          elsewhere

  computed as (max(log(|g| + eps) / p, -1), clip(exp(p) g, -1, 1)) with eps the
  machine epsilon of g, the released code's form.  It is the same function up to
  eps, and finite with finite derivatives at g = 0.

  Args:
    p: where the linear part begins, 0 < p <= 88: 10 in the paper, 5 in its
      code.  Above 88 exp(p) is infinite in float32.  Not checked where traced.

  Returns:
    Features with F = 2; shapes [...] -> [..., 2].

  Raises:
    ValueError: p is out of these bounds.
  """
  known = traced(p) or 0 < p <= 88
  require(known, f'log_and_sign: p must be in (0, 88], got {p!r}')

  def update(memory, x, g, value):
    del x, value
    eps = jnp.finfo(g.dtype).eps
    log = jnp.log(jnp.abs(g) + eps) / p
    most = jnp.log(jnp.finfo(g.dtype).max) - 0.01  # exp(most) is finite
    sign = g * jnp.exp(jnp.minimum(jnp.asarray(p, g.dtype), most))
    # Unlike with `clip`, the derivative at the boundary is then the inner one,
    # as in the released code, and not half of it.
    log = jnp.where(log < -1, -1, log)
    sign = jnp.where(jnp.abs(sign) > 1, jnp.sign(sign), sign)
    return memory, jnp.stack([log, sign], -1)

  return Features(2, lambda x: (), update)


class Moments(NamedTuple):
  """Adam's moments.

  Attributes:
    step: t, the number of updates seen; one for a leaf if the leaf is needed.
    m: averages of g, one for each decay, [K, ...].
    v: average of g² [...].
    length: ℓ of the leaf [], or () without agreement.
  """

  step: chex.Array
  m: chex.Array
  v: chex.Array
  length: chex.Array | tuple[()] = ()


def _rest(b, t):
  """1 - bᵗ; quicker than a power, and more exact near 0."""
  return -jnp.expm1(t * math.log(b)) if b else jnp.ones_like(t)


def _second_moment(v, g, t, b2, window):
  """(v after a gradient, the mean of g² that it stands for)."""
  if window is None:
    v = b2 * v + (1 - b2) * g**2
    return v, v / _rest(b2, t)
  w = jnp.maximum((1 - b2) / _rest(b2, t), window / (window + t - 1))
  v = (1 - w) * v + w * g**2
  return v, v


def _length(memory, ratio, root, b, agreement, age):
  """ℓ after a gradient that is `ratio` in units of `root`; b is β₁."""
  t = memory.step.astype(ratio.dtype)  # gradients before this one
  before = memory.m[0] / (_rest(b, jnp.maximum(t, 1)) * root)
  agreed = jnp.clip(before, -1, 1) * jnp.clip(ratio, -1, 1)  # [*s]
  weight = jnp.sqrt(root)
  total = jnp.sum(jnp.where(ratio == 0, 0, weight))  # 0: there is no gradient
  a = jnp.sum(weight * agreed) / jnp.where(total > 0, total, 1)
  length = memory.length + agreement * a * jax.lax.rsqrt(1 + t / age)
  return jnp.clip(length, -0.5, 3.5)


def adam_ratios(
  b1: float | Sequence[float] = 0.95,
  b2: float = 0.95,
  eps: float = 1e-8,
  age: float | None = None,
  window: float | None = None,
  size: float | None = None,
  agreement: float | None = None,
) -> Features:
  r"""The step that Adam would take, and the gradient in the same units.

      m ← β₁ m + (1 - β₁) g,   v ← β₂ v + (1 - β₂) g²
      x = (m / (1 - β₁ᵗ), g) / (√(v / (1 - β₂ᵗ)) + ε)

  (RNNprop, Lv et al. 2017, section 4.1; t = 1, 2, ...)  Apart from ε,
  multiplying f by a constant changes nothing.  Where β₁² < β₂ the features are
  bounded; after many steps the bounds are

      (1 - β₁) / √((1 - β₂) (1 - β₁² / β₂))   and   1 / √(1 - β₂)

  With a window c the memory of g² grows with time, so that few steps do not
  decide where gradients are noisy, and early ones are forgotten:

      v ← (1 - w) v + w g²,   w = max((1 - β₂) / (1 - β₂ᵗ), c / (c + t - 1))

  in place of v / (1 - β₂ᵗ).  v is then a mean over about the last t / c steps,
  and in the end over the last 1 / (1 - β₂).

  With agreement η and age A a leaf keeps ℓ, the logarithm of a length of its
  steps.  It rises while new gradients agree with the last ones, since steps are
  then too short, and falls while they do not (Jacobs 1988, over leaves):

      a = Σ u clip(m / √v) clip(g / √v) / Σ u   where g ≠ 0; u = v^¼
      ℓ ← clip(ℓ + η a / √(1 + (t - 1) / A), -0.5, 3.5)

  The sums are over the leaf, m / √v is the first ratio with m before this
  update, and clip is to ±1.  The weights u are a compromise.  With equal ones
  the weak inputs of a layer, whose gradients always agree, would lengthen the
  steps of the strong ones; with √v, to which the change of f by one of Adam's
  steps is proportional, a few coordinates would decide.  A word that a
  minibatch lacks has no say.

  Args:
    b1: β₁; several values give one ratio of this kind each.
    b2: β₂.
    eps: ε > 0, in units of the gradient.
    age: adds log(1 + (t - 1) / age) as the last feature, in steps.  None: adds
      nothing.
    window: c; None: the memory of g² is the same at all times.
    size: adds log(1 + n / size), n the coordinates of the leaf, before the
      age: layers of many weights want shorter steps.  None: adds nothing.
    agreement: η; adds ℓ before the size, of the first β₁; needs an age.  If
      parameters are sharded, two numbers a leaf are exchanged.  None: adds
      nothing.

  Returns:
    Features with F = K + 1 for K values of β₁, and one more each with an age, a
    size and an agreement.  With one of the last two they need the leaf, and t
    and ℓ are kept once for all of it.

  Raises:
    ValueError: a decay is not in [0, 1), or ε, the age, the window, the size or
      the agreement is not positive, or there is agreement without age.
  """
  b1 = tuple(b1) if isinstance(b1, Sequence) else (b1,)
  decays = b1 and all(0 <= b < 1 for b in (*b1, b2))
  require(decays, f'adam_ratios: decays must be in [0, 1): {b1}, {b2}')
  others = given(age=age, window=window, size=size, agreement=agreement)
  above_zero('adam_ratios', eps=eps, **others)
  dated = agreement is None or age is not None
  require(dated, 'adam_ratios: agreement needs an age')

  def init(x):
    zero = jnp.zeros_like(x)
    m = jnp.stack([zero] * len(b1))
    length = () if agreement is None else jnp.zeros((), x.dtype)
    return Moments(jnp.zeros((), jnp.int32), m, zero, length)

  def update(memory, x, g, value):
    del x, value
    limits = jnp.finfo(g.dtype)
    largest = 0.5 * limits.max**0.5
    g = jnp.clip(g, -largest, largest)  # g² stays finite
    step = optax.safe_increment(memory.step)
    t = step.astype(g.dtype)
    m = [b * m + (1 - b) * g for b, m in zip(b1, memory.m)]
    v, mean = _second_moment(memory.v, g, t, b2, window)
    # Above 0 the root has a finite derivative.
    root = jnp.sqrt(jnp.maximum(mean, limits.tiny)) + eps
    seen = [m / _rest(b, t) / root for b, m in zip(b1, m)] + [g / root]
    length, of_all = memory.length, []
    if agreement is not None:
      length = _length(memory, seen[-1], root, b1[0], agreement, age)
      of_all.append(length)
    if size is not None:
      of_all.append(jnp.log1p(jnp.asarray(g.size / size, g.dtype)))
    if age is not None:
      of_all.append(jnp.log1p((t - 1) / age))
    seen += [x + jnp.zeros_like(g) for x in of_all]  # sharded as g is
    seen = jnp.moveaxis(jnp.stack(seen), 0, -1)  # in memory as cells read it
    return Moments(step, jnp.stack(m), v, length), seen

  count = len(b1) + 1 + sum(x is not None for x in (size, age, agreement))
  of_leaf = size is not None or agreement is not None
  return Features(count, init, update, frozenset({'leaf'} if of_leaf else ()))


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
    memory = Recent(memory.step + 1, jnp.stack([x, memory.x[0]]), g, f)
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
    memory = Window(memory.step + 1, gradients[:-1], _shift(memory.f, f))
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
  positive('state_features', lag=lag, depth=() if depth == 0 else depth)
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
    past = Past(t + 1, means, tuple(map(_shift, past.last, now)))
    lags = jnp.concatenate([j + 1, i, j + 1])
    features = jnp.concatenate([change, slope, ratio])
    features = jnp.where(upright(lags <= periods), features, 0)
    return past, jnp.moveaxis(features, 0, -1)

  return Features(3 * depth + 1, init, update, frozenset({'params', 'value'}))
