"""Learning curves, and the tuning of a learning rate."""

from collections.abc import Callable, Sequence

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from l2o_jax.base import Optimizee
from l2o_jax.unroll import unroll


def learning_curves(
  optimizee: Optimizee,
  opt: optax.GradientTransformation,
  keys: chex.PRNGKey,
  num_steps: int,
  batch_size: int | None = None,
) -> chex.Array:
  """f(x_0) ... f(x_T) of `opt` on one fresh optimizee per key.

  Args:
    optimizee: the family.
    opt: any optax transformation; `learned.transform(theta)` for a learned one.
    keys: [B]; a key fixes the function, x_0 and all minibatches, so that two
      optimizers given the same keys face the same tasks.
    num_steps: T.
    batch_size: tasks that run at a time; all by default.  Fewer need less
      memory, and on a CPU large optimizees run faster one by one.

  Returns:
    [B, T + 1].
  """
  chex.assert_rank(keys, 1)

  def run(key):
    key_init, key_loss = jax.random.split(key)
    params, task = optimizee.init(key_init)
    _, trajectory = unroll(
      lambda x, k: optimizee.loss(x, task, k),
      opt,
      params,
      opt.init(params),
      jax.random.split(key_loss, num_steps + 1),
    )
    return trajectory.losses

  if batch_size is None:
    return jax.vmap(run)(keys)
  return jax.lax.map(
    run, keys, batch_size=batch_size if batch_size > 1 else None
  )


def tune_learning_rate(
  optimizee: Optimizee,
  make_opt: Callable[[chex.Scalar], optax.GradientTransformation],
  grid: Sequence[float],
  keys: chex.PRNGKey,
  num_steps: int,
  batch_size: int | None = None,
) -> tuple[float, np.ndarray]:
  """The learning rate of best mean final loss over the tasks of `keys`.

  All rates run at once under vmap.  A best rate at an end of the grid widens
  the grid there by as many values at the same ratio, until the best rate lies
  inside (at most 5 times).  A rate with any non-finite loss counts as infinite.

  Args:
    optimizee: the family.
    make_opt: learning rate -> optax transformation.
    grid: increasing rates at a constant ratio, at least 3.
    keys: [B] tuning tasks, not those of the final evaluation.
    num_steps: T.
    batch_size: see `learning_curves`.

  Returns:
    (best rate, table [R, 2] of rate and mean final loss, increasing in rate).

  Raises:
    ValueError: the grid is not increasing and geometric, or every rate
      diverges.
  """
  rates = np.asarray(grid, np.float64)
  valid = rates.ndim == 1 and len(rates) > 2 and (rates > 0).all()
  ratios = rates[1:] / rates[:-1] if valid else np.zeros(1)
  if not (ratios > 1).all() or not np.allclose(ratios, ratios[0], rtol=1e-3):
    raise ValueError(
      f'tune_learning_rate: grid must be at least 3 increasing '
      f'positive rates at a constant ratio, got {grid!r}'
    )
  ratio = ratios[0]

  @jax.jit
  def final_losses(optimizee, rates, keys):
    def final(rate):
      curves = learning_curves(
        optimizee, make_opt(rate), keys, num_steps, batch_size
      )
      return jnp.mean(curves[:, -1])

    return jax.vmap(final)(rates)

  def measure(rates):
    final = np.asarray(
      final_losses(optimizee, jnp.asarray(rates, jnp.float32), keys), np.float64
    )
    return np.stack([rates, np.where(np.isfinite(final), final, np.inf)], 1)

  table = measure(rates)
  width = np.arange(1, len(rates) + 1)
  for _ in range(5):
    best = int(np.argmin(table[:, 1]))
    if best == 0:
      table = np.concatenate(
        [measure(table[0, 0] / ratio ** width[::-1]), table]
      )
    elif best == len(table) - 1:
      table = np.concatenate([table, measure(table[-1, 0] * ratio**width)])
    else:
      break
  best = int(np.argmin(table[:, 1]))
  if not np.isfinite(table[best, 1]):
    raise ValueError(
      'tune_learning_rate: every learning rate from '
      f'{table[0, 0]:.3g} to {table[-1, 0]:.3g} diverges'
    )
  return float(table[best, 0]), table
