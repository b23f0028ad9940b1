"""What a learned optimizer sees of each coordinate."""

import jax.numpy as jnp

from l2o_jax.base import Features


def gradient() -> Features:
  """The raw gradient, x = (g): F = 1 (Andrychowicz et al., section 3.1)."""
  return Features(
      size=1,
      init=lambda x: (),
      update=lambda memory, x, g, value: (memory, g[..., None]))


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
    return memory, jnp.stack([
        jnp.where(log < -1, -1, log),
        jnp.where(jnp.abs(sign) > 1, jnp.sign(sign), sign)], axis=-1)

  return Features(size=2, init=lambda x: (), update=update)
