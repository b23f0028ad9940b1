"""What several tests of guided policy search use."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from l2o_jax.base import Optimizee
from l2o_jax.groups import Groups

BY_NAME = Groups(lambda params: {name: name for name in params}, ('w', 'b'))
ALL = Groups(lambda params: 'all', ('all',))
# Most of a test's time is compilation.
QUICKLY = {'xla_backend_optimization_level': 0}


def spd(rng, *shape):
  """Random symmetric positive definite matrices."""
  m = rng.normal(size=shape + shape[-1:])
  return m @ np.swapaxes(m, -1, -2) + 0.5 * np.eye(shape[-1])


def run(function, *args):
  """Jitted, in float64, NumPy to NumPy."""
  with jax.enable_x64(True):
    out = jax.jit(function)(*jax.tree.map(jnp.asarray, args))
    return jax.tree.map(np.asarray, out)


def bowls(minibatch=False):
  """f = 1/2 Σ h_i (x_i - c)², two groups; noisy if `minibatch`."""
  curvature = {'w': jnp.array([0.5, 1.0, 2.0]), 'b': jnp.array([1.0, 4.0])}

  def init(key):
    return jax.tree.map(
      lambda h: 1 + jax.random.normal(jax.random.fold_in(key, h.size), h.shape),
      curvature,
    ), ()

  def objective(params, task):
    return 0.1 + sum(jnp.sum(curvature[k] * params[k] ** 2) / 2 for k in params)

  def loss(params, task, key):
    noise = 0.1 * jax.random.normal(key) * minibatch
    return objective(params, task) + noise * jnp.sum(params['w'])

  return Optimizee(
    Partial(init), Partial(loss), Partial(objective) if minibatch else None
  )
