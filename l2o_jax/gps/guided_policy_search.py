"""Guided policy search, small and convolutional, as a MetaTrainer."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from l2o_jax.base import Cell, Features, MetaTrainer
from l2o_jax.cells.standardised import standardised
from l2o_jax.gps import costs
from l2o_jax.gps.controller import controller, exploration
from l2o_jax.gps.guide import (
  Dual,
  ModelOptions,
  badmm_step,
  mirror_step,
  momentum_guide,
)
from l2o_jax.gps.policy import policy_optimizer, regression, replay
from l2o_jax.gps.rollouts import mixture, retraced, rollout, to_samples
from l2o_jax.gps.state import GpsInfo, GpsState, Iterate
from l2o_jax.groups import Groups


def function_keys(key, count: int):
  """What `init(key)` of a trainer draws its P functions (or N) from."""
  return jax.random.split(jax.random.fold_in(key, 1), count)


def guided_policy_search(
  features: Features,
  cell: Cell,
  state_features: Features,
  *,
  num_steps: int,
  initial: tuple[float, float] | optax.GradientTransformation,
  method: str = 'badmm',
  groups: Groups | None = None,
  shared: bool = False,
  joint_size: int | None = None,
  num_functions: int | None = None,
  num_rollouts: int = 20,
  num_coordinates: int = 64,
  policy_rollouts: float = 0.0,
  cost: str = 'gradient_share',
  curvature_limits: tuple[float, float] = (0.2, 5.0),
  blend: float = 0.05,
  ridge: float = 1e-3,
  kl_step: float | optax.Schedule = 0.2,
  initial_penalty: float = 0.01,
  dual_rate: float = 0.2,
  released_targets: bool = False,
  inner_iterations: int = 2,
  noise_limits: tuple[float, float] = (0.02, 0.6),
  initial_noise: float = 0.3,
  common_noise: float = 0.0,
  precision_power: float = 0.5,
  regression_steps: int = 300,
  cloning_steps: int = 600,
  cloning_iterations: int = 1,
  cloning_scale: float = 0.0,
  batch_size: int = 128,
  learning_rate: float | optax.Schedule = 1e-3,
  tolerance: float = 1.01,
) -> MetaTrainer:
  r"""Guided policy search: a policy learns from guides that LQR improves.

  An iteration rolls the guides psi out, fits linear-Gaussian dynamics and a
  quadratic cost to the samples at every t, and alternates (Li & Malik 2017,
  section 3.3, Bregman ADMM)

      theta <- argmin sum_t λ_t^T E[μ_pi] + ν_t KL(pi ‖ psi)       (regression)
      λ_t   <- λ_t + α ν_t G_t⁻¹ (E[μ_pi] - E[μ_psi])
      psi   <- argmin sum_t E[c - λ_t^T a] + ν_t KL(psi ‖ pi),
               sum_t KL(psi ‖ psi°) <= ε                            (LQR)

  Convolutional (the default; 2017, section 3.4): all coordinates of a group
  share one guide, of a state of one coordinate, so an iteration's time does not
  depend on the number of coordinates, but for the rollouts, and is linear in T.
  `joint_size=n`: one guide moves all n coordinates of its function (2016).

  Every iteration rolls the same functions out, from the same x_0.  One that
  made the rollouts worse is taken back, and the next takes a smaller step.

  Args:
    features: what the policy sees.
    cell: the policy's program; `standardised` is put around it.
    state_features: Φ, what the guide sees besides x, g and the last step.
    num_steps: T.
    initial: (learning rate, momentum) of the first guide, gradient descent with
      momentum: from a search on the training objective, with 0.2 to 0.3 of the
      best learning rate, so that the steps which LQR adds remain stable.  Or
      with 'mdgps' any optimizer of single coordinates, such as
      `optax.rmsprop(...)`, for the policy to learn at first, which the papers
      lack.
    method: 'badmm', the papers'; 'mdgps', mirror descent: the policy itself is
      rolled out, psi starts from its linearization, and its targets are
      pi(o) + (psi - pi_lin)(s).  No λ and ν; the policy learns on the states
      that it visits.
    groups: coordinate groups, each with its own guide and theta; None: one.
    shared: one theta for all groups.
    joint_size: n for guides of whole functions, with a cell of n outputs.
    num_functions: P: each function has its own guide (2016).  None: one guide
      for all, every rollout on another function.
    num_rollouts: N for each guide; 20 in 2016.
    num_coordinates: J of each group and rollout that are looked at; redrawn
      every iteration.
    policy_rollouts: share of the rollouts that the policy makes, after the
      first iteration; badmm only.  0 is the paper's; with the guide's alone the
      policy is trained on states that it will not visit.
    cost: 'gradient_share': 1/2 g^T H⁻¹ g of each unit.  'taylor': the literal
      expansion of f, which for tied coordinates shows no direction (see
      costs.py) but is right for guides of whole functions.  'sample_taylor':
      that expansion with every sample's own gradient, which the paper averages.
      'sample_gradient': likewise to first order; LQR then plans no feedback
      beyond the policy's, so that the policy can follow, but its steps are
      cruder.  The last two for mdgps only.
    curvature_limits: see `secant_curvature`.
    blend: see `regress`.
    ridge: see `regress`.
    kl_step: ε / (T A), or a schedule of it over the iterations; 0.2 in the
      released code of 2016.
    initial_penalty: ν_t at first, 0.01 as in that code; 0.1 was worse.
    dual_rate: α, 0.2 as in that code.
    released_targets: regress on a - ν G λ as public codes do, instead of
      a - G λ / ν, which follows from the objective.
    inner_iterations: alternations of an iteration; badmm only; 4 in 2016.
    noise_limits: see `exploration`.
    initial_noise: standard deviation of the first guide's noise, relative.
    common_noise: see `exploration`.
    precision_power: p of the regression's weights (ν_t / G_t)^p, relative to
      their median over a group's guides and times, at most 10.  1 follows from
      the objective; with 1/2 the guides of steep functions, whose G is tiny,
      count less, and unseen functions gained from that.  While the policy
      learns an optimizer, E[a_t²] stands for G_t.
    regression_steps: of Adam in every alternation.
    cloning_steps: likewise in the first iteration, in which the policy learns
      the actions of `initial`.  0: the policy goes on from its theta.
    cloning_iterations: with 'mdgps', how many first iterations these are; from
      the second on it learns them along its own rollouts (DAgger, Ross et al.
      2011).
    cloning_scale: s >= 0; while the policy learns an optimizer, gradients and
      losses of each rollout are multiplied by exp(U(-s, s)), as are the
      gradients that the optimizer sees: most do not react, and the policy
      learns not to.  Without effect where `initial` is a guide.
    batch_size: samples in each of them.
    learning_rate: of Adam, or a schedule of it over the iterations.
    tolerance: rollouts are worse if they cost more than that times the last
      accepted cost.

  Returns:
    MetaTrainer with state GpsState and info GpsInfo.

  Raises:
    ValueError: unknown method or cost, a cost of samples or an optimizer
      as `initial` without 'mdgps', or joint with several groups.
  """
  if method not in ('badmm', 'mdgps'):
    raise ValueError(
      f"guided_policy_search: method must be 'badmm' or 'mdgps', got {method!r}"
    )
  if cost not in costs.NAMES:
    raise ValueError(
      f'guided_policy_search: cost must be one of {costs.NAMES}, got {cost!r}'
    )
  if cost in costs.OF_SAMPLES and method == 'badmm':
    raise ValueError(
      f'guided_policy_search: {cost!r} gives each sample its '
      "own actions, no guide to roll out: it needs 'mdgps'"
    )
  taught = isinstance(initial, optax.GradientTransformation)
  if taught and method == 'badmm':
    raise ValueError(
      'guided_policy_search: an optimizer as `initial` is no '
      "guide that could be improved: it needs 'mdgps'"
    )
  joint = joint_size is not None
  if joint and groups is not None:
    raise ValueError('guided_policy_search: joint guides have no groups')
  if num_steps < 2 or num_rollouts < 2:
    raise ValueError(
      f'guided_policy_search: num_steps and num_rollouts must '
      f'be at least 2, got {num_steps} and {num_rollouts}'
    )
  mirror = method == 'mdgps'
  learned = policy_optimizer(
    features, cell, groups, shared=shared, joint_size=joint_size
  )
  one_theta = groups is None or shared
  groups = groups or Groups(lambda params: 'all', ('all',))
  inner_cell = standardised(cell, coordinates=joint_size or 1)
  P, M, T = num_functions or 1, len(groups.names), num_steps
  size = joint_size or 1
  options = ModelOptions(cost, blend, ridge, curvature_limits)
  improve = mirror_step(options) if mirror else badmm_step(options, dual_rate)
  kl_schedule, rate_schedule = (
    value if callable(value) else optax.constant_schedule(value)
    for value in (kl_step, learning_rate)
  )

  def stack(theta):  # [M or 1, ...]
    if one_theta:
      return jax.tree.map(lambda x: x[None], theta)
    return jax.tree.map(
      lambda *xs: jnp.stack(xs), *(theta[name] for name in groups.names)
    )

  def unstack(stacked):
    if one_theta:
      return jax.tree.map(lambda x: x[0], stacked)
    return {
      name: jax.tree.map(lambda x, m=m: x[m], stacked)
      for m, name in enumerate(groups.names)
    }

  def pool(x):  # [P, M, S, ...] -> one axis of samples for each theta
    if one_theta:
      return x.reshape(1, -1, *x.shape[3:])
    x = jnp.swapaxes(x, 0, 1)
    return x.reshape(M, -1, *x.shape[3:])

  def init(key):
    theta = learned.init(jax.random.fold_in(key, 0))
    guide = momentum_guide(
      (P, M, T),
      (0.0, 0.0) if taught else initial,
      3 + state_features.size,
      size,
    )
    dual = Dual(
      jnp.zeros((P, M, T, size)),
      jnp.full((P, M, T), initial_penalty, jnp.float32),
      jnp.ones((P, M)),
    )
    if num_functions is None:
      drawn = function_keys(key, num_rollouts)[None]
    else:
      drawn = jnp.tile(function_keys(key, P)[:, None], (1, num_rollouts))
    accepted = jax.tree.map(jnp.copy, Iterate(theta, guide, dual))
    return GpsState(
      theta,
      guide,
      dual,
      accepted,
      jnp.full(P, jnp.inf, jnp.float32),
      jnp.ones(P),
      drawn,
      jnp.zeros((), jnp.int32),
    )

  def collect(state, optimizee, key, use_policy, limits):
    def run(guide, function_key, key, use_policy):
      key, key_noise = jax.random.split(key)

      def make_opt(gradient):
        first = (
          initial
          if taught
          else controller(
            guide, state_features, groups, joint=joint, gradient=gradient
          )
        )
        return optax.chain(
          mixture(first, learned.transform(state.theta), use_policy),
          exploration(
            jnp.einsum('mtii->mti', guide.noise),
            groups,
            key_noise,
            limits=limits,
            common=common_noise,
            joint=joint,
          ),
        )

      return rollout(
        optimizee,
        make_opt,
        function_key,
        key,
        T,
        groups,
        num_coordinates=joint_size or num_coordinates,
        joint=joint,
        with_hessian=cost == 'taylor',
      )

    keys = jax.random.split(key, (P, num_rollouts))
    return _vmap(jax.vmap(run, (None, 0, 0, 0)), (0, 0, 0, None), P)(
      state.guide, state.function_keys, keys, use_policy
    )

  def calibrate(stacked, samples, first):
    """Units of features and actions, from the first rollouts."""
    o, a = pool(samples.observations), pool(samples.actions)
    std = jnp.std(o, (1, 2))
    found = {
      'mean': jnp.mean(o, (1, 2)),
      'std': jnp.where(std > 1e-6, std, 1),
      'output': jnp.sqrt(jnp.mean(a**2, (1, 2, 3))),
    }
    return {
      **stacked,
      **{
        name: jnp.where(first, value, stacked[name])
        for name, value in found.items()
      },
    }

  def mean_actions(guide, samples):
    if taught:
      return retraced(initial, samples)
    return (
      jnp.einsum('pmtad,pmstd->pmsta', guide.gain, samples.states[:, :, :, :-1])
      + guide.offset[:, :, None]
    )

  def policy_actions(stacked, samples):
    o = pool(samples.observations)
    mu = jax.vmap(lambda theta, o: replay(inner_cell, theta, o, size))(stacked, o)
    shape = samples.actions.shape
    if one_theta:
      return mu.reshape(shape)
    return jnp.swapaxes(mu.reshape(M, P, *shape[2:]), 0, 1)

  def fit_policy(stacked, samples, targets, weights, accept, key, steps, rate):
    """weights [P, M, T]: precision of the targets."""
    weights = weights**precision_power
    weights = weights / jnp.median(weights, (0, 2), keepdims=True)
    weights = jnp.minimum(weights, 10.0) * accept[:, None, None]
    weights = jnp.broadcast_to(weights[:, :, None], targets.shape[:-1])
    weights = pool(weights) / stacked['output'][:, None, None] ** 2 / size
    keys = jax.random.split(key, weights.shape[0])
    fit = lambda *args: regression(
      inner_cell, *args, steps, batch_size=batch_size, learning_rate=rate
    )
    return jax.vmap(fit)(
      stacked, pool(samples.observations), pool(targets), weights, keys
    )

  def improve_all(samples, mu, iterate, kl_step, limits):
    return _vmap(
      _vmap(improve, (*(0,) * 8, None, None), M), (*(0,) * 9, None), P
    )(
      samples.states,
      samples.actions,
      samples.exact,
      samples.values,
      samples.curvature,
      mu,
      iterate.guide,
      iterate.dual,
      kl_step,
      limits,
    )

  def variance_of(guide):
    return jnp.einsum('pmtii->pmti', guide.noise)

  def badmm(
    iterate, samples, accept, kl_step, limits, first, cloning, rate, key
  ):
    del cloning
    steps = jnp.where(first, cloning_steps, regression_steps)
    stacked = calibrate(stack(iterate.theta), samples, first)
    last = inner_iterations - 1

    def alternate(carry, inner):
      stacked, guide, dual = carry
      nu, G = dual.penalties[..., None], variance_of(guide)
      shift = G * dual.multipliers * (nu if released_targets else 1 / nu)
      targets = mean_actions(guide, samples) - shift[:, :, None]
      stacked, _, error = fit_policy(
        stacked,
        samples,
        targets,
        dual.penalties / jnp.mean(G, -1),
        accept,
        jax.random.fold_in(key, inner),
        steps,
        rate,
      )
      mu = policy_actions(stacked, samples)
      # Steps of an alternation all start from the guide that was rolled out,
      # and ν_t changes with the last one only, as in the released code.
      new_guide, new_dual, info = improve_all(
        samples, mu, iterate._replace(dual=dual), kl_step, limits
      )
      new_dual = new_dual._replace(
        penalties=jnp.where(inner < last, dual.penalties, new_dual.penalties)
      )
      guide, dual = _where(accept, (new_guide, new_dual), (guide, dual))
      return (stacked, guide, dual), (info, error)

    (stacked, guide, dual), seen = jax.lax.scan(
      alternate,
      (stacked, iterate.guide, iterate.dual),
      jnp.arange(inner_iterations),
    )
    info, error = jax.tree.map(lambda x: x[-1], seen)
    return Iterate(unstack(stacked), guide, dual), info, error

  def mdgps(
    iterate, samples, accept, kl_step, limits, first, cloning, rate, key
  ):
    steps = jnp.where(cloning, cloning_steps, regression_steps)
    stacked = calibrate(stack(iterate.theta), samples, first)
    mu = policy_actions(stacked, samples)
    (new, change), dual, info = improve_all(
      samples, mu, iterate, kl_step, limits
    )
    targets = jnp.where(
      cloning, mean_actions(iterate.guide, samples), mu + change
    )
    guide = jax.tree.map(
      lambda a, b: jnp.where(cloning, a, b), iterate.guide, new
    )
    variance = jnp.mean(variance_of(guide), -1)
    if taught:  # no guide yet: the same relative error at every t
      variance = jnp.where(
        cloning, 1e-30 + jnp.mean(targets**2, (2, 4)), variance
      )
    stacked, _, error = fit_policy(
      stacked, samples, targets, 1 / variance, accept, key, steps, rate
    )
    theta = jax.tree.map(
      lambda a, b: jnp.where(accept[0], a, b), unstack(stacked), iterate.theta
    )
    guide, dual = _where(accept, (guide, dual), (iterate.guide, iterate.dual))
    return Iterate(theta, guide, dual), info, error

  def step(state, optimizee, key):
    key_rollouts, key_policy, key_scale = jax.random.split(key, 3)
    cloning = (state.iteration < cloning_iterations) & (cloning_steps > 0)
    first = cloning & (state.iteration == 0)
    share = 1.0 if mirror else policy_rollouts
    use_policy = (np.arange(num_rollouts) < round(share * num_rollouts)) & (
      ~first
    )
    limits = jnp.where(
      cloning, jnp.float32(initial_noise), jnp.array(noise_limits)
    )
    rollouts = collect(state, optimizee, key_rollouts, use_policy, limits)
    seen = rollouts
    if taught and cloning_scale:
      scale = jnp.where(
        cloning,
        jnp.exp(
          jax.random.uniform(
            key_scale,
            (P, num_rollouts),
            minval=-cloning_scale,
            maxval=cloning_scale,
          )
        ),
        1,
      )
      seen = rollouts._replace(
        seen=rollouts.seen * scale[..., None, None, None],
        values=rollouts.values * scale[..., None],
      )
    samples = to_samples(seen, state_features, features, joint)
    sums = jnp.sum(rollouts.objective, -1)  # [P, N]
    mean = lambda who: jnp.sum(jnp.where(who, sums, 0), -1) / jnp.sum(who)
    values = mean(use_policy | True) if mirror else mean(~use_policy)
    values = jnp.broadcast_to(jnp.mean(values), P) if mirror else values
    accept = values <= tolerance * state.accepted_cost
    if mirror:  # rollouts of a policy just cloned: nothing to go back to
      accept |= (
        (state.iteration > 0)
        & (cloning_steps > 0)
        & (state.iteration <= cloning_iterations)
        & jnp.isfinite(values)
      )
    samples = _where(accept, samples, jax.tree.map(jnp.zeros_like, samples))
    current = Iterate(state.theta, state.guide, state.dual)
    kept = _where(accept, current[1:], state.accepted[1:])
    theta = state.theta
    if mirror:
      theta = jax.tree.map(
        lambda a, b: jnp.where(accept[0], a, b), theta, state.accepted.theta
      )
    accepted = Iterate(theta, *kept)
    kl_scale = jnp.where(
      accept,
      jnp.minimum(1.2 * state.kl_scale, 3.0),
      jnp.maximum(0.4 * state.kl_scale, 0.01),
    )
    new, info, error = (mdgps if mirror else badmm)(
      accepted,
      samples,
      accept,
      kl_scale * kl_schedule(state.iteration),
      limits,
      first,
      cloning,
      rate_schedule(state.iteration),
      key_policy,
    )
    info = jax.tree.map(
      lambda x: jnp.mean(x, where=accept[:, None] & jnp.isfinite(x)), info
    )
    values = jnp.where(accept, values, state.accepted_cost)
    report = GpsInfo(
      rollouts.objective,
      jnp.mean(sums)[None],
      jnp.sqrt(jnp.mean(error))[None],
      ~jnp.any(accept)[None],
      jnp.mean(values),
      jnp.mean(mean(use_policy)),
      info.kl,
      info.policy_kl,
      info.predicted,
      1 - jnp.mean(accept),
      jnp.mean(kl_scale),
    )
    return GpsState(
      *new, accepted, values, kl_scale, state.function_keys, state.iteration + 1
    ), report

  return MetaTrainer(init, step)


def _vmap(function: Callable, in_axes: tuple, size: int) -> Callable:
  """`jax.vmap`; an axis of one costs neither tracing nor compiling."""
  if size > 1:
    return jax.vmap(function, in_axes)

  def of_one(*args):
    out = function(
      *(
        arg if axis is None else jax.tree.map(lambda x: x[0], arg)
        for arg, axis in zip(args, in_axes, strict=True)
      )
    )
    return jax.tree.map(lambda x: x[None], out)

  return of_one


def _where(accept, new: Any, old: Any) -> Any:
  """By function: `accept` [P] against leaves [P, ...]."""
  choose: Callable = lambda a, b: jnp.where(
    accept.reshape((-1,) + (1,) * (a.ndim - 1)), a, b
  )
  return jax.tree.map(choose, new, old)
