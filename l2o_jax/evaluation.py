"""Learning curves."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import optax

from l2o_jax.base import Optimizee
from l2o_jax.checks import pair, positive, ready, require, several_keys
from l2o_jax.unroll import scalar, unroll


def learning_curves(
  optimizee: Optimizee,
  opt: optax.GradientTransformation,
  keys: chex.PRNGKey,
  num_steps: int,
  batch_size: int | None = None,
  *,
  objective: bool | Callable = False,
  every: int = 1,
  point: Callable | None = None,
) -> chex.ArrayTree:
  """f(x_t) of `opt`, t = 0, k, 2k ... T, on one fresh optimizee per key.

  Args:
    optimizee: the family.
    opt: any optax transformation; `learned.transform(theta)` for a learned one.
    keys: [B]; a key fixes the function, x_0 and all minibatches, so that two
      optimizers with the same keys face the same tasks.  With `objective`
      or `point` the minibatches differ; the functions and x_0 do not.
    num_steps: T.
    batch_size: how many tasks run at a time; all by default.  Fewer need less
      memory, and on a CPU large optimizees run faster one by one.
    objective: True: f over all data instead of the minibatch that the step
      draws.  Or a function of params and task that returns whatever is to be
      known of x_t, a tree of arrays.
    every: k, a divisor of T.
    point: opt_state, params -> where to judge, for optimizers whose iterate is
      not their answer (`optax.contrib.schedule_free_eval_params`).

  Returns:
    [B, T / k + 1]; a tree of such arrays for an objective of one's own.

  Raises:
    ValueError: a number is not positive, `every` does not divide T, there is
      one key and not several, or the loss is not a scalar.
    TypeError: `opt` is a LearnedOptimizer without theta.
  """
  at_a_time = {} if batch_size is None else {'batch_size': batch_size}
  positive('learning_curves', num_steps=num_steps, every=every, **at_a_time)
  divides = num_steps % every == 0
  require(divides, f'learning_curves: {every=} must divide {num_steps=}')
  ready('learning_curves', opt=opt)
  several_keys('learning_curves', keys)

  def run(key):  # [T / k + 1]
    key_init, key_loss = jax.random.split(key)
    params, task = pair(optimizee.init(key_init))
    of_task = lambda x, key: optimizee.loss(x, task, key)
    loss = scalar(of_task, 'learning_curves')
    start = params, opt.init(params)
    if not objective and point is None:
      keys = jax.random.split(key_loss, num_steps + 1)
      _, seen = unroll(loss, opt, *start, keys, remat=False)
      return seen.losses[::every]

    def judge(params, opt_state, key):
      x = params if point is None else point(opt_state, params)
      if callable(objective):
        return objective(x, task)
      if objective and optimizee.objective is not None:
        return optimizee.objective(x, task)
      return loss(x, key)

    def stretch(carry, keys):  # [k + 1]; k steps, then a judgement
      carry, _ = unroll(loss, opt, *carry, keys, remat=False)
      return carry, judge(*carry, keys[-1])

    keys = jax.random.split(key_loss, (num_steps // every, every + 1))
    _, values = jax.lax.scan(stretch, start, keys)
    first = judge(*start, keys[0, 0])
    join = lambda a, b: jnp.concatenate([jnp.asarray(a)[None], b])
    return jax.tree.map(join, first, values)

  if batch_size is None:
    return jax.vmap(run)(keys)
  # In batches of one, lax.map would vmap over an axis of one.
  batch_size = batch_size if batch_size > 1 else None
  return jax.lax.map(run, keys, batch_size=batch_size)
