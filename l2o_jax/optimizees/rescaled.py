"""The same functions in other units: tasks that look different."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from l2o_jax.base import Optimizee
from l2o_jax.checks import one_of, pair, require


def rescaled(
  optimizee: Optimizee, r: float = 3.0, each: str = 'coordinate'
) -> Optimizee:
  """Random scaling of the parameters (RNNprop, Lv et al. 2017, section 4.2).

      f'(y) = f(s y),   y_0 = x_0 / s,   s = exp(U(-r, r))

  s is drawn once a run and part of the task.  The best step of a coordinate
  then differs by up to exp(2 r) from task to task and cannot be learned by
  heart; what is left is to find it during the run.

  Args:
    optimizee: f.
    r: >= 0; 3 in the paper.  With 0 all s are 1; f is that of another key.
    each: what has an s of its own: 'coordinate' as in the paper, 'leaf', or
      'function', or 'any' of these three, drawn for every run.

  Returns:
    Optimizee with task (the task of f, s), where s is like the parameters.

  Raises:
    ValueError: r is negative or `each` is unknown.
  """
  kinds = ('coordinate', 'leaf', 'function')
  require(0 <= r < np.inf, f'rescaled: r must not be negative, got {r!r}')
  one_of('rescaled', (*kinds, 'any'), each=each)

  def draw(key, params):
    """s like the parameters."""
    leaves, structure = jax.tree.flatten(params)
    key_kind, key_u = jax.random.split(key)
    any_kind = jax.random.randint(key_kind, (), 0, len(kinds))
    kind = any_kind if each == 'any' else kinds.index(each)
    sizes = [jnp.size(x) for x in leaves]
    # One draw, quicker to compile: of each coordinate, each leaf, the function.
    count = sum(sizes) + len(leaves) + 1
    u = jax.random.uniform(key_u, (count,), minval=-r, maxval=r)
    *own, of_leaf, of_f = jnp.split(u, np.cumsum([*sizes, len(leaves)]))
    shared = jnp.where(kind == 1, of_leaf, of_f)  # [number of leaves]
    own = [u.reshape(jnp.shape(x)) for u, x in zip(own, leaves)]
    scale = lambda own, shared: jnp.exp(jnp.where(kind == 0, own, shared))
    return structure.unflatten(map(scale, own, shared))

  def times(x, s):
    return jax.tree.map(lambda x, s: (x * s).astype(x.dtype), x, s)

  def init(optimizee, key):
    key_f, key_s = jax.random.split(key)
    params, task = pair(optimizee.init(key_f))
    scales = draw(key_s, params)
    return times(params, jax.tree.map(lambda s: 1 / s, scales)), (task, scales)

  def loss(optimizee, params, task, key):
    task, scales = task
    return optimizee.loss(times(params, scales), task, key)

  def objective(optimizee, params, task):
    task, scales = task
    return optimizee.objective(times(params, scales), task)

  has_data = optimizee.objective is not None
  judged = Partial(objective, optimizee) if has_data else None
  return Optimizee(Partial(init, optimizee), Partial(loss, optimizee), judged)
