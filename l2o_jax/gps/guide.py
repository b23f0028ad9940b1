"""The guide's side: a model of one guide's samples, and its improvement.

For ONE guide, in float64 (`vmap` makes it many): covariances of histories are
close to singular.  Results are float32 again.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from l2o_jax.gps import costs
from l2o_jax.gps.dynamics import fit_controller, fit_dynamics, secant_curvature
from l2o_jax.gps.lqr import (
  Controller,
  Cost,
  Dynamics,
  constrained_step,
  inverse,
  untied_step,
)


class ModelOptions(NamedTuple):
  """How samples become a model; see `guided_policy_search` for the reasons."""

  cost: str = 'gradient_share'
  blend: float = 0.05
  ridge: float = 1e-3
  curvature_limits: tuple[float, float] = (0.2, 5.0)


class Model(NamedTuple):
  """Dynamics and cost in units in which states and actions are of order one.

  Attributes:
    dynamics: of s / state_unit and a / action_unit.
    cost: likewise, mean stage cost 1.
    states: samples in these units, [S, T + 1, D].
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


def fit_model(
  states, actions, exact, values, hessian, options: ModelOptions
) -> Model:
  """Samples of one guide -> Model (see `Samples` for the shapes)."""
  A, D = actions.shape[-1], states.shape[-1]
  columns = states.reshape(*states.shape[:2], D // A, A)
  unit = _or_one(jnp.std(columns, (0, 1, 3)))  # the same for all coordinates
  x_unit, _, u_unit = unit[:3]
  state_unit = jnp.repeat(unit, A)
  action_unit = _or_one(jnp.sqrt(jnp.mean(actions**2)))
  s, a = states / state_unit, actions / action_unit
  g = s[..., A : 2 * A]
  curvature = secant_curvature(g, a, options.curvature_limits)
  dynamics = fit_dynamics(
    s,
    a,
    blend=options.blend,
    ridge=options.ridge,
    curvature=curvature,
    step_ratios=(action_unit / x_unit, action_unit / u_unit),
    alone=A > 1,
  )
  if options.cost == 'taylor':
    hessian = costs.positive(hessian + 0 * curvature)  # LAPACK: one at a time
    cost = costs.taylor(
      s[..., :A], x_unit * exact, x_unit**2 * hessian, values, D
    )
    level = jnp.mean(values) - jnp.min(values)
  elif options.cost in costs.OF_SAMPLES:
    second = (
      curvature * x_unit * unit[1] / action_unit
      if options.cost == 'sample_taylor'
      else None
    )
    cost = costs.sample_taylor(x_unit * exact, second, values, D)
    level = jnp.mean(values) - jnp.min(values)
  else:
    cost = costs.gradient_share(curvature, D)
    level = (
      jnp.mean(jnp.einsum('sti,tij,stj->st', g, inverse(curvature), g)) / 2
    )
  cost = jax.tree.map(lambda c: c / _or_one(level), cost)
  return Model(
    dynamics, cost, s, state_unit, action_unit, jnp.sqrt(jnp.mean(a**2, (0, 2)))
  )


def scaled(guide: Controller, model: Model) -> Controller:
  """A controller in the model's units."""
  return Controller(
    guide.gain * model.state_unit / model.action_unit,
    guide.offset / model.action_unit,
    guide.noise / model.action_unit**2,
  )


def unscaled(guide: Controller, model: Model) -> Controller:
  """The inverse of `scaled`."""
  return Controller(
    guide.gain * model.action_unit / model.state_unit,
    guide.offset * model.action_unit,
    guide.noise * model.action_unit**2,
  )


def explored(guide: Controller, action_rms, limits) -> chex.Array:
  """Variances with which a guide was rolled out (`exploration`), [T, A]."""
  std = jnp.sqrt(jnp.einsum('tii->ti', guide.noise))
  low, high = (limit * action_rms[:, None] for limit in limits)
  return jnp.clip(std, low, high) ** 2 + 1e-12


def _diagonal(variance):
  return jax.vmap(jnp.diag)(variance)


def momentum_guide(shape, initial, num_columns: int, size: int) -> Controller:
  """Gradient descent with momentum: Δx = -rate g + momentum u.

  Args:
    shape: leading axes of the result.
    initial: (rate, momentum).
    num_columns: of s = (x, g, u, Φ) for a coordinate.
    size: A; with joint guides the state is feature-major.
  """
  rate, momentum = initial
  eye = jnp.eye(size)
  gain = jnp.zeros((size, num_columns * size))
  gain = gain.at[:, size : 2 * size].set(-rate * eye)
  gain = gain.at[:, 2 * size : 3 * size].set(momentum * eye)
  repeat = lambda x: jnp.tile(x, shape + (1,) * x.ndim)
  return Controller(repeat(gain), repeat(jnp.zeros(size)), repeat(eye))


class Dual(NamedTuple):
  """What ties guide and policy together.

  Attributes:
    multipliers: λ [T, A].
    penalties: ν [T].
    eta: η [], where to start the search.
  """

  multipliers: chex.Array
  penalties: chex.Array
  eta: chex.Array


class GuideInfo(NamedTuple):
  """Of one step of a guide; all [].

  Attributes:
    kl: from the previous guide, summed over t.
    policy_kl: KL(pi ‖ psi), summed over t.
    predicted: relative fall of the modelled cost.
  """

  kl: chex.Array
  policy_kl: chex.Array
  predicted: chex.Array


def _in_float64(function):
  def wrapped(*args):
    with jax.enable_x64(True):
      args = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), args)
      return jax.tree.map(lambda x: x.astype(jnp.float32), function(*args))

  return wrapped


def badmm_step(options: ModelOptions, dual_rate: float):
  """(Li & Malik 2017, section 3.3) -> a function of one guide's samples.

  The policy's actions along the samples are made linear in the state, then

      λ_t += α ν_t G_t⁻¹ mean(μ_pi - μ_psi)
      psi <- `constrained_step` with λ, ν
      ν_t ×2 where KL_t(pi ‖ psi) >= mean + std / 2, ×1/2 where < mean - std

  with λ and ν in the model's units of cost and the action's own.

  Returns:
    function of (states, actions, exact, values, hessian, mu: the policy's
    actions [S, T, A], guide, dual, kl_step: ε / (T A) [], limits) ->
    (guide, dual, GuideInfo); `limits` are those of the exploration.
  """

  def step(
    states, actions, exact, values, hessian, mu, guide, dual, kl_step, limits
  ):
    model = fit_model(states, actions, exact, values, hessian, options)
    psi = scaled(guide, model)
    variance = explored(psi, model.action_rms, limits)
    psi = psi._replace(noise=_diagonal(variance))
    now, mu = model.states[:, :-1], mu / model.action_unit
    own = jnp.einsum('tad,std->sta', psi.gain, now) + psi.offset
    nu = dual.penalties
    policy_variance = jnp.sum(nu) / jnp.sum(nu[:, None] / variance, 0)
    pi = fit_controller(
      now,
      mu,
      jnp.broadcast_to(policy_variance, variance.shape),
      blend=options.blend,
      ridge=options.ridge,
    )
    lam = (
      dual.multipliers * model.action_unit
      + dual_rate * nu[:, None] * jnp.mean(mu - own, 0) / variance
    )
    T, A = variance.shape
    new, info = constrained_step(
      model.dynamics, model.cost, lam, nu, pi, psi, kl_step * T * A, dual.eta
    )
    after = jnp.einsum('tad,std->sta', new.gain, now) + new.offset
    G = jnp.einsum('tii->ti', new.noise)
    kl = (
      jnp.sum(
        policy_variance / G
        - 1
        - jnp.log(policy_variance / G)
        + jnp.mean((mu - after) ** 2, 0) / G,
        -1,
      )
      / 2
    )
    mean, std = jnp.mean(kl), jnp.std(kl)
    nu = nu * jnp.where(
      kl >= mean + 0.5 * std, 2.0, jnp.where(kl < mean - std, 0.5, 1.0)
    )
    return (
      unscaled(new, model),
      Dual(lam / model.action_unit, nu, info.eta),
      GuideInfo(info.kl, jnp.sum(kl), 1 - info.cost / info.previous_cost),
    )

  return _in_float64(step)


def mirror_step(options: ModelOptions):
  """Mirror descent: LQR from the policy itself, no λ and ν.

      psi <- argmin E[c]  with  KL(psi ‖ pi_lin) <= ε

  or with a cost of samples an offset for every sample (`untied_step`).

  Returns:
    as `badmm_step`, but the first result is (psi, the change of action that the
    policy is to learn along the samples [S, T, A]), (psi - pi_lin)(s).  With
    a cost of samples psi is that of the deviations from a sample.
  """

  def step(
    states, actions, exact, values, hessian, mu, guide, dual, kl_step, limits
  ):
    model = fit_model(states, actions, exact, values, hessian, options)
    variance = explored(scaled(guide, model), model.action_rms, limits)
    now, mu = model.states[:, :-1], mu / model.action_unit
    pi = fit_controller(
      now, mu, variance, blend=options.blend, ridge=options.ridge
    )
    T, A = variance.shape
    bound = kl_step * T * A
    if options.cost in costs.OF_SAMPLES:
      change, noise, info = untied_step(
        model.dynamics, model.cost, pi, bound, dual.eta
      )
      new = pi._replace(noise=noise)
    else:
      new, info = constrained_step(
        model.dynamics,
        model.cost,
        jnp.zeros((T, A)),
        jnp.zeros(T),
        pi,
        pi,
        bound,
        dual.eta,
      )
      change = (
        jnp.einsum('tad,std->sta', new.gain - pi.gain, now)
        + new.offset
        - pi.offset
      )
    return (
      (unscaled(new, model), change * model.action_unit),
      dual._replace(eta=info.eta),
      GuideInfo(info.kl, info.kl, 1 - info.cost / info.previous_cost),
    )

  return _in_float64(step)
