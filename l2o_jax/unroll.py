"""The only inner loop of the project: an optimizer at work on an optimizee."""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from l2o_jax.blocks import replay


class Step(NamedTuple):
  """What `record` is shown of step t.

  Attributes:
    params: x_t.
    loss: f(x_t).
    gradients: of f at x_t.
    updates: x_{t+1} - x_t.
    opt_state: the optimizer's state before the step.
  """

  params: chex.ArrayTree
  loss: chex.Scalar
  gradients: chex.ArrayTree
  updates: chex.ArrayTree
  opt_state: chex.ArrayTree


class Trajectory(NamedTuple):
  """A run of T steps.

  Attributes:
    losses: [T + 1], losses[t] = f(x_t), t = 0 ... T.
    record: what `record` returned, stacked along a leading axis T; else None.
  """

  losses: chex.Array
  record: Any


@jax.custom_jvp
def _along(value, gradients, params):
  """f(x), whose derivative with respect to x is the gradient given."""
  del gradients, params
  return value


@_along.defjvp
def _along_jvp(primals, tangents):
  value, gradients, _ = primals
  change, _, direction = tangents
  for g, dx in zip(
    jax.tree.leaves(gradients), jax.tree.leaves(direction), strict=True
  ):
    change += jnp.sum(g * dx).astype(value.dtype)
  return value, change


def unroll(
  loss: Callable[[chex.ArrayTree, chex.PRNGKey], chex.Scalar],
  opt: optax.GradientTransformation,
  params: chex.ArrayTree,
  opt_state: chex.ArrayTree,
  keys: chex.PRNGKey,
  *,
  second_derivatives: bool = False,
  remat: bool | Literal['segments', 'blocks'] = False,
  record: Callable[[Step], Any] | None = None,
):
  """Runs `opt` on `loss` for T steps.

      x_{t+1} = x_t + opt(grad f(x_t)),   t = 0 ... T - 1

  The value and gradients that the optimizer sees are constants of the graph
  (`stop_gradient`): differentiating the losses with respect to what is inside
  `opt` drops d grad f(x_t) / d theta, so needs no second derivatives of f
  (Andrychowicz et al., section 2.1).  The recorded losses are never cut: that
  gradient is also their derivative with respect to x_t, so that f is evaluated
  and differentiated once a step, in the forward pass.  (So a derivative of a
  derivative of the losses needs `second_derivatives`.)

  Args:
    loss: params, key -> scalar; the task is bound, the key draws the minibatch.
    opt: any optax transformation, learned or hand-designed.
    params: x_0.
    opt_state: of `opt` at x_0; feed back what comes out to go on with a run.
    keys: [T + 1] random keys, one for each loss.
    second_derivatives: keep d grad f(x_t) / d theta.
    remat: what the backward pass finds stored.  False: all that the forward
      pass computed.  True: what goes from step to step, the rest is computed
      again; on a CPU also faster.  'segments': that of every ceil(sqrt(T))
      steps, and within the segment at work that of each step: memory as sqrt(T)
      instead of T, for one forward pass more.  'blocks': as True, but the
      backward pass goes through all steps for some 5,000 coordinates before it
      turns to the next ones, so that its arrays stay in the cache: the fastest
      on a CPU of few cores.  The gradients being constant, that is possible
      where no coordinate's update depends on another's; it is not checked.  The
      optimizer must take all parameters as one vector and keep its coordinates
      as the last axis of its state (`flattened`).
    record: Step -> anything to be stacked over t.

  Returns:
    ((x_T, opt_state), Trajectory).

  Raises:
    ValueError: unknown `remat`; 'blocks' with second derivatives, with `record`
      or with another form of state.
  """
  chex.assert_rank(keys, 1)
  if remat not in (False, True, 'segments', 'blocks'):
    raise ValueError(
      "unroll: remat must be False, True, 'segments' or "
      f"'blocks', got {remat!r}"
    )
  if remat == 'blocks' and (second_derivatives or record is not None):
    raise ValueError(
      "unroll: remat='blocks' has neither second derivatives nor records"
    )
  opt = optax.with_extra_args_support(opt)
  if remat == 'blocks' and len(keys) > 1:
    return _unroll_blocks(loss, opt, params, opt_state, keys)
  see = (lambda x: x) if second_derivatives else jax.lax.stop_gradient

  def update(gradients, opt_state, params, value):
    return opt.update(gradients, opt_state, params, value=value)

  if remat and not second_derivatives:
    update = jax.checkpoint(update, prevent_cse=False)

  def step(carry, key):
    params, opt_state = carry
    value, gradients = jax.value_and_grad(loss)(see(params), key)
    gradients = see(gradients)
    if not second_derivatives:
      value = _along(value, gradients, params)
    updates, new_opt_state = update(gradients, opt_state, params, see(value))
    seen = (
      None
      if record is None
      else record(Step(params, value, gradients, updates, opt_state))
    )
    return (optax.apply_updates(params, updates), new_opt_state), (value, seen)

  if remat and second_derivatives:
    step = jax.checkpoint(step, prevent_cse=False)

  def several(carry, keys):
    return jax.lax.scan(step, carry, keys)

  carry, keys, last = (params, opt_state), keys[:-1], keys[-1]
  if remat != 'segments':
    carry, (losses, seen) = several(carry, keys)
  else:
    several = jax.checkpoint(several, prevent_cse=False)
    length = math.isqrt(max(len(keys) - 1, 0)) + 1  # ceil(sqrt(T))
    whole = len(keys) - len(keys) % length
    carry, parts = jax.lax.scan(
      several, carry, keys[:whole].reshape(-1, length)
    )
    losses, seen = jax.tree.map(lambda x: x.reshape(whole, *x.shape[2:]), parts)
    if whole < len(keys):
      carry, rest = several(carry, keys[whole:])
      losses, seen = jax.tree.map(
        lambda *x: jnp.concatenate(x), (losses, seen), rest
      )
  params, opt_state = carry
  losses = jnp.append(losses, loss(params, last))
  return (params, opt_state), Trajectory(losses, seen)


def _unroll_blocks(loss, opt, params, opt_state, keys):
  """`unroll` with remat='blocks': run it, then differentiate what was run."""
  vector, unravel = ravel_pytree(params)
  for path, leaf in jax.tree.leaves_with_path(opt_state):
    if (
      jnp.issubdtype(leaf.dtype, jnp.inexact)
      and leaf.shape[-1:] != vector.shape
    ):
      raise ValueError(
        f"unroll: remat='blocks' needs a state whose last axis are all "
        f'{vector.size} coordinates, as that of `flattened`, got '
        f'{leaf.shape} for opt_state{jax.tree_util.keystr(path)}'
      )
  cut = jax.lax.stop_gradient
  constant = optax.GradientTransformationExtraArgs(
    opt.init, lambda *args, **kwargs: cut(opt.update(*args, **kwargs))
  )
  (x, state), trajectory = unroll(
    loss, constant, cut(params), cut(opt_state), keys, record=lambda step: step
  )
  steps = trajectory.record
  as_vectors = jax.vmap(lambda tree: ravel_pytree(tree)[0])
  gradients = as_vectors(steps.gradients)
  xs, (x, state) = replay(
    lambda g, state, x, f: opt.update(g, state, x, value=f),
    (vector, opt_state),
    (gradients, cut(steps.loss), as_vectors(steps.params), steps.opt_state),
    (ravel_pytree(x)[0], state),
  )
  x = unravel(x)
  losses = jax.vmap(_along)(steps.loss, gradients, xs)
  return (x, state), Trajectory(jnp.append(losses, loss(x, keys[-1])), None)
