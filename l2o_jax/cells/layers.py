"""One linear layer, and how its weights start."""

import chex
import jax
import jax.numpy as jnp

from l2o_jax.base import Theta


def linear(theta: Theta, x: chex.Array) -> chex.Array:
  """w^T x + b for every coordinate, features first.

  With the coordinates as trailing axes this is one matrix product [K, F] [F, n]
  without a transposition.

  Args:
    theta: {'w': [F, K], 'b': [K]}.
    x: [F, ...]; `...` are the coordinates' axes, none for a single coordinate.

  Returns:
    [K, ...].
  """
  bias = theta['b'].reshape(-1, *(1,) * (x.ndim - 1))  # [K, 1, ...]
  return jnp.einsum('fk,f...->k...', theta['w'], x) + bias


def truncated_normal(key: chex.PRNGKey, fan_in: int, shape) -> chex.Array:
  """N(0, 1 / fan_in), cut at two standard deviations; float32."""
  w = jax.random.truncated_normal(key, -2, 2, shape, jnp.float32)
  return fan_in**-0.5 * w


def linear_init(key: chex.PRNGKey, fan_in: int, fan_out: int) -> Theta:
  """{'w': [F, K] of `truncated_normal`, 'b': [K] zero}."""
  w = truncated_normal(key, fan_in, (fan_in, fan_out))
  return {'w': w, 'b': jnp.zeros(fan_out, jnp.float32)}
