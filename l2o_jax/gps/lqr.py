"""Linear-quadratic control under a Kullback-Leibler constraint.

Everything is for ONE guide: one coordinate group (of one function); `vmap`
makes it many.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from l2o_jax.gps.linalg import inverse, log_determinant

# For the search for η.  The released code of 2016 has the same range; within
# it, bisection in factors of 10 needs some 30 trials at worst.
LOWEST_ETA, HIGHEST_ETA, MAX_TRIALS = 1e-8, 1e16, 60


class Controller(NamedTuple):
  """psi(a | s, t) = N(K_t s + k_t, G_t), the guide's form.

  Attributes:
    gain: K [T, A, D].
    offset: k [T, A].
    noise: G [T, A, A].
  """

  gain: chex.Array
  offset: chex.Array
  noise: chex.Array


class Dynamics(NamedTuple):
  """p(s_{t+1} | s_t, a_t) = N(A_t s + B_t a + c_t, F_t), and s_0.

  Attributes:
    state: A [T, D, D].
    action: B [T, D, A].
    offset: c [T, D].
    noise: F [T, D, D].
    initial_mean: of s_0, [D].
    initial_covariance: of s_0, [D, D].
  """

  state: chex.Array
  action: chex.Array
  offset: chex.Array
  noise: chex.Array
  initial_mean: chex.Array
  initial_covariance: chex.Array


class Cost(NamedTuple):
  """c_t(s) = 1/2 s^T C_t s + d_t^T s + h_t, t = 0 ... T.

  Attributes:
    quadratic: C [T + 1, D, D].
    linear: d [T + 1, D].
    constant: h [T + 1].
  """

  quadratic: chex.Array
  linear: chex.Array
  constant: chex.Array


def backward(dynamics, cost, lam, nu, policy, eta, previous):
  r"""The guide that minimizes cost and divergences (Riccati recursion).

      min_psi  E_psi[ sum_t c_t(s_t) - λ_t^T a_t ]
               + sum_t ν_t E[KL(psi_t ‖ pi_t)] + η sum_t E[KL(psi_t ‖ psi°_t)]

  (Li & Malik 2017, section 3.3.)  With S, G° the covariances of pi, psi° and
  r = V' c + v':

      Q_ss = C + A^T V' A + ν K_π^T S⁻¹ K_π + η K°^T G°⁻¹ K°
      Q_as = B^T V' A - ν S⁻¹ K_π - η G°⁻¹ K°
      Q_aa = B^T V' B + ν S⁻¹ + η G°⁻¹
      q_s  = d + A^T r + ν K_π^T S⁻¹ k_π + η K°^T G°⁻¹ k°
      q_a  = B^T r - ν S⁻¹ k_π - η G°⁻¹ k° - λ
      K = -Q_aa⁻¹ Q_as,  k = -Q_aa⁻¹ q_a,  G = (η + ν) Q_aa⁻¹
      V = Q_ss + Q_as^T K,  v = q_s + Q_as^T k

  Linear in T, cubic in D.  λ = 0, ν = η = 0 reduces to plain LQR, with G = 0.

  Args:
    dynamics: of the states.
    cost: of the states; actions cost nothing by themselves.
    lam: λ [T, A].
    nu: ν [T].
    policy: pi, linearized.
    eta: η, multiplier of the step-size constraint, [].
    previous: psi°.

  Returns:
    (psi, valid): valid [] is False where some Q_aa is not positive definite or
    anything is not finite; psi then means nothing.
  """
  # Precisions instead of covariances, and each with its weight: ν S⁻¹, η G°⁻¹.
  pi = policy._replace(noise=nu[:, None, None] * inverse(policy.noise))
  old = previous._replace(noise=eta * inverse(previous.noise))

  def step(carry, inputs):
    V, v = carry  # of t + 1: [D, D], [D]
    (A, B, c), (C, d), lam, nu, (K_pi, k_pi, P_pi), old = inputs
    K_old, k_old, P_old = old
    r = V @ c + v
    Q_ss = C + A.T @ V @ A + K_pi.T @ P_pi @ K_pi + K_old.T @ P_old @ K_old
    Q_as = B.T @ V @ A - P_pi @ K_pi - P_old @ K_old  # [A, D]
    Q_aa = B.T @ V @ B + P_pi + P_old
    q_s = d + A.T @ r + K_pi.T @ P_pi @ k_pi + K_old.T @ P_old @ k_old
    q_a = B.T @ r - P_pi @ k_pi - P_old @ k_old - lam
    covariance = inverse((Q_aa + Q_aa.T) / 2)
    K, k = -covariance @ Q_as, -covariance @ q_a
    V = Q_ss + Q_as.T @ K
    return (((V + V.T) / 2, q_s + Q_as.T @ k), (K, k, (eta + nu) * covariance))

  stages = (cost.quadratic[:-1], cost.linear[:-1])
  last = (cost.quadratic[-1], cost.linear[-1])
  inputs = (dynamics[:3], stages, lam, nu, pi, old)
  _, (K, k, G) = jax.lax.scan(step, last, inputs, reverse=True)
  guide = Controller(K, k, (G + G.mT) / 2)
  finite = [jnp.all(jnp.isfinite(x)) for x in guide]
  return guide, finite[0] & finite[1] & finite[2]


def forward(dynamics: Dynamics, guide: Controller):
  """Marginals of the states under a controller.

      m' = (A + B K) m + B k + c
      P' = (A + B K) P (A + B K)^T + B G B^T + F

  Returns:
    (mean [T + 1, D], covariance [T + 1, D, D]).
  """

  def step(carry, inputs):
    mean, covariance = carry  # of t: [D], [D, D]
    (A, B, c, F), (K, k, G) = inputs
    closed = A + B @ K
    mean_next = closed @ mean + B @ k + c
    covariance_next = closed @ covariance @ closed.T + B @ G @ B.T + F
    return (mean_next, covariance_next), carry

  first = (dynamics.initial_mean, dynamics.initial_covariance)
  last, marginals = jax.lax.scan(step, first, (dynamics[:4], guide))
  join = lambda before, end: jnp.concatenate([before, end[None]])  # t = T too
  return jax.tree.map(join, marginals, last)


def expected_cost(cost: Cost, mean, covariance) -> chex.Array:
  """E[c_t(s_t)] = 1/2 (m^T C m + tr(C P)) + d^T m + h, [T + 1]."""
  second = covariance + mean[:, :, None] * mean[:, None, :]
  curved = jnp.einsum('tij,tij->t', cost.quadratic, second) / 2
  return curved + jnp.einsum('ti,ti->t', cost.linear, mean) + cost.constant


def divergence(new: Controller, old: Controller, mean, covariance):
  """E[KL(new_t ‖ old_t)] over states N(m_t, P_t) of t = 0 ... T - 1, [T].

      1/2 (tr(G°⁻¹ G) - A + log|G°|/|G| + E[Δ^T G°⁻¹ Δ]),
      Δ = (K - K°) s + k - k°

  `mean` and `covariance` come from `forward`, [T + 1, ...].
  """
  mean, covariance = mean[:-1], covariance[:-1]
  K = new.gain - old.gain
  shift = jnp.einsum('tad,td->ta', K, mean) + new.offset - old.offset
  # E[Δ Δ^T], [T, A, A]
  second = K @ covariance @ K.mT + shift[:, :, None] * shift[:, None, :]
  trace = jnp.einsum('tij,tij->t', inverse(old.noise), new.noise + second)
  logs = log_determinant(old.noise) - log_determinant(new.noise)
  return (trace - new.offset.shape[-1] + logs) / 2


class StepInfo(NamedTuple):
  """What `constrained_step` reports, each [].

  Attributes:
    eta: η of the guide; where to start the next search.
    kl: sum_t E[KL(psi ‖ psi°)].
    fall: of sum_t E[c_t(s_t)] from psi° to psi, as the model predicts it, as a
      share of what it is for psi°.
  """

  eta: chex.Scalar
  kl: chex.Scalar
  fall: chex.Scalar


def constrained_step(dynamics, cost, lam, nu, policy, previous, bound, eta):
  """The guide step: the best guide with sum_t E[KL(psi ‖ psi°)] <= ε.

  η is found by bisection of its logarithm within [1e-8, 1e16]; a trial changes
  it by at most a factor of 10.  The search ends at 0.9 ε <= KL <= ε, or at the
  lower end of η where the constraint is idle.  A pass without a valid guide
  counts as KL = ∞.  A guide that violates the constraint is never returned: if
  the trials run out, the result is the best guide that kept it, or psi° if none
  did.

  Args:
    dynamics: of the states.
    cost: of the states.
    lam: λ [T, A].
    nu: ν [T].
    policy: pi, linearized.
    previous: psi°.
    bound: ε > 0.
    eta: where to start.

  Returns:
    (psi, StepInfo).
  """

  def attempt(eta):
    guide, valid = backward(dynamics, cost, lam, nu, policy, eta, previous)
    kl = jnp.sum(divergence(guide, previous, *forward(dynamics, guide)))
    return guide, jnp.where(valid & jnp.isfinite(kl), kl, jnp.inf)

  guide, eta, kl = search_eta(attempt, previous, bound, eta)
  total = lambda psi: jnp.sum(expected_cost(cost, *forward(dynamics, psi)))
  fall = 1 - total(guide) / total(previous)
  return guide, StepInfo(eta, kl, fall)


class Bisection(NamedTuple):
  """For η, between two trials: the next η, its brackets, the best so far."""

  eta: chex.Scalar
  below: chex.Scalar  # the largest η that violated the constraint
  above: chex.Scalar  # the smallest that did not
  best: tuple  # (step, η, KL)
  trials: chex.Scalar
  done: chex.Scalar


def search_eta(attempt, otherwise, bound: chex.Scalar, eta: chex.Scalar):
  """The smallest η whose step keeps KL <= ε (see `constrained_step`).

  Args:
    attempt: η -> (step, KL), KL = ∞ where the step is not valid.
    otherwise: the step if none fits.
    bound: ε > 0.
    eta: where to start.

  Returns:
    (step, η, KL).
  """

  def trial(search):
    eta = search.eta
    step, kl = attempt(eta)
    fits = kl <= bound
    best = optax.tree.where(fits, (step, eta, kl), search.best)
    below = jnp.where(fits, search.below, eta)
    above = jnp.where(fits, eta, search.above)
    done = fits & ((kl >= 0.9 * bound) | (eta <= LOWEST_ETA))
    eta = jnp.clip(jnp.sqrt(below * above), eta / 10, eta * 10)
    # The middle comes ever closer to the lower end, but never there.
    eta = jnp.where(eta < 1.1 * LOWEST_ETA, LOWEST_ETA, eta)
    return Bisection(eta, below, above, best, search.trials + 1, done)

  dtype = jax.tree.leaves(otherwise)[0].dtype
  low, high = (jnp.asarray(x, dtype) for x in (LOWEST_ETA, HIGHEST_ETA))
  eta = jnp.clip(jnp.asarray(eta, dtype), low, high)
  best = (otherwise, eta, jnp.zeros_like(eta))
  start = Bisection(eta, low, high, best, jnp.int32(0), jnp.bool_(False))
  more = lambda search: ~search.done & (search.trials < MAX_TRIALS)
  found = jax.lax.while_loop(more, trial, start)
  return found.best


def untied_step(dynamics, cost, previous, bound, eta):
  r"""A guide step with one gain for all samples, and an offset k_it for each.

  In the deviations δs, δa from a sample i,

      c_t = 1/2 δs^T C_t δs + d_it^T δs + h_it,  δs' = A_t δs + B_t δa,
      psi°: δa ~ N(K°_t δs, G°_t)

  and `backward` gives K, G for all samples, and to each its own offset:

      k_it = -Q_aa⁻¹ B^T v_i,t+1,   v_it = d_it + (A + B K)^T v_i,t+1

  subject to  sum_t E[KL(psi_i ‖ psi°)] <= ε  in the mean over samples, at their
  own states (deviations by noise alone).  There the offset k_it is the change
  of action.

  Args:
    dynamics: the same for all samples; its means, offsets and noise are not
      used.
    cost: quadratic C [T + 1, D, D], linear d [S, T + 1, D], constant h
      [S, T + 1].
    previous: psi°; its offset is not used.
    bound: ε > 0.
    eta: where to start the search.

  Returns:
    (k [S, T, A], G [T, A, A], StepInfo).  The costs in StepInfo are means over
    samples; the cost of the step includes η times the divergence of offsets.
  """
  zero = jnp.zeros_like
  # In deviations from a sample nothing is left of means, offsets and noise.
  dynamics = Dynamics(*dynamics[:2], *map(zero, dynamics[2:]))
  tied = Cost(cost.quadratic, zero(cost.linear[0]), zero(cost.constant[0]))
  previous = previous._replace(offset=zero(previous.offset))
  none = (previous.offset, zero(previous.offset[:, 0]), previous)  # no λ, ν
  precision = inverse(previous.noise)
  slopes = cost.linear.swapaxes(0, 1)  # [T + 1, S, D]

  def size(precision, k):
    """k^T G⁻¹ k, sum over t, mean over samples."""
    return jnp.einsum('tsa,tab,tsb->', k, precision, k) / k.shape[1]

  def attempt(eta):
    guide, valid = backward(dynamics, tied, *none, eta, previous)

    def step(v, inputs):
      (A, B), K, G, d = inputs
      k = -v @ B @ G / eta  # G / η = Q_aa⁻¹
      return d + v @ (A + B @ K), k

    stages = (dynamics[:2], guide.gain, guide.noise, slopes[:-1])
    _, k = jax.lax.scan(step, slopes[-1], stages, reverse=True)  # [T, S, A]
    spread = divergence(guide, previous, *forward(dynamics, guide))
    kl = jnp.sum(spread) + size(precision, k) / 2
    return (k, guide.noise), jnp.where(valid & jnp.isfinite(kl), kl, jnp.inf)

  T, A = previous.offset.shape
  nothing = jnp.zeros((T, slopes.shape[1], A), slopes.dtype)
  otherwise = (nothing, previous.noise)
  (k, G), eta, kl = search_eta(attempt, otherwise, bound, eta)
  before = jnp.mean(jnp.sum(cost.constant, -1))
  fall = eta / 2 * size(inverse(G), k) / before
  return k.swapaxes(0, 1), G, StepInfo(eta, kl, fall)
