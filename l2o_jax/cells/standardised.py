"""A cell that works in the units of its task."""

import jax
import jax.numpy as jnp

from l2o_jax.base import Cell


def standardised(cell: Cell, limit: float = 10.0, coordinates: int = 1) -> Cell:
  """Features in standard units, steps in the units of a first optimizer.

      delta = output · cell(clip((x - mean) / std, -limit, limit))

  mean, std and output are constants in theta: no gradient reaches them.
  Imitation sets them from its first rollouts; at `init` they change nothing.
  Relative features are huge where the last value was tiny, hence the limit.

  Args:
    cell: any; it stays whole and communicating if it was.
    limit: in standard deviations.
    coordinates: n of a cell that is one net for n coordinates (`mlp_cell`);
      each of its F n inputs then has units of its own.

  Returns:
    Cell with theta {'mean' [F], 'std' [F], 'output' [], 'cell': of `cell`}; F n
    in place of F with `coordinates`.
  """

  def init(key, num_features):
    mean = jnp.zeros(num_features * coordinates, jnp.float32)
    std, output = jnp.ones_like(mean), jnp.ones((), jnp.float32)
    inner = cell.init(key, num_features)
    return {'mean': mean, 'std': std, 'output': output, 'cell': inner}

  def step(theta, x, state):
    # [F] -> [F, 1, ...], or with `coordinates` [F n] -> [F, n].
    shape = (x.shape[0], -1, *(1,) * (x.ndim - 2))[: x.ndim]
    mean = jax.lax.stop_gradient(theta['mean']).reshape(shape)
    std = jax.lax.stop_gradient(theta['std']).reshape(shape)
    x = jnp.clip((x - mean) / std, -limit, limit)
    delta, state = cell.step(theta['cell'], x, state)
    return jax.lax.stop_gradient(theta['output']) * delta, state

  return cell._replace(init=init, step=step)
