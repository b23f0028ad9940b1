"""Families of functions to be minimized, one file each."""

from l2o_jax.optimizees.classifier import classifier, mlp
from l2o_jax.optimizees.convnet import convnet
from l2o_jax.optimizees.neural_art import neural_art
from l2o_jax.optimizees.quadratic import quadratic
from l2o_jax.optimizees.regression import (
  logistic_regression,
  robust_regression,
  small_net,
)
from l2o_jax.optimizees.rescaled import rescaled

__all__ = (
  'classifier',
  'convnet',
  'logistic_regression',
  'mlp',
  'neural_art',
  'quadratic',
  'rescaled',
  'robust_regression',
  'small_net',
)
