"""Time-varying linear-Gaussian models, fitted to samples of one guide.

Samples are pooled over rollouts and over the coordinates of the group: that is
the convolution of convolutional guided policy search (Li & Malik 2017, section
3.4).  States [S, T + 1, D] begin with x [A], g [A], u [A].
"""

import jax.numpy as jnp

from l2o_jax.gps import linalg
from l2o_jax.gps.linalg import from_diagonal, inverse, positive_solve
from l2o_jax.gps.lqr import Controller, Dynamics

# An input's variance grows by this share of itself.  Histories are nearly
# collinear: with few samples K would become huge.  This keeps K small and
# leaves G as it is.
RIDGE = 1e-3
# Curvature relative to its median over t: an estimate beyond these is noise.
CURVATURE_LIMITS = (0.2, 5.0)


def regress(inputs, outputs, blend: float):
  """Linear regression at every t, with a prior from the other times.

      y_t = W_t x_t + b_t + N(0, R_t)

  The covariance of (x, y) at t is (1 - β) of its own and β of the mean over
  all t; then each input's variance grows by `RIDGE` times itself, which keeps W
  small where inputs are nearly collinear.

  Args:
    inputs: x, [S, T, I].
    outputs: y, [S, T, O].
    blend: β in [0, 1].

  Returns:
    (W [T, O, I], b [T, O], R [T, O, O]).
  """
  split = inputs.shape[-1]
  z = jnp.concatenate([inputs, outputs], -1)  # [S, T, I + O]
  mean = jnp.mean(z, 0)
  z = z - mean
  own = jnp.einsum('sti,stj->tij', z, z) / z.shape[0]
  covariance = (1 - blend) * own + blend * jnp.mean(own, 0, keepdims=True)
  xx, xy = covariance[:, :split, :split], covariance[:, :split, split:]
  size = jnp.linalg.diagonal(xx)
  floor = 1e-12 * jnp.mean(size) + 1e-300
  W = positive_solve(xx + from_diagonal(RIDGE * size + floor), xy).mT
  R = covariance[:, split:, split:] - W @ xy - xy.mT @ W.mT + W @ xx @ W.mT
  b = mean[:, split:] - jnp.einsum('toi,ti->to', W, mean[:, :split])
  return W, b, (R + R.mT) / 2


def secant_curvature(gradients, actions):
  """H of g_{t+1} - g_t = H a_t, the same for all samples of a time.

      H = (Σ Δg a^T) (Σ a a^T)⁻¹,  sums over samples and 7 times

  For A = 1 it is Σ a Δg / Σ a².  Each time counts alike whatever the size of
  its actions.  H is made symmetric, and its eigenvalues are cut to
  `CURVATURE_LIMITS` times the median over t of their mean: curvature is
  positive and does not jump.

  Args:
    gradients: exact, [S, T + 1, A].
    actions: [S, T, A].

  Returns:
    [T + 1, A, A]; the last is repeated.
  """
  change = gradients[:, 1:] - gradients[:, :-1]
  square = jnp.einsum('sti,stj->tij', actions, actions)
  product = jnp.einsum('sti,stj->tij', change, actions)
  trace = lambda matrices: jnp.trace(matrices, axis1=1, axis2=2)[:, None, None]
  weight = 1 / (trace(square) + 1e-300)

  def smooth(terms):  # [T, A, A], sums over 7 times
    padded = jnp.pad(terms * weight, ((3, 3), (0, 0), (0, 0)))
    return sum(padded[i : i + len(terms)] for i in range(7))

  square, product = smooth(square), smooth(product)
  # A few samples do not move along all A directions.
  regular = square + 1e-6 * trace(square) * jnp.eye(square.shape[-1])
  H = positive_solve(regular, product.mT).mT
  values, vectors = linalg.symmetric_eigen(H)
  typical = jnp.median(jnp.mean(values, -1))
  typical = jnp.where(typical > 0, typical, jnp.median(jnp.abs(values)))
  typical = jnp.maximum(typical, 1e-12)
  low, high = CURVATURE_LIMITS
  values = jnp.clip(values, low * typical, high * typical)
  H = vectors @ (values[..., None] * vectors.mT)
  return jnp.concatenate([H, H[-1:]])


def fit_dynamics(states, actions, blend, step_ratios, curvature, alone=False):
  """s_{t+1} = A_t s_t + B_t a_t + c_t + N(0, F_t) from samples.

  Only the rows of Φ are regressed on s_t and a_t.  The others have the form

      x' = x + r_x a,  u' = r_u a,
      H_{t+1}⁻¹ g_{t+1} = H_t⁻¹ g_t + a_t + (regression of the rest on s_t)

  Args:
    states: [S, T + 1, D].
    actions: [S, T, A].
    blend: see `regress`.
    step_ratios: (r_x, r_u), which follow from the units in which actions and
      states are given.
    curvature: H [T + 1, A, A].
    alone: nothing else moves g, and the rest is a constant b_t.  This is so if
      the unit is all of f; if it is one coordinate of many, the rest is what
      the other coordinates do.

  Returns:
    Dynamics; F is the covariance of the residuals.
  """
  D, A = states.shape[-1], actions.shape[-1]
  now, after = states[:, :-1], states[:, 1:]
  phi, g = after[..., 3 * A :], slice(A, 2 * A)
  W, w, _ = regress(jnp.concatenate([now, actions], -1), phi, blend)
  inverted = inverse(curvature)  # [T + 1, A, A]
  scaled = jnp.einsum('tij,stj->sti', inverted, states[..., g])
  rest = scaled[:, 1:] - scaled[:, :-1] - actions
  if alone:
    r, R = jnp.mean(rest, 0), jnp.zeros((rest.shape[1], A, D), rest.dtype)
  else:
    R, r, _ = regress(now, rest, blend)
  R, H = R.at[:, :, g].add(inverted[:-1]), curvature[1:]
  Hr, zero = jnp.einsum('tij,tj->ti', H, r), jnp.zeros_like(r)
  # Rows of x, g, u and Φ.
  always = lambda z: jnp.broadcast_to(z, (len(H), *z.shape))
  eye, (r_x, r_u) = always(jnp.eye(A)), step_ratios
  x, u = always(jnp.eye(A, D)), always(jnp.zeros((A, D)))
  state = jnp.concatenate([x, H @ R, u, W[..., :D]], 1)  # [T, D, D]
  action = jnp.concatenate([r_x * eye, H, r_u * eye, W[..., D:]], 1)
  b = jnp.concatenate([zero, Hr, zero, w], 1)
  moved = jnp.einsum('tij,stj->sti', action, actions)
  error = after - jnp.einsum('tij,stj->sti', state, now) - moved - b
  noise = jnp.einsum('sti,stj->tij', error, error) / error.shape[0]
  mean = jnp.mean(states[:, 0], 0)
  spread = states[:, 0] - mean
  start = jnp.einsum('si,sj->ij', spread, spread) / spread.shape[0]
  return Dynamics(state, action, b, noise, mean, start)


def fit_controller(states, actions, variance, blend):
  """A policy's mean actions as a linear function of the state, at every t.

  Args:
    states: [S, T, D].
    actions: mean actions of the policy there, [S, T, A].
    variance: of the policy around its mean, [T, A]; added to the residuals'.
    blend: see `regress`.
  """
  K, k, S = regress(states, actions, blend)
  return Controller(K, k, S + from_diagonal(variance))
