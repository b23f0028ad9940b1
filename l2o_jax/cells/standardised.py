"""A cell that works in the units of its task."""

import jax
import jax.numpy as jnp

from l2o_jax.base import Cell


def standardised(cell: Cell, limit: float = 10.0) -> Cell:
  """Features in standard units, steps in those of a first optimizer.

      delta = output · cell(clip((x - mean) / std, -limit, limit))

  mean, std and output are constants in theta: no gradient reaches them.  Guided
  policy search sets them from its first rollouts; at `init` they change
  nothing.  Relative features are huge where the last value was tiny, hence the
  limit.

  Args:
    cell: of one coordinate, or of all (see `joint`).
    limit: in standard deviations.

  Returns:
    Cell with theta {'mean' [F], 'std' [F], 'output' [], 'cell': of `cell`}.
  """

  def init(key, num_features):
    return {
      'mean': jnp.zeros(num_features),
      'std': jnp.ones(num_features),
      'output': jnp.ones(()),
      'cell': cell.init(key, num_features),
    }

  def step(theta, x, state):
    mean, std, output = jax.lax.stop_gradient(
      (theta['mean'], theta['std'], theta['output'])
    )
    x = jnp.clip((x - mean) / std, -limit, limit)
    delta, state = cell.step(theta['cell'], x, state)
    return output * delta, state

  return Cell(init, cell.initial_state, step)
