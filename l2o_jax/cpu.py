"""tanh and sigmoid at half the time on a CPU."""

import jax
import jax.numpy as jnp

# x P(x^2) / Q(x^2) on |x| <= 8, fitted to the least largest relative error
# (2e-9, below the rounding of float32).
_LIMIT = 8.0
_P = (
  0.9999999982278234,
  0.1312435285749109,
  0.003149368181468263,
  1.1642480385041885e-05,
  -2.2314815524267498e-08,
  6.365610396804665e-11,
  -1.1564519996860548e-13,
)
_Q = (1.0, 0.4645768436168097, 0.024675014150149877, 0.00026129793169339026)


@jax.custom_jvp
def tanh(x):
  """tanh(x); in float32 as a rational function, with an error below 4e-7.

  XLA's own takes twice the time on a CPU, and half of an update's time is in
  this function.  In other types it is `jnp.tanh`.
  """
  return _rational(x) if x.dtype == jnp.float32 else jnp.tanh(x)


@jax.jit
def _rational(x):
  x = jnp.clip(x, -_LIMIT, _LIMIT)
  y = x * x
  p, q = _P[-1], _Q[-1]
  for a in _P[-2::-1]:
    p = p * y + a
  for a in _Q[-2::-1]:
    q = q * y + a
  return x * p / q


@tanh.defjvp
def _tanh_jvp(primals, tangents):
  t = tanh(*primals)
  return t, (1 - t * t) * tangents[0]


def sigmoid(x):
  """1 / (1 + exp(-x)) = (1 + tanh(x / 2)) / 2."""
  return 0.5 + 0.5 * tanh(0.5 * x)
