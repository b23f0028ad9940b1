"""The only inner loop of the project: an optimizer at work on an optimizee."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax


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


def unroll(loss: Callable[[chex.ArrayTree, chex.PRNGKey], chex.Scalar],
           opt: optax.GradientTransformation,
           params: chex.ArrayTree,
           opt_state: chex.ArrayTree,
           keys: chex.PRNGKey,
           *,
           second_derivatives: bool = False,
           remat: bool = False,
           record: Callable[[Step], Any] | None = None):
  """Runs `opt` on `loss` for T steps.

      x_{t+1} = x_t + opt(grad f(x_t)),   t = 0 ... T - 1

  The value and gradients that the optimizer sees are constants of the graph
  (`stop_gradient`): differentiating the losses with respect to what is inside
  `opt` drops d grad f(x_t) / d theta, so needs no second derivatives of f
  (Andrychowicz et al., section 2.1).  The recorded losses are never cut.

  Args:
    loss: params, key -> scalar; the task is bound, the key draws the minibatch.
    opt: any optax transformation, learned or hand-designed.
    params: x_0.
    opt_state: of `opt` at x_0; feed back what comes out to go on with a run.
    keys: [T + 1] random keys, one for each loss.
    second_derivatives: keep d grad f(x_t) / d theta.
    remat: recompute each step in the backward pass instead of storing it; saves
      memory and, on CPU, often time.
    record: Step -> anything to be stacked over t.

  Returns:
    ((x_T, opt_state), Trajectory).
  """
  chex.assert_rank(keys, 1)
  opt = optax.with_extra_args_support(opt)
  see = (lambda x: x) if second_derivatives else jax.lax.stop_gradient

  def step(carry, key):
    params, opt_state = carry
    value, gradients = jax.value_and_grad(loss)(params, key)
    updates, new_opt_state = opt.update(
        see(gradients), opt_state, params, value=see(value))
    seen = None if record is None else record(
        Step(params, value, gradients, updates, opt_state))
    return (optax.apply_updates(params, updates), new_opt_state), (value, seen)

  if remat:
    step = jax.checkpoint(step, prevent_cse=False)
  (params, opt_state), (losses, seen) = jax.lax.scan(
      step, (params, opt_state), keys[:-1])
  losses = jnp.append(losses, loss(params, keys[-1]))
  return (params, opt_state), Trajectory(losses, seen)
