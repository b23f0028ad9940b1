"""The papers' learned optimizers by name: features times cell."""

import jax
import optax

from l2o_jax.base import LearnedOptimizer
from l2o_jax.cells.lstm import lstm_cell
from l2o_jax.cells.mlp import mlp_cell
from l2o_jax.cells.standardised import standardised
from l2o_jax.coordinatewise import coordinatewise, grouped
from l2o_jax.features import gradient, history, log_and_sign, relative_changes
from l2o_jax.joint import joint


def flattened(learned: LearnedOptimizer) -> LearnedOptimizer:
  """`learned` on all leaves as one vector (`optax.flatten`).

  The same updates; the faster form for nets of several small leaves, and the
  form that cells need which communicate over all coordinates.
  """

  def transform(theta):
    flat = optax.flatten(learned.transform(theta))

    def update(updates, state, params=None, **extra_args):
      new, state = flat.update(updates, state, params, **extra_args)
      # One vector has one type; each leaf gets its own back.
      new = jax.tree.map(lambda x, like: x.astype(like.dtype), new, updates)
      return new, state

    return optax.GradientTransformationExtraArgs(flat.init, update)

  return LearnedOptimizer(learned.init, transform)


def lstm_raw(scale: float = 1.0) -> LearnedOptimizer:
  """LSTM on the raw gradient, the paper's for quadratics (section 3.1)."""
  return flattened(coordinatewise(gradient(), lstm_cell(scale=scale)))


def lstm_log_and_sign(p: float = 10.0, scale: float = 0.1) -> LearnedOptimizer:
  """LSTM on logarithm and sign, the paper's for MNIST (section 3.2).

  The released code has p = 5 and scale = 0.01.
  """
  return flattened(coordinatewise(log_and_sign(p), lstm_cell(scale=scale)))


def predicted_step_descent(
  label_fn=None, groups=None, hidden: int = 128
) -> LearnedOptimizer:
  """Predicted Step Descent (Li & Malik 2017, sections 3.5 and 4).

  One LSTM layer on the relative changes of value, gradient and step.  It needs
  `value` in `update`, raises a TypeError without, and works past its horizon.

  Args:
    label_fn: see `grouped`: one theta for each coordinate group, in the paper
      every weight matrix and every bias vector.
    groups: names of the groups; None: one theta for all.
    hidden: units of the LSTM; 128 in the paper.
  """
  learned = coordinatewise(
    relative_changes(), standardised(lstm_cell((hidden,), scale=1.0))
  )
  return learned if groups is None else grouped(learned, label_fn, groups)


def autonomous_optimizer(
  num_coordinates: int, depth: int = 25, hidden: int = 50
) -> LearnedOptimizer:
  """The policy of Li & Malik 2016 (section 4): a net of all coordinates' past.

  It needs `value` in `update` and raises a TypeError without.

  Args:
    num_coordinates: n.
    depth: steps of the past that it sees; 25 in the paper.
    hidden: softplus units; 50.
  """
  cell = standardised(mlp_cell((hidden,), outputs=num_coordinates))
  return joint(history(depth), cell, num_coordinates)
