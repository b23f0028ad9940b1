"""A loss guard: never worse than an optimizer that one can trust."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from l2o_jax.checks import positive, ready, require


class GuardedState(NamedTuple):
  """The state of both runs.

  Attributes:
    step: number of updates since the last comparison; -1: the guard was better,
      and x has not reached it yet.
    opt_state: of the guarded optimizer.
    guard_state: of the guard.
    guard_params: where the guard is; where step is 0, the point that the last
      comparison chose; like the parameters.
    losses: sums of the losses of the guarded run and of the guard over the last
      steps before a comparison [2].
    rejected: how often the guard was better.
  """

  step: chex.Array
  opt_state: chex.ArrayTree
  guard_state: chex.ArrayTree
  guard_params: chex.ArrayTree
  losses: chex.Array
  rejected: chex.Array


def _all_finite(tree):
  """Whether all numbers of a tree are finite, []."""
  finite = jax.tree.map(lambda x: jnp.all(jnp.isfinite(x)), tree)
  return jax.tree.reduce(jnp.logical_and, finite, True)


def _rounding(tree):
  """The largest relative error of rounding of a tree's types."""
  types = [jnp.result_type(x) for x in jax.tree.leaves(tree)]
  return max([jnp.finfo(dtype).eps for dtype in types], default=0)


def _norm(tree):
  """In float32, where the norm of many numbers of 16 bits does not overflow."""
  wide = lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32))
  return optax.tree.norm(jax.tree.map(wide, tree))


def guarded(
  opt: optax.GradientTransformation,
  guard: optax.GradientTransformation,
  *,
  every: int = 100,
  average: int = 1,
) -> optax.GradientTransformationExtraArgs:
  """Runs a guard beside an optimizer, and goes on from the better of the two.

  Both start at the same x.  After N steps their mean losses over the last n
  steps are compared (after Prémont-Schwarz et al. 2022): the guarded run moves
  to the guard's x if the guard's mean is lower or its own is not finite, and
  starts afresh there; else the guard moves to the guarded run's x.  A loss or a
  step that is not finite is compared at once; where neither run's is finite, as
  on a minibatch with a NaN, the step is left out.

  Guarantee: with losses over all data and n = 1, the loss at
  `state.guard_params` after a comparison is at most the loss that N - 1 steps
  of the guard reach from the point that the comparison before it chose; or it
  is the loss after N of them.  Whatever the guarded optimizer does, the run has
  the guard's rate of convergence per N steps; gradient descent with a rate of
  at most 1 / L never ascends and converges to a stationary point of any f with
  L-Lipschitz gradients.  With minibatches the guarantee holds up to the error
  of a mean over n of them.  Where x is so far from the guard's x that rounding
  makes the step miss it, the next step goes to the guard again.

  The guarded run itself is on its own from each comparison to the next, its
  step right after one included.  So stop where `state.step` is 0 and take
  `state.guard_params`, the point that the comparison chose.  `state.step` is 0
  after a multiple of N steps unless a loss or a step was not finite, or x was
  that far away.  What lies outside the parameters, such as the running averages
  of batch normalisation, is not guarded.

  It must come last in a chain: what follows would change the step to the
  guard's x.  It must not be masked, as `value_fn` needs all parameters.  What
  stands in front changes the guarded run alone: put weight decay or clipping
  into the guard as well.

  A step costs one more gradient, at the guard's x; the state has the guard's
  state and one more copy of the parameters.

  Args:
    opt: what is guarded, for example a learned optimizer.
    guard: for example `optax.adam(1e-3)` or `optax.sgd(rate)`.
    every: N, steps between two comparisons.
    average: n <= N, how many of the last steps a comparison averages over.

  Returns:
    An optax transformation.  `update` needs `params`, and `value` and
    `value_fn` as optax's line searches need them: value_fn(x) is the loss of
    this step's minibatch, and nothing else.

        loss_of = lambda x: loss(x, batch)
        value, grads = jax.value_and_grad(loss_of)(x)
        how = {'value': value, 'value_fn': loss_of}
        updates, state = tx.update(grads, state, x, **how)

  Raises:
    ValueError: a number is not positive, or n > N; (from `update`) a parameter
      has no gradient.
    TypeError: one is a LearnedOptimizer without theta; (from `update`) params,
      value or value_fn is missing.
  """
  ready('guarded', opt=opt, guard=guard)
  positive('guarded', every=every, average=average)
  within = f'guarded: average must not exceed {every=}, got {average}'
  require(average <= every, within)
  opt, guard = map(optax.with_extra_args_support, (opt, guard))

  def init(params):
    # Buffers of its own, which a user may donate together with the parameters.
    copy = jax.tree.map(jnp.array, params)
    states = opt.init(params), guard.init(params)
    count = lambda: jnp.zeros((), jnp.int32)
    return GuardedState(count(), *states, copy, jnp.zeros(2), count())

  def update(
    updates, state, params=None, *, value=None, value_fn=None, **extra
  ):
    if params is None or value is None or value_fn is None:
      raise TypeError('guarded: update needs params, value and value_fn')
    kinds = [jax.tree.structure(tree) for tree in (updates, params)]
    frozen = 'guarded: every parameter must have a gradient'
    require(kinds[0] == kinds[1], f'{frozen}: {kinds[0]}, {kinds[1]}')
    y = state.guard_params
    y_value, y_grads = jax.value_and_grad(value_fn)(y)
    how = {**extra, 'value': value, 'value_fn': value_fn}
    moves, opt_state = opt.update(updates, state.opt_state, params, **how)
    how |= {'value': y_value, 'grad': y_grads}
    y_moves, guard_state = guard.update(y_grads, state.guard_state, y, **how)

    late = state.step < 0
    ahead = optax.apply_updates(params, moves)  # a finite step may overflow x
    lost = late | ~(jnp.isfinite(value) & _all_finite(ahead))
    held = jnp.isfinite(y_value) & _all_finite(y_moves)
    both = jnp.stack([value, y_value]).astype(state.losses.dtype)
    counted = jnp.where(state.step >= every - average, both, 0)
    losses = state.losses + counted
    compare = (state.step == every - 1) | lost | ~held
    reject = compare & held & (lost | (losses[1] < losses[0]))
    accept = compare & ~reject & ~lost
    # What was compared is x and y before this step.  On rejection the guarded
    # run goes where the guard goes now; else the guard starts again at x.
    to_guard = jax.tree.map(lambda y, m, x: y + m - x, y, y_moves, params)
    moves = optax.tree.where(reject, to_guard, moves)
    moved = optax.apply_updates(params, moves)
    there = optax.apply_updates(y, y_moves)
    off = _norm(optax.tree.sub(moved, there))
    far = reject & ~(off <= 16 * _rounding(params) * _norm(there))
    new = GuardedState(
      jnp.where(compare, jnp.where(far, -1, 0), state.step + 1),
      optax.tree.where(reject, opt.init(moved), opt_state),
      optax.tree.where(accept, guard.init(params), guard_state),
      optax.tree.where(accept, params, there),
      jnp.where(compare, 0, losses),
      state.rejected + (reject & ~late),
    )
    neither = lost & ~held  # nothing to go on from: as if there were no step
    still = optax.tree.zeros_like(moves)
    return optax.tree.where(neither, (still, state), (moves, new))

  return optax.GradientTransformationExtraArgs(init, update)
