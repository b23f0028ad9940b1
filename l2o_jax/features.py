"""What a learned optimizer sees of each coordinate."""

from typing import NamedTuple

import chex
import jax.numpy as jnp

from l2o_jax.base import Features


def gradient() -> Features:
  """The raw gradient, x = (g): F = 1 (Andrychowicz et al., section 3.1)."""
  return Features(
    size=1,
    init=lambda x: (),
    update=lambda memory, x, g, value: (memory, g[..., None]),
  )


def log_and_sign(p: float = 10.0) -> Features:
  r"""Logarithm and sign of the gradient (Andrychowicz et al., appendix A).

      g -> (log|g| / p, sign(g))   where |g| >= exp(-p)
           (-1, exp(p) g)          elsewhere

  computed as (max(log(|g| + eps) / p, -1), clip(exp(p) g, -1, 1)) with eps the
  machine epsilon of g, the released code's form.  It is the same function up to
  eps, and finite with finite derivatives at g = 0.

  Args:
    p: where the linear part begins, p > 0: 10 in the paper, 5 in its code.

  Returns:
    Features with F = 2; shapes [...] -> [..., 2].

  Raises:
    ValueError: p is not positive.
  """
  if not p > 0:
    raise ValueError(f'log_and_sign: p must be positive, got {p!r}')

  def update(memory, x, g, value):
    del x, value
    eps = jnp.finfo(g.dtype).eps
    log = jnp.log(jnp.abs(g) + eps) / p
    sign = g * jnp.exp(jnp.asarray(p, g.dtype))
    # `where` rather than `maximum` and `clip`: at the boundary the derivative
    # is then the inner one, as in the released code, not half of it.
    return memory, jnp.stack(
      [
        jnp.where(log < -1, -1, log),
        jnp.where(jnp.abs(sign) > 1, jnp.sign(sign), sign),
      ],
      axis=-1,
    )

  return Features(size=2, init=lambda x: (), update=update)


class Recent(NamedTuple):
  """The last two iterates, and the last gradient and loss.

  Attributes:
    step: t, the number of updates seen.
    x: x(t - 1), x(t - 2) [2, ...].
    g: of t - 1.
    f: of t - 1 [].
  """

  step: chex.Array
  x: chex.Array
  g: chex.Array
  f: chex.Array


def _required(value, name, dtype):
  if value is None:
    raise TypeError(f'{name} need `value`, the loss, in update')
  return jnp.asarray(value, dtype)


def relative_changes() -> Features:
  r"""Ψ, what the policy of Li & Malik 2017 sees (section 3.5): F = 3.

      (f(t) - f(t-1)) / f(t-1)
      g(t) / (|g(max(t-1, 0))| + 1)
      |x(max(t-1, 1)) - x(max(t-2, 0))| / (|x(t) - x(t-1)| + 0.1)

  The first and the third are 0 at t = 0, the first also where f(t-1) is 0 or
  either is not finite.  Values and gradients are those of the minibatches.
  The optimizer needs `value`; without it `update` raises a TypeError.
  """

  def init(x):
    return Recent(
      jnp.zeros((), jnp.int32),
      jnp.zeros((2, *x.shape), x.dtype),
      jnp.zeros_like(x),
      jnp.zeros((), x.dtype),
    )

  def update(memory, x, g, value):
    f = _required(value, 'relative_changes', memory.f.dtype)
    started = memory.step > 0
    last_g = jnp.where(started, memory.g, g)
    known = started & jnp.isfinite(f) & (memory.f != 0)
    change = jnp.where(known, (f - memory.f) / jnp.where(known, memory.f, 1), 0)
    last = jnp.where(started, x - memory.x[0], 0)
    before = jnp.where(memory.step > 1, memory.x[0] - memory.x[1], last)
    seen = jnp.stack(
      [
        jnp.broadcast_to(change, x.shape),
        g / (jnp.abs(last_g) + 1),
        jnp.abs(before) / (jnp.abs(last) + 0.1),
      ],
      axis=-1,
    )
    memory = Recent(
      memory.step + 1,
      jnp.stack([x, memory.x[0]]),
      g,
      jnp.where(jnp.isfinite(f), f, memory.f),
    )
    return memory, seen

  return Features(3, init, update)


class Window(NamedTuple):
  """Gradients and losses, newest first, zero where there is none.

  Attributes:
    step: t, the number of updates seen.
    g: g(t - 1), g(t - 2), ... [depth - 1, ...].
    f: f(t - 1), f(t - 2), ... [depth].
  """

  step: chex.Array
  g: chex.Array
  f: chex.Array


def history(depth: int = 25) -> Features:
  """The window of Li & Malik 2016 (section 4): F = 2 H.

      g(t - i), i = 0 ... H - 1,  and  f(t) - f(t - i), i = 1 ... H

  with 0 where t - i < 0 or a loss is not finite.  It needs `value`; without it
  `update` raises a TypeError.

  Args:
    depth: H >= 1; 25 in the paper.

  Raises:
    ValueError: depth is not positive.
  """
  if depth < 1:
    raise ValueError(f'history: depth must be positive, got {depth}')

  def init(x):
    return Window(
      jnp.zeros((), jnp.int32),
      jnp.zeros((depth - 1, *x.shape), x.dtype),
      jnp.zeros(depth, x.dtype),
    )

  def update(memory, x, g, value):
    f = _required(value, 'history', memory.f.dtype)
    gradients = jnp.concatenate([g[None].astype(x.dtype), memory.g])
    change = jnp.where(
      (jnp.arange(depth) < memory.step) & jnp.isfinite(f), f - memory.f, 0
    )
    change = jnp.broadcast_to(change, (*x.shape, depth))
    f = jnp.where(jnp.isfinite(f), f, memory.f[0])
    memory = Window(
      memory.step + 1,
      gradients[: depth - 1],
      jnp.concatenate([f[None], memory.f[:-1]]),
    )
    return memory, jnp.concatenate(
      [jnp.moveaxis(gradients, 0, -1), change], axis=-1
    )

  return Features(2 * depth, init, update)
