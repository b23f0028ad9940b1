"""The papers' learned optimizers by name: features times cell."""

import jax
import optax

from l2o_jax.base import LearnedOptimizer
from l2o_jax.coordinatewise import coordinatewise
from l2o_jax.features import gradient, log_and_sign
from l2o_jax.lstm import lstm_cell


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
