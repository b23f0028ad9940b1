"""Learned optimizers in JAX.

Features x cell = a learned optimizer; learned optimizer x optimizee x
meta-trainer = theta.  Given theta, a learned optimizer is an optax
transformation:

  learned, theta = l2o_jax.load_learned(path)
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

  Li & Malik 2016, 2017       here
  x                           params
  pi, its weights             policy, theta
  psi                         guide
  Phi, Psi                    state_features, relative_changes
"""

from l2o_jax import blocks, datasets, optimizees
from l2o_jax.base import (
  Cell,
  Features,
  Info,
  LearnedOptimizer,
  MetaTrainer,
  Optimizee,
)
from l2o_jax.cells.gated import gated_cell
from l2o_jax.cells.lstm import lstm_cell
from l2o_jax.cells.mlp import mlp_cell
from l2o_jax.cells.ntm_bfgs import ntm_bfgs_cell
from l2o_jax.cells.schedule_free import eval_params, schedule_free
from l2o_jax.cells.standardised import standardised
from l2o_jax.checkpoint import CheckpointError, load, metadata, save
from l2o_jax.coordinatewise import coordinatewise
from l2o_jax.evaluation import learning_curves
from l2o_jax.evolution import evolution
from l2o_jax.features import adam_ratios, gradient, log_and_sign
from l2o_jax.gps.guided_policy_search import guided_policy_search
from l2o_jax.groups import Groups, grouped
from l2o_jax.guard import guarded
from l2o_jax.imitation import imitation
from l2o_jax.learned_optimizers import (
  autonomous_optimizer,
  flattened,
  lstm_averaging,
  lstm_log_and_sign,
  lstm_policy,
  lstm_raw,
  ntm_bfgs,
  predicted_step_descent,
  rnnprop,
  robust_optimizer,
)
from l2o_jax.policy_features import history, relative_changes, state_features
from l2o_jax.pretrained import pretrained, pretrained_optimizer
from l2o_jax.scale_free import scale_free
from l2o_jax.theta_files import load_learned, save_learned
from l2o_jax.truncated_bptt import meta_loss, truncated_bptt
from l2o_jax.unroll import unroll

__version__ = '0.2.0'

__all__ = (
  'Cell',
  'CheckpointError',
  'Features',
  'Groups',
  'Info',
  'LearnedOptimizer',
  'MetaTrainer',
  'Optimizee',
  'adam_ratios',
  'autonomous_optimizer',
  'blocks',
  'coordinatewise',
  'datasets',
  'eval_params',
  'evolution',
  'flattened',
  'gated_cell',
  'gradient',
  'grouped',
  'guarded',
  'guided_policy_search',
  'history',
  'imitation',
  'learning_curves',
  'load',
  'load_learned',
  'log_and_sign',
  'lstm_averaging',
  'lstm_cell',
  'lstm_log_and_sign',
  'lstm_policy',
  'lstm_raw',
  'meta_loss',
  'metadata',
  'mlp_cell',
  'ntm_bfgs',
  'ntm_bfgs_cell',
  'optimizees',
  'predicted_step_descent',
  'pretrained',
  'pretrained_optimizer',
  'relative_changes',
  'rnnprop',
  'robust_optimizer',
  'save',
  'save_learned',
  'scale_free',
  'schedule_free',
  'standardised',
  'state_features',
  'truncated_bptt',
  'unroll',
)
