"""What a run costs, as a quadratic function of one unit's state.

`taylor`, `gradient_share`, `sample_taylor` and `sample_gradient` are values to
be handed to `badmm` or `mirror_descent`; each knows what it needs.
"""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax.numpy as jnp

from l2o_jax.gps.linalg import inverse
from l2o_jax.gps.lqr import Cost


class Scaled(NamedTuple):
  """Samples of one guide in units in which states are of order one.

  Attributes:
    states: (x, g, ...) [S, T + 1, D].
    slopes: exact ∂f/∂x, [S, T + 1, A].
    values: f of each sample, [S, T + 1].
    curvature: dg/da, positive definite, [T + 1, A, A].
    hessian: ∂²f/∂x², positive semi-definite, [T + 1, A, A]: the recorded one,
      mean over samples, where the cost model needs it, else by secants.
  """

  states: chex.Array
  slopes: chex.Array
  values: chex.Array
  curvature: chex.Array
  hessian: chex.Array


class CostModel(NamedTuple):
  """How samples become a cost.

  Attributes:
    fit: Scaled -> (Cost, its typical size []).
    of_samples: every sample has its own linear and constant term: linear
      [S, T + 1, D], constant [S, T + 1], for `untied_step`.
    needs_hessian: of the exact objective, along the rollouts.
  """

  fit: Callable[[Scaled], tuple[Cost, chex.Scalar]]
  of_samples: bool = False
  needs_hessian: bool = False


def _place(matrices, first: int, size: int):
  """[T + 1, A, A] -> [T + 1, D, D], the other rows and columns zero."""
  rest = (first, size - first - matrices.shape[-1])
  return jnp.pad(matrices, ((0, 0), rest, rest))


def _excess(values):
  return jnp.mean(values) - jnp.min(values)


def _taylor(samples: Scaled):
  A, D = samples.slopes.shape[-1], samples.states.shape[-1]
  x, H = samples.states[..., :A], samples.hessian
  Hx = jnp.einsum('tij,stj->sti', H, x)
  d = jnp.mean(samples.slopes - Hx, 0)  # [T + 1, A]
  model = jnp.einsum('ti,sti->st', d, x) + jnp.einsum('sti,sti->st', x, Hx) / 2
  linear = jnp.pad(d, ((0, 0), (0, D - A)))
  cost = Cost(_place(H, 0, D), linear, jnp.mean(samples.values - model, 0))
  return cost, _excess(samples.values)


def _gradient_share(samples: Scaled):
  A, D = samples.slopes.shape[-1], samples.states.shape[-1]
  g, inverted = samples.states[..., A : 2 * A], inverse(samples.curvature)
  zero = jnp.zeros((len(inverted), D), g.dtype)
  size = jnp.mean(jnp.einsum('sti,tij,stj->st', g, inverted, g)) / 2
  return Cost(_place(inverted, A, D), zero, zero[:, 0]), size


def _sample_taylor(samples: Scaled):
  A, D = samples.slopes.shape[-1], samples.states.shape[-1]
  linear = jnp.pad(samples.slopes, ((0, 0), (0, 0), (0, D - A)))
  cost = Cost(_place(samples.hessian, 0, D), linear, samples.values)
  return cost, _excess(samples.values)


def _sample_gradient(samples: Scaled):
  flat = jnp.zeros_like(samples.hessian)
  return _sample_taylor(samples._replace(hessian=flat))


# f itself, to second order in x around the samples, mean over them:
#
#     C_xx = mean H,  d_x = mean(∇f - C x),  h = mean(f - x^T d - x^T C x / 2)
#
# (Li & Malik 2016, section 3.5; 2017, section 3.3, literally.)  With A = 1 the
# means run over the coordinates of a group as well: d_x then carries no
# direction that a single coordinate could follow, and nothing improves.  It is
# right for guides of whole functions.
taylor = CostModel(_taylor, needs_hessian=True)

# A unit's own share of f - f*, 1/2 g^T H⁻¹ g, with H by secants.  Exact where f
# is a quadratic with curvature H.  It depends on the unit's own state, so a
# rule shared by a group can lower it.
gradient_share = CostModel(_gradient_share)

# f to second order around every sample, in deviations from that sample:
#
#     C_xx = H of all samples,  d_x = ∇f and h = f of each
#
# The expansion of `taylor`, but the linear term is not averaged over samples:
# with A = 1 each coordinate keeps its own direction.
sample_taylor = CostModel(_sample_taylor, of_samples=True)

# The same to first order, C = 0.  LQR then has no use for feedback and leaves
# the policy's as it is, so that the policy can follow; its steps are cruder.
sample_gradient = CostModel(_sample_gradient, of_samples=True)
