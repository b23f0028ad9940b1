"""Guided policy search as a MetaTrainer: roll out, accept, improve."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from l2o_jax.base import Features, Info, MetaTrainer, Theta
from l2o_jax.checks import above_zero, finite, require
from l2o_jax.gps import rollouts as runs
from l2o_jax.gps.controller import controller, momentum_guide
from l2o_jax.gps.iteration import Evidence, Improve, Iterate, choose
from l2o_jax.gps.lqr import Controller
from l2o_jax.gps.policy import (
  Policy,
  Regression,
  calibrated,
  check_policy,
  check_regression,
  of_iteration,
)


class GpsState(NamedTuple):
  """What passes from one iteration to the next.

  Attributes:
    theta: weights of the policy; replace them to start from others.
    guide: psi, Controller [P, M, T, ...].
    dual: multipliers, see `Improve.init`.
    accepted: the last iterate whose rollouts were no worse than before.
    accepted_cost: cost of the rollouts of `accepted`, sum over t of f, [P]; inf
      at first.
    kl_scale: factor of the largest KL step, [P].
    function_keys: key of each rollout's function and x_0, [P, N].
    iteration: number of iterations done, [].
  """

  theta: Theta
  guide: Controller
  dual: chex.ArrayTree
  accepted: Iterate
  accepted_cost: chex.Array
  kl_scale: chex.Array
  function_keys: chex.PRNGKey
  iteration: chex.Array


def _judge(before, costs, use_policy, by_policy, tolerance):
  """Cost of each function's rollouts, and whether they are accepted, [P].

  Args:
    before: the last accepted cost, [P].
    costs: of the rollouts, [P, N].
    use_policy: which of them the policy made, [N].
    by_policy: whether these judge the iteration, or the guides'.
    tolerance: see `guided_policy_search`.
  """
  who = (use_policy == by_policy) | jnp.all(~use_policy)  # [N]
  values = jnp.mean(costs, -1, where=who).astype(before.dtype)
  if by_policy:  # one theta for all functions
    values = jnp.full_like(values, jnp.mean(values))
  size = jnp.where(before < jnp.inf, jnp.abs(before), 0)
  worst = before + (tolerance - 1) * size
  return values, jnp.isfinite(values) & (values <= worst)


def _resized(kl_scale, accept):
  """Factor of the next largest KL step, [P]."""
  grown = jnp.minimum(1.2 * kl_scale, 3.0)
  return jnp.where(accept, grown, jnp.maximum(0.4 * kl_scale, 0.01))


def _take_back(state, keep, by_policy):
  """The iterate to improve: what was rolled out, or the last accepted one."""
  before = state.accepted
  theta = choose(keep[0] | (not by_policy), state.theta, before.theta)
  guide = choose(keep, state.guide, before.guide)
  return Iterate(theta, guide, choose(keep, state.dual, before.dual))


def _means(report, accept):
  """{name: mean over the accepted functions [P] of what is finite}."""
  mean = lambda x: jnp.mean(x, where=accept[:, None] & jnp.isfinite(x))
  return {name: mean(x) for name, x in report._asdict().items()}


def guided_policy_search(
  policy: Policy,
  state_features: Features,
  guide: tuple[float, float] | None,
  rollouts: runs.Rollouts,
  *,
  improve: Improve,
  regression: Regression = Regression(),
  kl_step: float | optax.Schedule = 0.2,
  tolerance: float = 1.01,
) -> MetaTrainer:
  """Guided policy search: a policy learns from guides that LQR improves.

  An iteration rolls out the guides or the policy, fits linear-Gaussian dynamics
  and a quadratic cost to the samples at every t, and improves guides (the guide
  step) and policy in turn, as `badmm` and `mirror_descent` say.  Every
  iteration runs the same functions from the same x_0.  If the rollouts became
  worse, the iteration is undone, and the next one takes a smaller step.

  Convolutional (Li & Malik 2017, section 3.4): all coordinates of a group share
  one guide, whose state describes a single coordinate.  Apart from the
  rollouts, the time of an iteration does not depend on the number of
  coordinates; it is linear in T.  If the policy sees all n coordinates (2016),
  a guide moves all of them.

  Args:
    policy: what is trained (`make_policy`).
    state_features: Φ, what the guide sees besides x, g and the last step.
    guide: (learning rate, momentum) of the first guide, which is gradient
      descent with momentum.  Search for them on the training objective, and
      take 0.2 to 0.3 of the best learning rate, so that the steps which LQR
      adds remain stable.  The first iteration rolls this guide out and sets the
      units of theta; the policy learns its actions.  None: theta comes from
      `imitation` or a file; only for `mirror_descent`, whose guides start from
      the policy.
    rollouts: which runs an iteration makes.
    improve: `badmm(...)`, the papers' form, or `mirror_descent(...)`.
    regression: how the policy learns; `first_steps=0` if there is a guide, but
      theta is not to start from nothing.
    kl_step: ε / (T A), or a schedule of it over the iterations; 0.2 in the
      released code of 2016.
    tolerance: rollouts are worse if they cost more than `tolerance` times the
      last accepted cost.  It must exceed what two rollouts of one policy differ
      by: 1.05 suits large minibatches, 1.3 small ones.  If it is too small, a
      policy whose first rollouts were lucky stays for good.

  Returns:
    MetaTrainer with state GpsState.  `step` runs under `jit`, `scan` and
    `jax.lax.map`, not under `vmap`, as the guide step is in float64.
    Info.losses are exact, [P, N, T + 1].
    Info.summary has:
      accepted_cost: sum over t of f along the last accepted rollouts (of the
        guides, or with mirror descent of the policy);
      policy_cost: the same along the policy's rollouts, nan if there are none;
      kl, policy_kl, predicted: means of `Report`;
      rejected: share of the functions whose guides were taken back;
      kl_scale: its mean;
      regression_error: in units of the action.

  Raises:
    ValueError: fewer than 2 steps or rollouts, no coordinates, functions that
      are no array of keys, a number that is out of its bounds; no guide for
      `badmm`; Φ needs a whole leaf.
    TypeError: the policy is not of `make_policy`, or `improve` not called.
  """
  check_policy(policy, 'guided_policy_search')
  made = isinstance(improve, Improve)
  made_by = 'guided_policy_search: improve must be badmm(...) or mirror_'
  require(made, f'{made_by}descent(...), called', TypeError)
  runs.check(rollouts, 'guided_policy_search')
  check_regression(regression, 'guided_policy_search')
  above_zero('guided_policy_search', tolerance=tolerance)
  if not callable(kl_step):
    above_zero('guided_policy_search', kl_step=kl_step)
  of_leaf = 'leaf' in state_features.needs
  require(not of_leaf, 'guided_policy_search: state_features need a whole leaf')
  if guide is not None:
    rate, momentum = guide
    finite('guided_policy_search: guide', 0, rate=rate, momentum=momentum)
  by_policy = improve.judges_policy
  named = 'guided_policy_search: badmm needs a first guide'
  require(guide is not None or by_policy, named)
  joint, A = policy.coordinates is not None, policy.coordinates or 1
  M, N, T = len(policy.groups.names), rollouts.num_rollouts, rollouts.num_steps
  from_nothing = guide is not None and regression.first_steps > 0
  kl_at = kl_step if callable(kl_step) else optax.constant_schedule(kl_step)

  def init(key):
    theta = policy.learned.init(jax.random.fold_in(key, 0))
    keys = runs.function_keys(rollouts, key)
    P, columns = len(keys), 3 + state_features.size
    psi = momentum_guide((P, M, T), guide or (0.0, 0.0), columns, A)
    iterate = Iterate(theta, psi, improve.init((P, M, T, A)))
    accepted = jax.tree.map(jnp.copy, iterate)
    worst = jnp.full(P, jnp.inf, jnp.float32)
    zero = jnp.zeros((), jnp.int32)
    return GpsState(*iterate, accepted, worst, jnp.ones(P), keys, zero)

  def roll_out(state, optimizee, key, use_policy, limits):
    groups, psi, keys = policy.groups, state.guide, state.function_keys
    first = lambda psi, g: controller(psi, state_features, groups, g)
    variance = jnp.linalg.diagonal(psi.noise)
    cast = runs.Cast(state.theta, first, psi, use_policy, variance, limits)
    needs = improve.cost.needs_hessian
    return runs.collect(rollouts, policy, optimizee, cast, keys, key, needs)

  def step(state, optimizee, key):
    key_rollouts, key_policy = jax.random.split(runs.typed(key))
    first = from_nothing & (state.iteration == 0)
    share = round(improve.policy_rollouts * N)
    share = share if by_policy else min(share, N - 1)  # some are judged
    use_policy = (jnp.arange(N) < share) & ~first  # [N]
    noise = jnp.array(rollouts.noise)  # (low, high)
    limits = jnp.where(first, rollouts.initial_noise, noise)
    found = roll_out(state, optimizee, key_rollouts, use_policy, limits)
    costs = jnp.sum(found.objective, -1)  # [P, N]
    before = state.accepted_cost  # [P]
    values, accept = _judge(before, costs, use_policy, by_policy, tolerance)
    # While nothing has been accepted, there is nothing to go back to.
    accepted = _take_back(state, accept | jnp.isinf(before), by_policy)
    samples = runs.to_samples(found, state_features, policy.features, joint)
    samples = choose(accept, samples, optax.tree.zeros_like(samples))
    seen, moved = samples.observations, samples.actions
    units = calibrated(policy, accepted.theta, seen, moved, accept)
    theta = choose(first & jnp.any(accept), units, accepted.theta)

    kl_scale = _resized(state.kl_scale, accept)
    bound = kl_scale * kl_at(state.iteration)  # the largest KL step, [P]
    each = lambda x, rest: jnp.broadcast_to(x, (len(accept), M, *rest))
    trust = each(bound[:, None], ()), each(limits, (2,))  # [P, M], [P, M, 2]
    knobs = of_iteration(regression, state.iteration, first)
    evidence = Evidence(samples, accept, trust, first, knobs, key_policy)
    iterate = accepted._replace(theta=theta)
    iterate, report, error = improve.step(policy, iterate, evidence)

    values = jnp.where(accept, values, before)
    # Of functions that were ever accepted; inf while there are none.
    of_any = lambda x: jnp.isfinite(x) | ~jnp.any(jnp.isfinite(x))
    summary = _means(report, accept) | {
      'accepted_cost': jnp.mean(values, where=of_any(values)),
      'policy_cost': jnp.mean(jnp.mean(costs, -1, where=use_policy)),
      'rejected': 1 - jnp.mean(accept),
      'kl_scale': jnp.mean(kl_scale),
      'regression_error': error,
    }
    failed = ~(jnp.any(accept) & jnp.isfinite(error))
    info = Info(found.objective, jnp.mean(costs)[None], failed[None], summary)
    # The first guide's cost does not measure the policy; a failed start is
    # repeated.
    values = jnp.where(first & by_policy, jnp.inf, values)
    done = state.iteration + ~(first & failed)
    keys = state.function_keys
    return GpsState(*iterate, accepted, values, kl_scale, keys, done), info

  return MetaTrainer(init, step)
