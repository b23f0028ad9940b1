"""Guided policy search as mirror descent: the policy is its own guide."""

import jax.numpy as jnp
import optax

from l2o_jax.checks import require
from l2o_jax.gps import costs, iteration
from l2o_jax.gps.dynamics import fit_controller
from l2o_jax.gps.iteration import choose, guide_actions
from l2o_jax.gps.lqr import constrained_step, untied_step
from l2o_jax.gps.model import explored, fit_model, scaled, unscaled
from l2o_jax.gps.policy import Lesson, learn, policy_actions


def mirror_descent(
  cost: costs.CostModel = costs.sample_taylor, *, blend: float = 0.05
) -> iteration.Improve:
  """Mirror descent (Montgomery & Levine 2016): no λ and ν.

      psi <- argmin E[c]  with  KL(psi ‖ pi_lin) <= ε             (LQR)
      theta <- regression on  pi(o) + (psi - pi_lin)(s)

  The first line is the guide step.  If the cost gives each sample its own terms
  (`of_samples`), each sample has its own offset (`untied_step`) instead of
  psi - pi_lin.  The policy itself is rolled out: it learns on the states that
  it visits, and its own rollouts judge it.  In an iteration that starts from
  nothing the policy learns the first guide's actions instead.

  Args:
    cost: what LQR minimizes.
    blend: weight of the other times in the fits, 0 ... 1 (see `regress`).

  Returns:
    Improve; its dual is η [P, M], where to start the search.

  Raises:
    ValueError: `blend` is not in 0 ... 1.
  """
  share = f'mirror_descent: blend must be 0 ... 1, got {blend!r}'
  require(0 <= blend <= 1, share)

  def improve_one(samples, mu, guide, eta, kl_step, limits):
    """The guide step: new guide, change of action [S, T, A], η, Report."""
    model = fit_model(samples, cost, blend)
    variance = explored(scaled(guide, model), model, limits)  # [T, A]
    states, mu = model.states, mu / model.action_unit
    pi = fit_controller(states, mu, variance, blend)
    bound = kl_step * variance.size
    task = (model.dynamics, model.cost)
    if cost.of_samples:
      change, noise, info = untied_step(*task, pi, bound, eta)
      new = pi._replace(noise=noise)
    else:
      none = (jnp.zeros_like(variance), jnp.zeros(len(variance)), pi)  # no λ, ν
      new, info = constrained_step(*task, *none, pi, bound, eta)
      change = guide_actions(optax.tree.sub(new, pi), states)
    report = iteration.Report(info.kl, info.kl, info.fall)
    return unscaled(new, model), change * model.action_unit, info.eta, report

  def step(policy, iterate, evidence):
    samples = evidence.samples
    mu = policy_actions(policy, iterate.theta, samples.observations)
    guide, change, eta, report = iteration.for_each_guide(
      improve_one, samples, mu, iterate.guide, iterate.dual, *evidence.trust
    )
    own = guide_actions(iterate.guide, samples.states[..., :-1, :])
    targets = jnp.where(evidence.first, own, mu + change)  # [P, M, S, T, A]
    guide = choose(evidence.first, iterate.guide, guide)
    precision = 1 / jnp.mean(jnp.linalg.diagonal(guide.noise), -1)  # [P, M, T]
    lesson = Lesson(samples.observations, targets, precision, evidence.accept)
    knobs, key = evidence.regression, evidence.key
    theta, error = learn(policy, iterate.theta, lesson, knobs, key)
    # One theta serves all functions, so all of them are accepted, or none.
    accept = evidence.accept & jnp.isfinite(error)
    theta = choose(accept[0], theta, iterate.theta)
    guide = choose(accept, guide, iterate.guide)
    eta = choose(accept, eta, iterate.dual)
    return iteration.Iterate(theta, guide, eta), report, error

  init = lambda shape: jnp.ones(shape[:2])
  return iteration.Improve(init, step, cost, 1.0, judges_policy=True)
