"""What a learned optimizer sees of each coordinate."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from l2o_jax.base import Features
from l2o_jax.checks import above_zero, given, require, traced


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
