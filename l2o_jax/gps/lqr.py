"""Linear-quadratic control under a Kullback-Leibler constraint.

Everything is for ONE guide: one coordinate group (of one function); `vmap`
makes it many.  Letters beside base.py's: A, actions of a unit.  A unit is what
the guide acts on: a coordinate, so A = 1 (Li & Malik 2017, section 3.4), or a
function's whole parameter vector, so A = n (Li & Malik 2016).
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp


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


def _eliminate(matrix, right):
  """matrix⁻¹ right and log|matrix| by Gauss-Jordan elimination.

  Without pivoting, which positive definite matrices do not need; nan where a
  pivot is not positive.  Not LAPACK: on a CPU of two cores two of XLA's batched
  calls at a time wait for each other for ever (jaxlib 0.10.2).
  """
  size, batch = matrix.shape[-1], matrix.shape[:-2]
  right = jnp.broadcast_to(right, (*batch, *right.shape[-2:]))
  joined = jnp.concatenate([matrix, right.astype(matrix.dtype)], -1)

  def step(i, carry):
    joined, log = carry
    row = jax.lax.dynamic_index_in_dim(joined, i, -2)
    column = jax.lax.dynamic_index_in_dim(joined, i, -1)
    pivot = jax.lax.dynamic_index_in_dim(row, i, -1)
    pivot = jnp.where(pivot > 0, pivot, jnp.nan)
    row = row / pivot
    here = jnp.arange(size)[:, None] == i
    joined = jnp.where(here, row, joined - column * row)
    return joined, log + jnp.log(pivot[..., 0, 0])

  joined, log = jax.lax.fori_loop(
    0, size, step, (joined, jnp.zeros(batch, joined.dtype))
  )
  return joined[..., size:], log


def inverse(matrix: chex.Array) -> chex.Array:
  """Of positive definite matrices [..., A, A]; nan where they are not."""
  if matrix.shape[-1] == 1:
    return jnp.where(matrix > 0, 1 / matrix, jnp.nan)
  return positive_solve(matrix, jnp.eye(matrix.shape[-1]))


def positive_solve(matrix: chex.Array, right: chex.Array) -> chex.Array:
  """matrix⁻¹ right, [..., D, D], [..., D, K]; nan if not positive definite."""
  return _eliminate(matrix, right)[0]


def _log_determinant(matrix):
  if matrix.shape[-1] == 1:
    return jnp.log(matrix[..., 0, 0])
  return _eliminate(matrix, jnp.zeros((matrix.shape[-1], 0)))[1]


def backward(
  dynamics: Dynamics,
  cost: Cost,
  multipliers: chex.Array,
  penalties: chex.Array,
  policy: Controller,
  eta: chex.Scalar,
  previous: Controller,
) -> tuple[Controller, chex.Array]:
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
    multipliers: λ [T, A].
    penalties: ν [T].
    policy: pi, linearized.
    eta: η, multiplier of the step-size constraint.
    previous: psi°.

  Returns:
    (psi, valid): valid [] is False where some Q_aa is not positive definite or
    anything is not finite; psi then means nothing.
  """
  policy_precision = inverse(policy.noise)
  previous_precision = inverse(previous.noise)

  def step(carry, inputs):
    V, v = carry
    (A, B, c, C, d, lam, nu, K_pi, k_pi, P_pi, K_old, k_old, P_old) = inputs
    P_pi, P_old = nu * P_pi, eta * P_old
    r = V @ c + v
    Q_ss = C + A.T @ V @ A + K_pi.T @ P_pi @ K_pi + K_old.T @ P_old @ K_old
    Q_as = B.T @ V @ A - P_pi @ K_pi - P_old @ K_old
    Q_aa = B.T @ V @ B + P_pi + P_old
    q_s = d + A.T @ r + K_pi.T @ P_pi @ k_pi + K_old.T @ P_old @ k_old
    q_a = B.T @ r - P_pi @ k_pi - P_old @ k_old - lam
    Q_aa = (Q_aa + Q_aa.T) / 2
    covariance = inverse(Q_aa)
    K, k = -covariance @ Q_as, -covariance @ q_a
    V = Q_ss + Q_as.T @ K
    return (((V + V.T) / 2, q_s + Q_as.T @ k), (K, k, (eta + nu) * covariance))

  _, (K, k, G) = jax.lax.scan(
    step,
    (cost.quadratic[-1], cost.linear[-1]),
    (
      dynamics.state,
      dynamics.action,
      dynamics.offset,
      cost.quadratic[:-1],
      cost.linear[:-1],
      multipliers,
      penalties,
      policy.gain,
      policy.offset,
      policy_precision,
      previous.gain,
      previous.offset,
      previous_precision,
    ),
    reverse=True,
  )
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
    mean, covariance = carry
    A, B, c, F, K, k, G = inputs
    closed = A + B @ K
    mean_next = closed @ mean + B @ k + c
    covariance_next = closed @ covariance @ closed.T + B @ G @ B.T + F
    return (mean_next, covariance_next), carry

  last, (means, covariances) = jax.lax.scan(
    step,
    (dynamics.initial_mean, dynamics.initial_covariance),
    (*dynamics[:4], *guide),
  )
  return (
    jnp.concatenate([means, last[0][None]]),
    jnp.concatenate([covariances, last[1][None]]),
  )


def expected_cost(
  cost: Cost, mean: chex.Array, covariance: chex.Array
) -> chex.Array:
  """E[c_t(s_t)] = 1/2 (m^T C m + tr(C P)) + d^T m + h, [T + 1]."""
  second = covariance + mean[:, :, None] * mean[:, None, :]
  return (
    jnp.einsum('tij,tij->t', cost.quadratic, second) / 2
    + jnp.einsum('ti,ti->t', cost.linear, mean)
    + cost.constant
  )


def divergence(
  new: Controller, old: Controller, mean: chex.Array, covariance: chex.Array
) -> chex.Array:
  """E[KL(new_t ‖ old_t)] over states N(m_t, P_t) of t = 0 ... T - 1, [T].

      1/2 (tr(G°⁻¹ G) - A + log|G°|/|G| + E[Δ^T G°⁻¹ Δ]),
      Δ = (K - K°) s + k - k°

  `mean` and `covariance` are those of `forward`, [T + 1, ...].
  """
  precision = inverse(old.noise)
  mean, covariance = mean[:-1], covariance[:-1]
  K = new.gain - old.gain
  shift = jnp.einsum('tad,td->ta', K, mean) + new.offset - old.offset
  second = K @ covariance @ K.mT + shift[:, :, None] * shift[:, None, :]
  logs = _log_determinant(old.noise) - _log_determinant(new.noise)
  return (
    jnp.einsum('tij,tij->t', precision, new.noise + second)
    - new.offset.shape[-1]
    + logs
  ) / 2


class StepInfo(NamedTuple):
  """What `constrained_step` reports, each [].

  Attributes:
    eta: η of the guide; where to start the next search.
    kl: sum_t E[KL(psi ‖ psi°)].
    trials: backward passes.
    cost: sum_t E[c_t(s_t)] that the model predicts for psi.
    previous_cost: and for psi°.
  """

  eta: chex.Scalar
  kl: chex.Scalar
  trials: chex.Scalar
  cost: chex.Scalar
  previous_cost: chex.Scalar


def constrained_step(
  dynamics: Dynamics,
  cost: Cost,
  multipliers: chex.Array,
  penalties: chex.Array,
  policy: Controller,
  previous: Controller,
  bound: chex.Scalar,
  eta: chex.Scalar,
  max_trials: int = 60,
) -> tuple[Controller, StepInfo]:
  """The best guide with sum_t E[KL(psi ‖ psi°)] <= ε.

  Dual search for η: geometric bisection within [1e-8, 1e16], a move changes η
  by a factor of 10 at most, and ends with 0.9 ε <= KL <= ε, or with the lower
  end of η where the constraint is idle.  A pass without a valid guide counts as
  KL = ∞.  A guide that violates the constraint is never returned: if trials run
  out it is the best that did not, at first psi° itself.

  Args:
    dynamics: see `backward`, as are cost, multipliers, penalties, policy.
    cost: of the states.
    multipliers: λ [T, A].
    penalties: ν [T].
    policy: pi, linearized.
    previous: psi°.
    bound: ε > 0.
    eta: where to start.
    max_trials: backward passes at most.

  Returns:
    (psi, StepInfo).
  """

  def attempt(eta):
    guide, valid = backward(
      dynamics, cost, multipliers, penalties, policy, eta, previous
    )
    mean, covariance = forward(dynamics, guide)
    kl = jnp.sum(divergence(guide, previous, mean, covariance))
    return guide, jnp.where(valid & jnp.isfinite(kl), kl, jnp.inf)

  guide, eta, kl, trials = search_eta(attempt, previous, bound, eta, max_trials)
  after, before = jax.vmap(
    lambda psi: jnp.sum(expected_cost(cost, *forward(dynamics, psi)))
  )(jax.tree.map(lambda *x: jnp.stack(x), guide, previous))
  return guide, StepInfo(eta, kl, trials, after, before)


def search_eta(
  attempt, otherwise, bound: chex.Scalar, eta: chex.Scalar, max_trials: int = 60
):
  """The smallest η whose step keeps KL <= ε (see `constrained_step`).

  Args:
    attempt: η -> (step, KL), KL = ∞ where the step is not valid.
    otherwise: the step if none fits.
    bound: ε > 0.
    eta: where to start.
    max_trials: attempts at most.

  Returns:
    (step, η, KL, number of attempts).
  """
  low, high = 1e-8, 1e16

  def search(carry):
    trials, eta, below, above, best, best_eta, best_kl, _ = carry
    step, kl = attempt(eta)
    fits = kl <= bound
    best, best_eta, best_kl = jax.tree.map(
      lambda new, old: jnp.where(fits, new, old),
      (step, eta, kl),
      (best, best_eta, best_kl),
    )
    below = jnp.where(fits, below, eta)
    above = jnp.where(fits, eta, above)
    done = fits & ((kl >= 0.9 * bound) | (eta <= low))
    eta = jnp.clip(jnp.sqrt(below * above), eta / 10, eta * 10)
    eta = jnp.where(eta < 1.1 * low, low, eta)
    return trials + 1, eta, below, above, best, best_eta, best_kl, done

  eta = jnp.clip(
    jnp.asarray(eta, jax.tree.leaves(otherwise)[0].dtype), low, high
  )
  one = jnp.ones_like(eta)
  trials, _, _, _, step, eta, kl, _ = jax.lax.while_loop(
    lambda carry: ~carry[-1] & (carry[0] < max_trials),
    search,
    (
      jnp.int32(0),
      eta,
      low * one,
      high * one,
      otherwise,
      eta,
      0 * one,
      jnp.bool_(False),
    ),
  )
  return step, eta, kl, trials


def untied_step(
  dynamics: Dynamics,
  cost: Cost,
  previous: Controller,
  bound: chex.Scalar,
  eta: chex.Scalar,
  max_trials: int = 60,
) -> tuple[chex.Array, chex.Array, StepInfo]:
  r"""Every sample's own change of its actions, all else tied.

  In the deviations δs, δa from a sample i,

      c_t = 1/2 δs^T C_t δs + d_it^T δs + h_it,  δs' = A_t δs + B_t δa,
      psi°: δa ~ N(K°_t δs, G°_t)

  and `backward` gives K, G for all samples, and to each its own offset:

      k_it = -Q_aa⁻¹ B^T v_i,t+1,   v_it = d_it + (A + B K)^T v_i,t+1

  subject to  sum_t E[KL(psi_i ‖ psi°)] <= ε  in the mean over samples, at their
  own states (deviations by noise alone).  There the offset k_it is the change
  of action.

  Args:
    dynamics: tied; their means, offsets and noise are not used.
    cost: quadratic C [T + 1, D, D], linear d [S, T + 1, D], constant h
      [S, T + 1].
    previous: psi°; its offset is not used.
    bound: ε > 0.
    eta: where to start the search.
    max_trials: backward passes at most.

  Returns:
    (k [S, T, A], G [T, A, A], StepInfo with the mean costs of a sample; that of
    the step includes η times the divergence of the offsets).
  """
  zero = jnp.zeros_like
  dynamics = dynamics._replace(
    offset=zero(dynamics.offset),
    noise=zero(dynamics.noise),
    initial_mean=zero(dynamics.initial_mean),
    initial_covariance=zero(dynamics.initial_covariance),
  )
  tied = Cost(cost.quadratic, zero(cost.linear[0]), zero(cost.constant[0]))
  previous = previous._replace(offset=zero(previous.offset))
  T, A = previous.offset.shape
  precision = inverse(previous.noise)

  def attempt(eta):
    guide, valid = backward(
      dynamics,
      tied,
      zero(previous.offset),
      jnp.zeros(T),
      previous,
      eta,
      previous,
    )

    def step(v, inputs):
      A, B, K, G, d = inputs
      k = -v @ B @ G / eta
      return d + v @ (A + B @ K), k

    _, k = jax.lax.scan(
      step,
      cost.linear[:, -1],
      (
        dynamics.state,
        dynamics.action,
        guide.gain,
        guide.noise,
        cost.linear[:, :-1].swapaxes(0, 1),
      ),
      reverse=True,
    )
    spread = divergence(guide, previous, *forward(dynamics, guide))
    kl = (
      jnp.sum(spread)
      + jnp.einsum('tsa,tab,tsb->', k, precision, k) / k.shape[1] / 2
    )
    return (k, guide.noise), jnp.where(valid & jnp.isfinite(kl), kl, jnp.inf)

  nothing = jnp.zeros((T, cost.linear.shape[0], A), previous.offset.dtype)
  (k, G), eta, kl, trials = search_eta(
    attempt, (nothing, previous.noise), bound, eta, max_trials
  )
  fall = eta / 2 * jnp.einsum('tsa,tab,tsb->', k, inverse(G), k) / k.shape[1]
  before = jnp.mean(jnp.sum(cost.constant, -1))
  return (k.swapaxes(0, 1), G, StepInfo(eta, kl, trials, before - fall, before))
