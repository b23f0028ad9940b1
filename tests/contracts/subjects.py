"""The learned optimizers, cells and trees that contracts are held to."""

import jax
import jax.numpy as jnp
import numpy as np

from l2o_jax.base import Cell
from l2o_jax.blocks import chunked
from l2o_jax.cells.layers import linear, linear_init
from l2o_jax.cells.lstm import lstm_cell
from l2o_jax.cells.mlp import mlp_cell
from l2o_jax.cells.ntm_bfgs import ntm_bfgs_cell
from l2o_jax.cells.standardised import standardised
from l2o_jax.coordinatewise import coordinatewise
from l2o_jax.features import gradient, log_and_sign
from l2o_jax.groups import Groups, grouped, sized
from l2o_jax.learned_optimizers import (
  autonomous_optimizer,
  lstm_log_and_sign,
  lstm_policy,
  lstm_raw,
  predicted_step_descent,
  robust_optimizer,
)


def gru_cell(hidden: int = 3) -> Cell:
  """A user's own cell of one coordinate, vmapped by `coordinatewise`."""

  def init(key, num_features):
    keys, size = jax.random.split(key, 3), num_features + hidden
    return {
      'gates': linear_init(keys[0], size, 2 * hidden),
      'new': linear_init(keys[1], size, hidden),
      'linear': linear_init(keys[2], hidden, 1),
    }

  def step(theta, x, h):  # [F], [H]
    gates = jax.nn.sigmoid(linear(theta['gates'], jnp.concatenate([x, h])))
    keep, reset = jnp.split(gates, 2)
    new = jnp.tanh(linear(theta['new'], jnp.concatenate([x, reset * h])))
    h = keep * h + (1 - keep) * new
    return 0.1 * linear(theta['linear'], h)[0], h

  return Cell(init, lambda: jnp.zeros(hidden), step)


def by_rank(params):
  return jax.tree.map(
    lambda x: 'matrix' if jnp.ndim(x) > 1 else 'other', params
  )


LEARNED = {
  'lstm_raw': lstm_raw(),
  'lstm_log_and_sign': lstm_log_and_sign(),
  'small': coordinatewise(log_and_sign(), lstm_cell((5,))),
  'robust': robust_optimizer(),
  'gated': robust_optimizer(3, agreement=None, warmup=0.0),
  'gru': coordinatewise(log_and_sign(), gru_cell()),
  'bfloat16_state': coordinatewise(gradient(), lstm_cell((5,)), jnp.bfloat16),
  'linear': coordinatewise(gradient(), lstm_cell(hidden=(), scale=1.0)),
  'standardised_mlp': coordinatewise(
    log_and_sign(), standardised(mlp_cell((5, 4)))
  ),
  'predicted_step_descent': predicted_step_descent(hidden=4),
  'scale_free': predicted_step_descent(hidden=4, features='scale_free'),
  'lstm_policy': lstm_policy(),
  'autonomous': autonomous_optimizer(depth=3, hidden=5),
  'grouped': grouped(
    coordinatewise(gradient(), lstm_cell((4,))),
    Groups(by_rank, ('matrix', 'other')),
  ),
  'sized': sized(
    coordinatewise(gradient(), lstm_cell((4,))),
    Groups(by_rank, ('matrix', 'other')),
    {'matrix': 9, 'other': 2000},
  ),
  'chunked': chunked(coordinatewise(log_and_sign(), lstm_cell((5,))), 5),
  'averaged': coordinatewise(gradient(), lstm_cell((6, 4), averaged=2)),
  'ntm_bfgs': coordinatewise(gradient(), ntm_bfgs_cell((5,), averaged=2)),
  # One net for all coordinates, 20 as in `tree`.
  'joint': autonomous_optimizer(coordinates=20, depth=3, hidden=5),
}
NEED_VALUE = ('predicted_step_descent', 'scale_free', 'autonomous', 'joint')
NEED_PARAMS = ('predicted_step_descent', 'scale_free')
COMMUNICATE = ('averaged', 'ntm_bfgs', 'joint', 'robust')
OF_ANY_SIZE = [name for name in LEARNED if name != 'joint']
SEPARABLE = [name for name in LEARNED if name not in COMMUNICATE]


def theta_of(learned, seed=0):
  """Some theta; `learned.init` compiles for a second or three."""
  rng = np.random.default_rng(seed)

  def some(path, x):
    name = jax.tree_util.keystr(path[-1:], simple=True)
    constant = {'mean': 0.0, 'std': 1.0, 'output': 1.0}.get(name)
    fan_in = x.shape[0] if x.ndim else 1
    drawn = rng.normal(size=x.shape) * fan_in**-0.5
    drawn = drawn if constant is None else np.full(x.shape, constant)
    return jnp.asarray(drawn, x.dtype)

  like = jax.eval_shape(learned.init, jax.random.key(0))
  return jax.tree.map_with_path(some, like)


def tree(dtype=jnp.float32):
  """20 coordinates in leaves of all ranks, with nothing and None."""
  rng = np.random.default_rng(1)
  make = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)
  return {
    'w': make(4, 3),
    'b': make(3),
    's': make(),
    'none': None,
    'empty': make(0, 2),
    'nested': (make(2, 1, 2),),
  }
