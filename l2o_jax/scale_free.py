"""Relative changes of value, gradient and step, whatever their scale."""

from typing import NamedTuple

import chex
import jax.numpy as jnp
import optax

from l2o_jax.base import Features
from l2o_jax.checks import above_zero


class Magnitudes(NamedTuple):
  """Running magnitudes, and the last iterate.

  Attributes:
    step: t, the number of updates seen.
    m: a short and a long average of g, [2, ...].
    v: average of g² over some 20 steps, and its mean over all steps, [2, ...].
    x: x(t - 1) [...].
    u: average of the squared steps [...].
    f: average of the losses [].
    losses: how many of them were finite [].
  """

  step: chex.Array
  m: chex.Array
  v: chex.Array
  x: chex.Array
  u: chex.Array
  f: chex.Array
  losses: chex.Array


def scale_free(age: float = 20.0) -> Features:
  r"""Ψ with ratios where the paper has "+ 1": F = 7.

      m / √v,  b / √v              m, b, v: averages of g, g and g² with decays
                                   0.5, 0.9 and 0.95 and without their bias
      g / √(mean of g(0)² ... g(t)²)
      (f(t) - f̄) / (|f(t)| + |f̄|)  f̄: average of the earlier f, decay 0.9
      log √(v / mean of g(0)² ... g(t)²)
      |u| / √(average of u²)       u = x(t) - x(t-1), decay 0.9
      log(1 + t / age)

  `relative_changes` sees nothing where |g| ≪ 1 and |u| ≪ 0.1.  Here scaling f
  or x changes no feature while 1e-15 ≤ |g| ≤ 1e15 (float32).  The first two are
  the steps of Adam, the third is the step of AdaGrad times √(t + 1).  The third
  and the logarithm are cut at ±10; the first three change their sign with the
  coordinate, the others do not.  All but the last are bounded.  A ratio is 0
  where its denominator is.  `update` needs `params` and `value`.

  Args:
    age: > 0, in steps.

  Raises:
    ValueError: the age is not positive.
  """
  above_zero('scale_free', age=age)

  def init(x):
    zero, f = jnp.zeros_like(x), jnp.zeros((), x.dtype)
    two = jnp.stack([zero, zero])
    none = jnp.zeros((), jnp.int32)
    return Magnitudes(none, two, two, zero, zero, f, none)

  def update(old, x, g, value):
    limits = jnp.finfo(g.dtype)
    root = lambda z: jnp.sqrt(jnp.maximum(z, limits.tiny))  # finite derivative
    unbiased = lambda average, b, count: average / (1 - b**count)
    largest = 0.5 * limits.max**0.5
    g = jnp.clip(g, -largest, largest)  # g² stays finite
    step = optax.safe_increment(old.step)
    started, t = old.step > 0, step.astype(g.dtype)
    steps = jnp.maximum(t - 1, 1)  # after which x is known, if any

    m = [b * m + (1 - b) * g for b, m in zip((0.5, 0.9), old.m)]
    v = 0.95 * old.v[0] + 0.05 * g**2
    mean = old.v[1] + (g**2 - old.v[1]) / t
    recent, long = root(unbiased(v, 0.95, t)), root(mean)
    adam = [unbiased(m, b, t) / recent for b, m in zip((0.5, 0.9), m)]
    adagrad = jnp.clip(g / long, -10, 10)
    fall = jnp.clip(jnp.log(recent / long), -10, 10)

    f, losses = jnp.asarray(value, old.f.dtype), old.losses
    f_bar = unbiased(old.f, 0.9, jnp.maximum(losses, 1).astype(g.dtype))
    size = jnp.abs(f) + jnp.abs(f_bar)
    known = (losses > 0) & jnp.isfinite(size) & (size > 0)
    change = jnp.where(known, f - f_bar, 0) / jnp.where(known, size, 1)
    new_f = jnp.where(jnp.isfinite(f), 0.9 * old.f + 0.1 * f, old.f)
    more = optax.safe_increment(losses)
    losses = jnp.where(jnp.isfinite(f), more, losses)

    moved = jnp.where(started, jnp.clip(x - old.x, -largest, largest), 0)
    u = 0.9 * old.u + 0.1 * moved**2
    length = jnp.abs(moved) / root(unbiased(u, 0.9, steps))

    scalars = change, jnp.log1p((t - 1) / age)
    change, clock = (jnp.broadcast_to(z, x.shape) for z in scalars)
    seen = jnp.stack([*adam, adagrad, change, fall, length, clock], -1)
    m, v = jnp.stack(m), jnp.stack([v, mean])
    return Magnitudes(step, m, v, x, u, new_f, losses), seen

  return Features(7, init, update, frozenset({'params', 'value'}))
