"""Dynamics and cost of one guide, fitted to its samples.

Everything is for ONE guide: `for_each_guide` (iteration.py) makes it many.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from l2o_jax.gps.costs import CostModel, Scaled
from l2o_jax.gps.dynamics import fit_dynamics, secant_curvature
from l2o_jax.gps.linalg import semidefinite
from l2o_jax.gps.lqr import Controller, Cost, Dynamics
from l2o_jax.gps.rollouts import Samples


class Model(NamedTuple):
  """Dynamics and cost in units in which states and actions are of order one.

  Attributes:
    dynamics: of s / state_unit and a / action_unit.
    cost: of the same states, mean stage cost 1.
    states: of the samples in these units, without the last, [S, T, D].
    state_unit: [D].
    action_unit: [].
    action_rms: of the samples at every t, in these units, [T].
  """

  dynamics: Dynamics
  cost: Cost
  states: chex.Array
  state_unit: chex.Array
  action_unit: chex.Array
  action_rms: chex.Array


def _or_one(x):
  return jnp.where(x > 1e-12, x, 1.0)


def fit_model(samples: Samples, cost: CostModel, blend: float) -> Model:
  """Samples of one guide -> Model.

  Args:
    samples: without the axes P, M.
    cost: what LQR minimizes.
    blend: see `regress`.
  """
  states, actions = samples.states, samples.actions
  A, D = actions.shape[-1], states.shape[-1]
  # A column of the state has one unit for all A coordinates: [D / A].
  columns = states.reshape(*states.shape[:2], D // A, A)
  unit = _or_one(jnp.std(columns, (0, 1, 3)))
  x_unit, g_unit, u_unit = unit[:3]
  state_unit = jnp.repeat(unit, A)
  action_unit = _or_one(jnp.sqrt(jnp.mean(actions**2)))
  s, a = states / state_unit, actions / action_unit
  curvature = secant_curvature(s[..., A : 2 * A], a)
  ratios = (action_unit / x_unit, action_unit / u_unit)
  dynamics = fit_dynamics(s, a, blend, ratios, curvature, alone=A > 1)
  if cost.needs_hessian:
    # `0 * curvature` makes these eigenvalues wait for those in
    # `secant_curvature`: two calls of LAPACK at once can deadlock (linalg.py).
    hessian = semidefinite(x_unit**2 * samples.curvature + 0 * curvature)
  else:
    # f has no unit of its own, so ∂²f/∂x² is in units of 1 / x_unit².
    hessian = curvature * x_unit**2 * g_unit / action_unit
  slopes = x_unit * samples.exact
  shown = Scaled(s, slopes, samples.values, curvature, hessian)
  fitted, size = cost.fit(shown)
  fitted = jax.tree.map(lambda c: c / _or_one(size), fitted)
  rms = jnp.sqrt(jnp.mean(a**2, (0, 2)))
  return Model(dynamics, fitted, s[:, :-1], state_unit, action_unit, rms)


def scaled(guide: Controller, model: Model) -> Controller:
  """A controller in the model's units."""
  s, a = model.state_unit, model.action_unit
  return Controller(guide.gain * s / a, guide.offset / a, guide.noise / a**2)


def unscaled(guide: Controller, model: Model) -> Controller:
  """The inverse of `scaled`."""
  s, a = model.state_unit, model.action_unit
  return Controller(guide.gain * a / s, guide.offset * a, guide.noise * a**2)


def explored(guide: Controller, model: Model, limits) -> chex.Array:
  """Variances with which a guide was rolled out (`exploration`), [T, A].

  Args:
    guide: in the model's units.
    model: of its samples.
    limits: of the exploration.
  """
  std = jnp.sqrt(jnp.linalg.diagonal(guide.noise))
  low, high = (limit * model.action_rms[:, None] for limit in limits)
  return jnp.clip(std, low, high) ** 2 + 1e-12
