"""The papers' learned optimizers by name: features times cell."""

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
  return LearnedOptimizer(
      learned.init, lambda theta: optax.flatten(learned.transform(theta)))


def lstm_raw(scale: float = 1.0) -> LearnedOptimizer:
  """LSTM on the raw gradient, the paper's for quadratics (section 3.1)."""
  return flattened(coordinatewise(gradient(), lstm_cell(scale=scale)))


def lstm_log_and_sign(p: float = 10.0, scale: float = 0.1) -> LearnedOptimizer:
  """LSTM on logarithm and sign, the paper's for MNIST (section 3.2).

  The released code has p = 5 and scale = 0.01.
  """
  return flattened(coordinatewise(log_and_sign(p), lstm_cell(scale=scale)))
