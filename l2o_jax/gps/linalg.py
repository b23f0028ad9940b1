"""Linear algebra of small positive definite matrices.

Gauss-Jordan elimination instead of LAPACK: on a CPU with two cores, two batched
calls by XLA at a time wait for each other forever (jaxlib 0.10.2).  Matrices
of one entry, as the convolutional form has them, are scalars throughout.
"""

import chex
import jax
import jax.numpy as jnp


def _eliminate(matrix, right):
  """matrix⁻¹ right [..., D, K] and log|matrix| [...], without pivoting.

  Positive definite matrices need none; nan where a pivot is not positive.
  """
  size, batch = matrix.shape[-1], matrix.shape[:-2]
  right = jnp.broadcast_to(right, (*batch, *right.shape[-2:]))
  joined = jnp.concatenate([matrix, right.astype(matrix.dtype)], -1)

  def step(i, carry):
    joined, log = carry  # [..., D, D + K]
    row = jax.lax.dynamic_index_in_dim(joined, i, -2)  # [..., 1, D + K]
    column = jax.lax.dynamic_index_in_dim(joined, i, -1)  # [..., D, 1]
    pivot = jax.lax.dynamic_index_in_dim(row, i, -1)
    pivot = jnp.where(pivot > 0, pivot, jnp.nan)
    row = row / pivot
    here = jnp.arange(size)[:, None] == i
    joined = jnp.where(here, row, joined - column * row)
    return joined, log + jnp.log(pivot[..., 0, 0])

  start = (joined, jnp.zeros(batch, joined.dtype))
  joined, log = jax.lax.fori_loop(0, size, step, start)
  return joined[..., size:], log


def positive_solve(matrix: chex.Array, right: chex.Array) -> chex.Array:
  """matrix⁻¹ right, [..., D, D], [..., D, K]; nan if not positive definite."""
  return _eliminate(matrix, right)[0]


def inverse(matrix: chex.Array) -> chex.Array:
  """Inverse of positive definite matrices [..., A, A]; nan for any other."""
  if matrix.shape[-1] == 1:
    return jnp.where(matrix > 0, 1 / matrix, jnp.nan)
  return positive_solve(matrix, jnp.eye(matrix.shape[-1]))


def log_determinant(matrix: chex.Array) -> chex.Array:
  """log|matrix| of positive definite matrices, [..., A, A] -> [...]."""
  if matrix.shape[-1] == 1:
    return jnp.log(matrix[..., 0, 0])
  return _eliminate(matrix, jnp.zeros((matrix.shape[-1], 0)))[1]


def symmetric_eigen(matrix: chex.Array) -> tuple[chex.Array, chex.Array]:
  """Eigenvalues [..., A] and vectors [..., A, A] of the symmetric part.

  LAPACK's where A > 1: call it for one matrix at a time.
  """
  if matrix.shape[-1] == 1:
    return matrix[..., 0], jnp.ones_like(matrix)
  return jnp.linalg.eigh((matrix + matrix.mT) / 2)


def semidefinite(matrix: chex.Array) -> chex.Array:
  """Symmetric, its eigenvalues not below 1e-6 times the largest."""
  values, vectors = symmetric_eigen(matrix)
  largest = jnp.max(jnp.abs(values), -1, keepdims=True)
  values = jnp.maximum(values, 1e-6 * largest + 1e-30)
  return vectors @ (values[..., None] * vectors.mT)


def from_diagonal(values: chex.Array) -> chex.Array:
  """[..., A] -> [..., A, A]."""
  return values[..., None] * jnp.eye(values.shape[-1], dtype=values.dtype)
