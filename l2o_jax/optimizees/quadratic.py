"""Random quadratic functions."""

import jax
import jax.numpy as jnp

from l2o_jax.base import Optimizee
from l2o_jax.checks import finite, one_of, positive
from l2o_jax.cpu import draw

_ENTRIES = {'normal': jax.random.normal, 'uniform': jax.random.uniform}
_REDUCTIONS = {'mean': jnp.mean, 'sum': jnp.sum}


def quadratic(
  dimension: int = 10,
  entries: str = 'uniform',
  initial_std: float = 0.01,
  batch: int | None = None,
  reduction: str = 'mean',
) -> Optimizee:
  """f(x) = ||W x - y||^2 (Andrychowicz et al., section 3.1).

  The paper's text draws the entries of W and y from N(0, 1).  Its code draws
  them from U[0, 1), which fits the published figure, and x_0 from N(0, 0.01^2).

  Args:
    dimension: n; W is [n, n], y and x are [n].
    entries: 'uniform' for U[0, 1) or 'normal' for N(0, 1).
    initial_std: standard deviation of x_0's coordinates.
    batch: None: each optimizee is one function.  K: K functions in one
      optimizee with x [K, n].
    reduction: of the K functions; nothing without a batch.  'mean', as in the
      released code: f(x) = 1/K sum_k ||W_k x_k - y_k||^2, so that a
      coordinate's gradient is 1/K of what its own function has.  'sum': all of
      it, so that to a coordinatewise optimizer K functions in one optimizee are
      the same as K optimizees, and faster to run.

  Returns:
    Optimizee with params x [n] and task {'w': [n, n], 'y': [n]}, or all of
    them with a leading axis K.

  Raises:
    ValueError: unknown entries or reduction, or a size that is not positive.
  """
  shape = (dimension,) if batch is None else (batch, dimension)
  positive('quadratic', dimension=dimension, batch=shape[0])
  finite('quadratic', 0, initial_std=initial_std)
  one_of('quadratic', _ENTRIES, entries=entries)
  one_of('quadratic', _REDUCTIONS, reduction=reduction)

  def init(key):
    key_w, key_y, key_x = jax.random.split(key, 3)
    w = draw(_ENTRIES[entries], key_w, shape + (dimension,))
    y = draw(_ENTRIES[entries], key_y, shape)
    x = initial_std * draw(jax.random.normal, key_x, shape)
    return x, {'w': w, 'y': y}

  def loss(x, task, key):
    del key
    residual = jnp.einsum('...ij,...j->...i', task['w'], x) - task['y']
    return _REDUCTIONS[reduction](jnp.sum(residual**2, axis=-1))

  return Optimizee(init, loss)
