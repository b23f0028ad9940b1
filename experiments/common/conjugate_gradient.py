"""Nonlinear conjugate gradient as an optax transformation."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from l2o_jax.checks import one_of


class ConjugateGradientState(NamedTuple):
  """What the last step leaves; zero before the first.

  Attributes:
    gradients: g_{t-1}.
    direction: d_{t-1}.
  """

  gradients: chex.ArrayTree
  direction: chex.ArrayTree


def _polak_ribiere(new, old):
  change = optax.tree.vdot(new, optax.tree.sub(new, old))
  return jnp.maximum(change, 0)


RULES = {
  'fletcher_reeves': lambda new, old: optax.tree.vdot(new, new),
  'polak_ribiere': _polak_ribiere,
}


def scale_by_conjugate_gradient(
  rule: str = 'polak_ribiere', restart: bool = False
) -> optax.GradientTransformation:
  """Conjugate directions, up to the sign: d_t = g_t + β_t d_{t-1}.

      Fletcher-Reeves:  β = g_t·g_t / g_{t-1}·g_{t-1}
      Polak-Ribière+:   β = max(g_t·(g_t - g_{t-1}), 0) / g_{t-1}·g_{t-1}

  d_0 = g_0, as where g_{t-1} = 0.

  Args:
    rule: 'fletcher_reeves' or 'polak_ribiere'.
    restart: begin anew with d = g where -d would not descend.

  Raises:
    ValueError: another rule.
  """
  one_of('conjugate_gradient', RULES, rule=rule)

  def init(params):
    zero = optax.tree.zeros_like(params)
    return ConjugateGradientState(zero, zero)

  def update(updates, state, params=None):
    del params
    dot = optax.tree.vdot
    square = dot(state.gradients, state.gradients)
    known = square > 0
    ratio = RULES[rule](updates, state.gradients) / jnp.where(known, square, 1)
    beta = jnp.where(known, ratio, 0)
    if restart:
      slope = dot(updates, updates) + beta * dot(updates, state.direction)
      beta = jnp.where(slope > 0, beta, 0)
    direction = jax.tree.map(
      lambda g, d: (g + beta * d).astype(g.dtype), updates, state.direction
    )
    return direction, ConjugateGradientState(updates, direction)

  return optax.GradientTransformation(init, update)


def conjugate_gradient(
  learning_rate: float = 1.0,
  rule: str = 'polak_ribiere',
  linesearch: optax.GradientTransformationExtraArgs | None = None,
) -> optax.GradientTransformationExtraArgs:
  """Nonlinear conjugate gradient: x_{t+1} = x_t - rate d_t.

  With a line search, such as `optax.scale_by_backtracking_linesearch(20)`, the
  rate is where the search starts, and `update` needs what the search needs
  (`value`, `grad`, `value_fn`, as `unroll` hands them over); directions that do
  not descend are dropped.

  Args:
    learning_rate: of the fixed step.
    rule: see `scale_by_conjugate_gradient`.
    linesearch: None: the step is fixed.
  """
  parts = [
    scale_by_conjugate_gradient(rule, linesearch is not None),
    optax.scale(-learning_rate),
  ]
  if linesearch is not None:
    parts.append(linesearch)
  return optax.chain(*parts)
