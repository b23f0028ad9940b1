"""What a run costs, as a quadratic function of one unit's state."""

import chex
import jax.numpy as jnp

from l2o_jax.gps.dynamics import symmetric_eigen
from l2o_jax.gps.lqr import Cost, inverse

NAMES = ('gradient_share', 'sample_gradient', 'sample_taylor', 'taylor')
OF_SAMPLES = ('sample_gradient', 'sample_taylor')  # for `untied_step`


def _block(matrices, vectors, constants, first, dimension):
  """Cost on the rows of the state from `first` on."""
  rows = slice(first, first + vectors.shape[-1])
  times = vectors.shape[0]
  quadratic = jnp.zeros((times, dimension, dimension), matrices.dtype)
  linear = jnp.zeros((times, dimension), matrices.dtype)
  return Cost(
    quadratic.at[:, rows, rows].set(matrices),
    linear.at[:, rows].set(vectors),
    constants,
  )


def taylor(
  x: chex.Array,
  gradients: chex.Array,
  hessian: chex.Array,
  values: chex.Array,
  dimension: int,
) -> Cost:
  """f itself, to second order in x around the samples, mean over them.

      C_xx = mean H,  d_x = mean(∇f - C x),  h = mean(f - x^T d - x^T C x / 2)

  (Li & Malik 2016, section 3.5; 2017, section 3.3, literally.)  With A = 1 the
  means run over the coordinates of a group as well: d_x then carries no
  direction that a single coordinate could follow, and nothing improves.

  Args:
    x: [S, T + 1, A].
    gradients: exact, likewise.
    hessian: mean H over samples, positive semi-definite, [T + 1, A, A].
    values: f of each sample, [S, T + 1].
    dimension: D; x comes first in the state.
  """
  d = jnp.mean(gradients - jnp.einsum('tij,stj->sti', hessian, x), 0)
  h = jnp.mean(
    values
    - jnp.einsum('ti,sti->st', d, x)
    - jnp.einsum('sti,tij,stj->st', x, hessian, x) / 2,
    0,
  )
  return _block(hessian, d, h, 0, dimension)


def sample_taylor(
  gradients: chex.Array,
  curvature: chex.Array | None,
  values: chex.Array,
  dimension: int,
) -> Cost:
  """f to second order around every sample, in deviations from that sample.

      C_xx = H of all samples,  d_x = ∇f and h = f of each

  The expansion of `taylor`, but the linear term is not averaged over samples:
  with A = 1 each coordinate keeps its own direction.

  Args:
    gradients: exact, [S, T + 1, A].
    curvature: H, positive definite, [T + 1, A, A].  None: to first order, C =
      0.  Then LQR has no use for feedback and leaves that of psi° as it is.
    values: f of each sample, [S, T + 1].
    dimension: D; x comes first in the state.

  Returns:
    Cost for `untied_step`: linear [S, T + 1, D], constant [S, T + 1].
  """
  times, A = gradients.shape[1:]
  if curvature is None:
    curvature = jnp.zeros((times, A, A), gradients.dtype)
  rest = [(0, 0), (0, dimension - A)]
  return Cost(
    jnp.pad(curvature, rest + rest[1:]),
    jnp.pad(gradients, [(0, 0)] + rest),
    values,
  )


def gradient_share(curvature: chex.Array, dimension: int) -> Cost:
  """A unit's own share of f - f*, 1/2 g^T H⁻¹ g.

  Exact where f is a quadratic with curvature H.  It depends on the unit's own
  state, so that a rule tied over a group has something to descend.

  Args:
    curvature: H, positive definite, [T + 1, A, A].
    dimension: D; g comes second in the state, after x.
  """
  zero = jnp.zeros(curvature.shape[:2], curvature.dtype)
  return _block(
    inverse(curvature), zero, zero[:, 0], curvature.shape[-1], dimension
  )


def positive(hessian: chex.Array, floor: float = 1e-6) -> chex.Array:
  """Symmetric, its eigenvalues not below floor times the largest."""
  values, vectors = symmetric_eigen(hessian)
  largest = jnp.max(jnp.abs(values), -1, keepdims=True)
  values = jnp.maximum(values, floor * largest + 1e-30)
  return vectors @ (values[..., None] * vectors.mT)
