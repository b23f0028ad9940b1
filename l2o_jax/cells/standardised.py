"""A cell wrapped so that it works in the units of its task."""

import jax
import jax.numpy as jnp

from l2o_jax.base import Cell
from l2o_jax.checks import above_zero, positive


def standardised(cell: Cell, limit: float = 10.0, coordinates: int = 1) -> Cell:
  """Features in standard units, steps in the units of the first optimizer.

      delta = output · cell(clip((x - mean) / std, -limit, limit))

  mean, std and output are in theta, but constant: no gradient reaches them.
  Imitation and guided policy search set them from their first rollouts, which
  the teacher or the first guide makes; at `init` they change nothing.  The
  limit is there because relative features are huge where the last value was
  tiny.

  Args:
    cell: any cell; the result is whole, or communicates, if `cell` does.
    limit: in standard deviations; finite.
    coordinates: n, if the cell is one net for n coordinates (`mlp_cell`); each
      of its F n inputs then has its own units.

  Returns:
    Cell with theta {'mean' [F], 'std' [F], 'output' [], 'cell': of `cell`};
    with `coordinates`, F n replaces F.

  Raises:
    ValueError: the limit or the number of coordinates is not positive.
  """
  above_zero('standardised', limit=limit)
  positive('standardised', coordinates=coordinates)

  def init(key, num_features):
    mean = jnp.zeros(num_features * coordinates, jnp.float32)
    std, output = jnp.ones_like(mean), jnp.ones((), jnp.float32)
    inner = cell.init(key, num_features)
    return {'mean': mean, 'std': std, 'output': output, 'cell': inner}

  def step(theta, x, state):
    constants = theta['mean'], theta['std'], theta['output']
    mean, std, output = jax.lax.stop_gradient(constants)
    # mean and std: [F] -> [F, 1, ...]; with `coordinates` [F n] -> [F, n].
    apart = (len(x), *(1,) * (x.ndim - 1))
    shape = x.shape if coordinates > 1 else apart
    x = (x - mean.reshape(shape)) / std.reshape(shape)
    delta, state = cell.step(theta['cell'], jnp.clip(x, -limit, limit), state)
    return output * delta, state

  return cell._replace(init=init, step=step)
