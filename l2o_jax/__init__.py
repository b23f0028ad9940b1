"""Learned optimizers in JAX.

Features x cell = a learned optimizer; learned optimizer x optimizee x
meta-trainer = theta.  Given theta, a learned optimizer is an optax
transformation:

  learned = l2o_jax.lstm_log_and_sign()
  theta = l2o_jax.load(path, learned.init(jax.random.key(0)))
  opt = learned.transform(theta)      # inside the function that is jitted
  opt_state = opt.init(params)
  updates, opt_state = opt.update(grads, opt_state, params)
  params = optax.apply_updates(params, updates)

Notation:

  Andrychowicz et al. 2016    here
  phi                         theta, weights of the learned optimizer
  theta                       params, what the optimizee optimizes
  f                           loss of the optimizee
  m(grad, h, phi)             a cell under `coordinatewise`
  g_t                         updates
  h_t                         state of the cell
  w_t                         weights of the meta-loss
  L(phi)                      meta_loss
"""

from l2o_jax.base import (
    Cell,
    Features,
    LearnedOptimizer,
    MetaTrainer,
    Optimizee,
)
from l2o_jax.checkpoint import CheckpointError, load, metadata, save
from l2o_jax.coordinatewise import coordinatewise, grouped
from l2o_jax.evaluation import learning_curves, tune_learning_rate
from l2o_jax.features import gradient, log_and_sign
from l2o_jax.learned_optimizers import (
    flattened,
    lstm_log_and_sign,
    lstm_raw,
)
from l2o_jax.lstm import lstm_cell
from l2o_jax.truncated_bptt import meta_loss, truncated_bptt
from l2o_jax.unroll import unroll

__all__ = (
    'Cell',
    'CheckpointError',
    'Features',
    'LearnedOptimizer',
    'MetaTrainer',
    'Optimizee',
    'coordinatewise',
    'flattened',
    'gradient',
    'grouped',
    'learning_curves',
    'load',
    'log_and_sign',
    'lstm_cell',
    'lstm_log_and_sign',
    'lstm_raw',
    'meta_loss',
    'metadata',
    'save',
    'truncated_bptt',
    'tune_learning_rate',
    'unroll',
)
