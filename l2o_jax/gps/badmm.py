"""Guided policy search by Bregman ADMM, the form of both papers."""

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from l2o_jax.checks import above_zero, positive, require
from l2o_jax.gps import costs, iteration
from l2o_jax.gps.dynamics import fit_controller
from l2o_jax.gps.iteration import choose, guide_actions
from l2o_jax.gps.linalg import from_diagonal
from l2o_jax.gps.lqr import constrained_step
from l2o_jax.gps.model import explored, fit_model, scaled, unscaled
from l2o_jax.gps.policy import Lesson, learn, policy_actions

DUAL_RATE = 0.2  # as in the released code of 2016
# Bounds of ν, which would double for ever where a policy cannot follow.
PENALTIES = 1e-8, 1e8


class Dual(NamedTuple):
  """What ties a guide and the policy together.

  Attributes:
    multipliers: λ [T, A], cost in the model's units, actions in their own.
    penalties: ν [T].
    eta: η [], where to start the search.
  """

  multipliers: chex.Array
  penalties: chex.Array
  eta: chex.Array


def _divergence_of_policy(mu, variance, guide, states):
  """KL_t(pi ‖ psi), pi = N(mu [S, T, A], variance [A]), mean over states, [T].

  Only the diagonal of G counts.
  """
  G = jnp.linalg.diagonal(guide.noise)
  distance = jnp.mean((mu - guide_actions(guide, states)) ** 2, 0)
  ratio = variance / G
  return jnp.sum(ratio - 1 - jnp.log(ratio) + distance / G, -1) / 2


def _adapted(nu, kl):
  """ν_t ×2 where KL_t >= mean + std / 2, ×1/2 where KL_t < mean - std; cut."""
  mean, std = jnp.mean(kl), jnp.std(kl)
  lower = jnp.where(kl < mean - std, 0.5, 1.0)
  nu = nu * jnp.where(kl >= mean + 0.5 * std, 2.0, lower)
  return jnp.clip(nu, *PENALTIES)


def _improve_one(cost, blend, samples, mu, guide, dual, kl_step, limits):
  """The guide step of one guide; mu: the policy's actions [S, T, A].

  Returns:
    (guide, Dual, Report).
  """
  model = fit_model(samples, cost, blend)
  psi, mu, nu = scaled(guide, model), mu / model.action_unit, dual.penalties
  variance = explored(psi, model, limits)  # [T, A]
  psi = psi._replace(noise=from_diagonal(variance))
  pi_variance = jnp.sum(nu) / jnp.sum(nu[:, None] / variance, 0)  # [A]
  spread = jnp.broadcast_to(pi_variance, variance.shape)
  pi = fit_controller(model.states, mu, spread, blend)
  # G⁻¹ (E[μ_pi] - E[μ_psi]), [T, A]
  apart = jnp.mean(mu - guide_actions(psi, model.states), 0) / variance
  lam = dual.multipliers * model.action_unit  # [T, A]
  lam += DUAL_RATE * nu[:, None] * apart
  bound = kl_step * variance.size
  task = (model.dynamics, model.cost, lam, nu, pi)
  new, info = constrained_step(*task, psi, bound, dual.eta)
  kl = _divergence_of_policy(mu, pi_variance, new, model.states)
  dual = Dual(lam / model.action_unit, _adapted(nu, kl), info.eta)
  report = iteration.Report(info.kl, jnp.sum(kl), info.fall)
  return unscaled(new, model), dual, report


def badmm(
  cost: costs.CostModel = costs.gradient_share,
  *,
  blend: float = 0.05,
  inner_iterations: int = 2,
  policy_rollouts: float = 0.0,
  penalty: float = 0.01,
) -> iteration.Improve:
  r"""Bregman ADMM (Li & Malik 2016, section 3; 2017, section 3.3).

      theta <- argmin sum_t λ_t^T E[μ_pi] + ν_t KL(pi ‖ psi)       (regression)
      λ_t   <- λ_t + α ν_t G_t⁻¹ (E[μ_pi] - E[μ_psi])
      psi   <- argmin sum_t E[c - λ_t^T a] + ν_t KL(psi ‖ pi),
               sum_t KL(psi ‖ psi°) <= ε                            (LQR)

  alternate; the third line is the guide step.  In the second line μ_psi and G_t
  are those of psi°, the guide that was rolled out; in public code they are of
  the last psi (BUILD_NOTES.md).  After the last alternation ν_t changes
  (`_adapted`).  The targets of the regression are a - G_t λ_t / ν_t, as
  the objective implies; public codes have a - ν_t G_t λ_t, which leaves λ
  without effect.

  Args:
    cost: what LQR minimizes.
    blend: weight of the other times in the fits, 0 ... 1 (see `regress`).
    inner_iterations: alternations of an iteration; 4 in 2016.
    policy_rollouts: share of the rollouts that the policy makes after the first
      iteration; 0 in the papers.  From the guide's rollouts alone, the policy
      learns on states that it will not visit.
    penalty: ν_t at first, > 0; 0.01 in the released code of 2016.  The larger
      it is, the closer the guides stay to the policy.

  Returns:
    Improve; its dual is Dual [P, M, ...].

  Raises:
    ValueError: the cost gives each sample its own terms (`of_samples`), or the
      penalty or the number of alternations is not positive, or a share is not
      in 0 ... 1.
  """
  why = 'the cost gives each sample its own actions, no guide to roll out'
  require(not cost.of_samples, f'badmm: {why}: it needs mirror_descent')
  above_zero('badmm', penalty=penalty)
  positive('badmm', inner_iterations=inner_iterations)
  shares = 0 <= blend <= 1 and 0 <= policy_rollouts <= 1
  found = f'{blend!r} and {policy_rollouts!r}'
  require(shares, f'badmm: blend and policy_rollouts must be 0 ... 1: {found}')
  improve_one = functools.partial(_improve_one, cost, blend)

  def init(shape):
    P, M, T, A = shape
    nu = jnp.full((P, M, T), penalty, jnp.float32)
    return Dual(jnp.zeros((P, M, T, A)), nu, jnp.ones((P, M)))

  def step(policy, iterate, evidence):
    samples = evidence.samples

    def alternate(now, inner):
      G = jnp.linalg.diagonal(now.guide.noise)  # [P, M, T, A]
      nu = now.dual.penalties  # [P, M, T]
      own = guide_actions(now.guide, samples.states[..., :-1, :])
      shift = G * now.dual.multipliers / nu[..., None]  # [P, M, T, A]
      targets = own - shift[:, :, None]  # [P, M, S, T, A]
      precision = nu / jnp.mean(G, -1)  # [P, M, T]
      lesson = Lesson(samples.observations, targets, precision, evidence.accept)
      key = jax.random.fold_in(evidence.key, inner)
      theta, error = learn(policy, now.theta, lesson, evidence.regression, key)
      # Multipliers may overflow after hundreds of iterations.
      fine = jnp.isfinite(error)
      theta = choose(fine, theta, now.theta)
      mu = policy_actions(policy, theta, samples.observations)
      # In every alternation the guide step starts from the guide that was
      # rolled out; ν_t changes only after the last, as in the released code.
      guide, dual, report = iteration.for_each_guide(
        improve_one, samples, mu, iterate.guide, now.dual, *evidence.trust
      )
      last = inner == inner_iterations - 1
      dual = dual._replace(penalties=jnp.where(last, dual.penalties, nu))
      accept = evidence.accept & fine
      guide = choose(accept, guide, now.guide)
      dual = choose(accept, dual, now.dual)
      return iteration.Iterate(theta, guide, dual), (report, error)

    inner = jnp.arange(inner_iterations)
    iterate, reports = jax.lax.scan(alternate, iterate, inner)
    return iterate, *jax.tree.map(lambda x: x[-1], reports)

  share = policy_rollouts
  return iteration.Improve(init, step, cost, share, judges_policy=False)
