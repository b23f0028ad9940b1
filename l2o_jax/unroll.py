"""The only loop over an optimizee: an optimizer at work on it."""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from l2o_jax.checks import one_of, ready, require, several_keys

REMAT = (False, True, 'segments')  # what `remat` of `unroll` may be


class Step(NamedTuple):
  """What `record` is shown of step t.

  Attributes:
    params: x_t.
    loss: f(x_t).
    gradients: gradients of f at x_t.
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
    losses: f(x_t), t = 0 ... T, [T + 1]; for B functions [T + 1, B].
    record: what `record` returned, stacked along a leading axis T, or None.
  """

  losses: chex.Array
  record: Any


@jax.custom_jvp
def along(value, gradients, params):
  """`value`, f(x) [], with `gradients` as its derivative with respect to x.

  Or f_1(x_1) ... f_B(x_B) [B]; the leaves of x then have a leading axis B.
  """
  del gradients, params
  return value


@along.defjvp
def _along_jvp(primals, tangents):
  value, gradients, _ = primals
  change, _, direction = tangents
  pairs = zip(jax.tree.leaves(gradients), jax.tree.leaves(direction))
  for g, dx in pairs:
    axes = tuple(range(value.ndim, g.ndim))  # a function's own coordinates
    change += jnp.sum(g * dx, axes).astype(value.dtype)
  return value, change


def scalar(loss, who, shapes=((),)):
  """The loss; raises a ValueError where its shape is not one of `shapes`."""

  def checked(*args):
    value = loss(*args)
    a_tuple = isinstance(value, tuple)
    found = 'a tuple' if a_tuple else f'shape {jnp.shape(value)}'
    good = not a_tuple and jnp.shape(value) in shapes
    require(good, f'{who}: the loss must be a scalar, got {found}')
    return jnp.asarray(value)

  return checked


def _scan_segments(step, carry, keys):
  """`jax.lax.scan` that stores only every ceil(sqrt(T))-th carry."""
  length = math.isqrt(max(len(keys) - 1, 0)) + 1  # ceil(sqrt(T))
  whole = len(keys) - len(keys) % length
  several = lambda carry, keys: jax.lax.scan(step, carry, keys)
  several = jax.checkpoint(several, prevent_cse=False)
  parts = keys[:whole].reshape(-1, length, *keys.shape[1:])  # about [√T, √T]
  carry, seen = jax.lax.scan(several, carry, parts)
  seen = jax.tree.map(lambda x: x.reshape(whole, *x.shape[2:]), seen)
  if whole < len(keys):
    carry, rest = several(carry, keys[whole:])
    seen = jax.tree.map(lambda *x: jnp.concatenate(x), seen, rest)
  return carry, seen


def unroll(
  loss: Callable[[chex.ArrayTree, chex.PRNGKey], chex.Scalar],
  opt: optax.GradientTransformation,
  params: chex.ArrayTree,
  opt_state: chex.ArrayTree,
  keys: chex.PRNGKey,
  *,
  second_derivatives: bool = False,
  remat: bool | Literal['segments'] = True,
  record: Callable[[Step], Any] | None = None,
):
  """Runs `opt` on `loss` for T steps.

      x_{t+1} = x_t + opt(grad f(x_t)),   t = 0 ... T - 1

  The value and gradients that the optimizer sees are constants of the graph
  (`stop_gradient`).  Differentiating the losses with respect to what is inside
  `opt` therefore drops d grad f(x_t) / d theta, and needs no second derivatives
  of f (Andrychowicz et al., section 2.1).

  The recorded losses are never cut.  The gradient at x_t is also their
  derivative, so f is evaluated and differentiated once a step, in the forward
  pass.  To differentiate the losses twice, set `second_derivatives`.

  Args:
    loss: params, key -> f(x) []; the task is bound, the key draws the
      minibatch.  Or B functions side by side, f_1(x_1) ... f_B(x_B) [B]; every
      leaf of the parameters then has a leading axis B.
    opt: any optax transformation, learned or hand-designed.  It is given
      `value`, `grad` and `value_fn`, which line searches need; `value_fn` keeps
      to the minibatch of the step.
    params: x_0.
    opt_state: the state of `opt` at x_0.  To continue a run, pass what the last
      call returned.
    keys: T + 1 random keys, one for each loss.
    second_derivatives: keep d grad f(x_t) / d theta.
    remat: what the forward pass stores for the backward pass.  True: the
      parameters, state and gradients of each step (no gradients if second
      derivatives are kept); the backward pass computes the rest again, which is
      also faster on a CPU.  False: everything.  'segments': the parameters and
      state of every ceil(sqrt(T))-th step; memory then grows as sqrt(T) instead
      of T, at the cost of one more forward pass.
    record: Step -> anything to be stacked over t.

  Returns:
    ((x_T, opt_state), Trajectory).

  Raises:
    ValueError: unknown `remat`, no keys or one without an axis, or a loss that
      is neither a scalar nor [B] where all parameters have a leading axis B.
    TypeError: `opt` is a LearnedOptimizer without theta.
  """
  one_of('unroll', REMAT, remat=remat)
  ready('unroll', opt=opt)
  several_keys('unroll', keys)
  require(len(keys), 'unroll: keys must be T + 1, at least one')
  leading = {jnp.shape(x)[:1] for x in jax.tree.leaves(params)}
  several = leading if len(leading) == 1 else set()  # [B], B functions
  loss = scalar(loss, 'unroll', {(), *several})
  opt = optax.with_extra_args_support(opt)
  # The stop-gradient: what the optimizer sees is cut out of the graph.
  see = (lambda x: x) if second_derivatives else jax.lax.stop_gradient

  def update(gradients, opt_state, params, value, key):
    value_fn = lambda params: loss(params, key)
    extra = {'value': value, 'grad': gradients, 'value_fn': value_fn}
    return opt.update(gradients, opt_state, params, **extra)

  if remat and not second_derivatives:
    update = jax.checkpoint(update, prevent_cse=False)

  def step(carry, key):
    params, opt_state = carry
    value, pull_back = jax.vjp(lambda x: loss(x, key), see(params))
    (gradients,) = see(pull_back(jnp.ones_like(value)))
    if not second_derivatives:  # the recorded loss still depends on x_t
      value = along(value, gradients, params)
    updates, new_state = update(gradients, opt_state, params, see(value), key)
    seen = Step(params, value, gradients, updates, opt_state)
    new_params = optax.apply_updates(params, updates)
    return (new_params, new_state), (value, record(seen) if record else None)

  if remat and second_derivatives:
    step = jax.checkpoint(step, prevent_cse=False)
  scan = _scan_segments if remat == 'segments' else jax.lax.scan
  carry, (losses, seen) = scan(step, (params, opt_state), keys[:-1])
  last = loss(carry[0], keys[-1])  # f(x_T): [] or [B]
  return carry, Trajectory(jnp.concatenate([losses, last[None]]), seen)
