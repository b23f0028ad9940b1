"""Time-varying linear-Gaussian models, fitted to samples of one guide.

Samples are pooled over rollouts and over the coordinates of the group: that is
the convolution of convolutional guided policy search (Li & Malik 2017, section
3.4).  S samples; states [S, T + 1, D] begin with x [A], g [A], u [A].
"""

import chex
import jax
import jax.numpy as jnp

from l2o_jax.gps.lqr import Controller, Dynamics, inverse, positive_solve


def regress(
  inputs: chex.Array, outputs: chex.Array, blend: float, ridge: float
):
  """Linear regression at every t, with a prior from the other times.

      y_t = W_t x_t + b_t + N(0, R_t)

  The covariance of (x, y) at t is (1 - β) of its own and β of the mean over
  all t; then each input's variance grows by ρ times itself, which keeps W small
  where inputs are nearly collinear.

  Args:
    inputs: x, [S, T, P].
    outputs: y, [S, T, Q].
    blend: β in [0, 1].
    ridge: ρ >= 0.

  Returns:
    (W [T, Q, P], b [T, Q], R [T, Q, Q]).
  """
  split = inputs.shape[-1]
  z = jnp.concatenate([inputs, outputs], -1)
  mean = jnp.mean(z, 0)
  z = z - mean
  covariance = jnp.einsum('sti,stj->tij', z, z) / z.shape[0]
  covariance = (1 - blend) * covariance + blend * jnp.mean(
    covariance, 0, keepdims=True
  )
  xx, xy = covariance[:, :split, :split], covariance[:, :split, split:]
  size = jnp.einsum('tii->ti', xx)
  floor = 1e-12 * jnp.mean(size) + 1e-300
  regular = xx + jax.vmap(jnp.diag)(ridge * size + floor)
  W = positive_solve(regular, xy).mT
  R = covariance[:, split:, split:] - W @ xy - xy.mT @ W.mT + W @ xx @ W.mT
  b = mean[:, split:] - jnp.einsum('tqp,tp->tq', W, mean[:, :split])
  return W, b, (R + R.mT) / 2


def symmetric_eigen(matrix: chex.Array):
  """Eigenvalues [..., A] and vectors of the symmetric part."""
  if matrix.shape[-1] == 1:
    return matrix[..., 0], jnp.ones_like(matrix)
  return jnp.linalg.eigh((matrix + matrix.mT) / 2)


def secant_curvature(
  gradients: chex.Array,
  actions: chex.Array,
  limits: tuple[float, float],
  window: int = 7,
) -> chex.Array:
  """H of g_{t+1} - g_t = H a_t, the same for all samples of a time.

      H = (Σ Δg a^T) (Σ a a^T)⁻¹,  sums over samples and 7 times

  For A = 1 it is Σ a Δg / Σ a².  Each time counts alike whatever the size of
  its actions.  H is made symmetric, and its eigenvalues are cut to `limits`
  times the median over t of their mean: curvature is positive and does not
  jump.

  Args:
    gradients: exact, [S, T + 1, A].
    actions: [S, T, A].
    limits: (low, high).
    window: times, odd.

  Returns:
    [T + 1, A, A]; the last is repeated.
  """
  size = actions.shape[-1]
  change = gradients[:, 1:] - gradients[:, :-1]
  square = jnp.einsum('sti,stj->tij', actions, actions)
  weight = 1 / (jnp.trace(square, axis1=1, axis2=2) + 1e-300)[:, None, None]
  product = jnp.einsum('sti,stj->tij', change, actions)

  def smooth(terms):
    pad = window // 2
    padded = jnp.pad(terms * weight, ((pad, pad), (0, 0), (0, 0)))
    return sum(padded[i : i + terms.shape[0]] for i in range(window))

  square, product = smooth(square), smooth(product)
  regular = square + 1e-6 * jnp.trace(square, axis1=1, axis2=2)[
    :, None, None
  ] * jnp.eye(size)
  H = positive_solve(regular, product.mT).mT
  values, vectors = symmetric_eigen(H)
  typical = jnp.median(jnp.mean(values, -1))
  typical = jnp.where(typical > 0, typical, jnp.median(jnp.abs(values)))
  typical = jnp.maximum(typical, 1e-12)
  values = jnp.clip(values, limits[0] * typical, limits[1] * typical)
  H = vectors @ (values[..., None] * vectors.mT)
  return jnp.concatenate([H, H[-1:]])


def fit_dynamics(
  states: chex.Array,
  actions: chex.Array,
  *,
  blend: float = 0.05,
  ridge: float = 1e-3,
  step_ratios: tuple | None = None,
  curvature: chex.Array | None = None,
  alone: bool = False,
) -> Dynamics:
  """s_{t+1} = A_t s_t + B_t a_t + c_t + N(0, F_t) from samples.

  Args:
    states: [S, T + 1, D].
    actions: [S, T, A].
    blend: see `regress`.
    ridge: see `regress`.
    step_ratios: (r_x, r_u): the rows of x and u are known, x' = x + r_x a and
      u' = r_u a; the ratios are those of the units in which actions and states
      are given.  None: they are regressed like all others.
    curvature: H [T + 1, A, A]: the rows of g are

          H_{t+1}⁻¹ g_{t+1} = H_t⁻¹ g_t + a_t + (regression of the rest on s_t)

      None: they are regressed like all others.
    alone: nothing else moves g: the rest is a constant b_t.  So it is where the
      unit is all of f; where it is one coordinate of many, the rest is what the
      others do.

  Returns:
    Dynamics; F is the covariance of the residuals.
  """
  D, A = states.shape[-1], actions.shape[-1]
  now, after = states[:, :-1], states[:, 1:]
  W, b, _ = regress(jnp.concatenate([now, actions], -1), after, blend, ridge)
  state, action = W[..., :D], W[..., D:]
  eye, place = jnp.eye(A), lambda i: slice(i * A, (i + 1) * A)
  if step_ratios is not None:
    for i, ratio in zip((0, 2), step_ratios):
      state = state.at[:, place(i)].set(0)
      action = action.at[:, place(i)].set(ratio * eye)
      b = b.at[:, place(i)].set(0)
    state = state.at[:, place(0), place(0)].set(eye)
  if curvature is not None:
    inverted = inverse(curvature)
    scaled = jnp.einsum('tij,stj->sti', inverted, states[..., place(1)])
    rest = scaled[:, 1:] - scaled[:, :-1] - actions
    if alone:
      r = jnp.mean(rest, 0)
      R = jnp.zeros((*r.shape, D), r.dtype)
    else:
      R, r, _ = regress(now, rest, blend, ridge)
    R = R.at[:, :, place(1)].add(inverted[:-1])
    state = state.at[:, place(1)].set(curvature[1:] @ R)
    action = action.at[:, place(1)].set(curvature[1:])
    b = b.at[:, place(1)].set(jnp.einsum('tij,tj->ti', curvature[1:], r))
  error = (
    after
    - jnp.einsum('tij,stj->sti', state, now)
    - jnp.einsum('tij,stj->sti', action, actions)
    - b
  )
  mean = jnp.mean(states[:, 0], 0)
  spread = states[:, 0] - mean
  return Dynamics(
    state,
    action,
    b,
    jnp.einsum('sti,stj->tij', error, error) / error.shape[0],
    mean,
    jnp.einsum('si,sj->ij', spread, spread) / spread.shape[0],
  )


def fit_controller(
  states: chex.Array,
  actions: chex.Array,
  variance: chex.Array,
  *,
  blend: float = 0.05,
  ridge: float = 1e-3,
) -> Controller:
  """A policy's mean actions as a linear function of the state, at every t.

  Args:
    states: [S, T, D].
    actions: mean actions of the policy there, [S, T, A].
    variance: of the policy around its mean, [T, A]; added to the residuals'.
    blend: see `regress`.
    ridge: see `regress`.
  """
  K, k, S = regress(states, actions, blend, ridge)
  return Controller(K, k, S + jax.vmap(jnp.diag)(variance))
