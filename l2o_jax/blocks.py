"""The derivative of a run whose gradients are constants, block by block.

`x_bar` is the cotangent of x, the derivative of the final scalar by x.
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import optax

# Coordinates at a time: few enough that what one step computes stays in the
# cache of a core, enough for two cores to share.
BLOCK = 5400


def _floats(tree):
  """The leaves that have a derivative; None for the others."""
  return jax.tree.map(
    lambda x: x if jnp.issubdtype(x.dtype, jnp.inexact) else None, tree
  )


def _put(floats, tree):
  """The inverse: `tree` with these leaves in place of its own."""
  return jax.tree.map(
    lambda new, old: old if new is None else new,
    floats,
    tree,
    is_leaf=lambda x: x is None,
  )


def replay(
  update: Callable,
  start: chex.ArrayTree,
  steps: chex.ArrayTree,
  end: chex.ArrayTree,
) -> tuple[chex.Array, chex.ArrayTree]:
  """What is known already, with its derivatives.

      x_{t+1}, s_{t+1} = x_t + u_t, s'_t      u_t, s'_t = update(g_t, s_t, ...)

  Where the gradients g_t are constants, a coordinate's x_t and s_t depend on
  the optimizer's weights, on x_0 and on s_0 alone, not on other coordinates.
  So the backward pass may take all T steps of some coordinates, then those of
  the next: what one step computes stays in the cache.  s_t is read where the
  forward pass stored it; what happens within a step is computed again.

  Args:
    update: g [w], s, x [w], f [] -> updates [w], s of any w coordinates that do
      not communicate; what it closes over is differentiated.
    start: (x_0 [n], s_0), differentiated.  Floating-point leaves of s end in
      the n coordinates.
    steps: (g [T, n], f [T], x [T, n], s) of all steps; constants.
    end: (x_T [n], s_T); constants.

  Returns:
    (x [T, n], (x_T, s_T)), as given.
  """
  n = start[0].size
  width = -(-n // -(-n // BLOCK))  # the same in each block

  def part(tree, first):
    return jax.tree.map(
      lambda x: (
        jax.lax.dynamic_slice_in_dim(x, first, width, -1)
        if x.shape[-1:] == (n,)
        else x
      ),
      tree,
    )

  def step(x, floats, g, f, state):
    updates, state = update(g, _put(floats, state), x, f)
    return optax.apply_updates(x, updates), _floats(state)

  g, f, x, state = part(jax.tree.map(lambda x: x[0], steps), 0)
  step, weights = jax.closure_convert(step, x, _floats(state), g, f, state)

  def backward_block(first, new, weights, steps, bars):
    """Cotangents of weights and (x_0, s_0) through the block from `first` on.

    Of its coordinates only those that are `new`: seen by no block before.
    """
    g, f, x, states = steps
    x_bar, end_bar = jax.tree.map(
      lambda x: jnp.where(new, x, 0), part(bars, first)
    )

    def backward_step(carry, inputs):
      weights_bar, (later_x_bar, state_bar), g = carry
      t, next_g, f, x, x_bar = inputs
      state = part(
        jax.tree.map(
          lambda x: jax.lax.dynamic_index_in_dim(
            x, t, keepdims=False, allow_negative_indices=False
          ),
          states,
        ),
        first,
      )
      _, pull_back = jax.vjp(
        lambda weights, x, floats: step(x, floats, g, f, state, *weights),
        weights,
        x,
        _floats(state),
      )
      more, before_x_bar, state_bar = pull_back((later_x_bar, state_bar))
      return (
        jax.tree.map(jnp.add, weights_bar, more),
        (before_x_bar + x_bar, state_bar),
        next_g,
      ), None

    # g comes with the carry, one step ahead.  Read in the step, XLA would
    # compute the features where they are used, one number after another.
    g, x = part((g, x), first)
    carry = jax.tree.map(jnp.zeros_like, weights), end_bar, g[-1]
    inputs = jnp.arange(len(g)), jnp.roll(g, 1, 0), f, x, x_bar
    (weights_bar, start_bar, _), _ = jax.lax.scan(
      backward_step, carry, inputs, reverse=True
    )
    return weights_bar, start_bar

  @jax.custom_vjp
  def known(weights, start, steps, end):
    del weights, start
    return steps[2], end

  def forward(weights, start, steps, end):
    return (steps[2], end), (weights, start, steps)

  def backward(stored, bars):
    weights, start, steps = stored

    def block(i, totals):
      first = jnp.minimum(i * width, n - width)
      # The last block begins with some coordinates of the one before.
      new = first + jnp.arange(width) >= i * width
      weights_bar, start_bar = backward_block(
        first, new, weights, steps, _floats(bars)
      )
      return (
        jax.tree.map(jnp.add, totals[0], weights_bar),
        jax.tree.map(
          lambda whole, bar: jax.lax.dynamic_update_slice_in_dim(
            whole, part(whole, first) + bar, first, -1
          ),
          totals[1],
          start_bar,
        ),
      )

    zeros = jax.tree.map(jnp.zeros_like, (weights, _floats(start)))
    return *jax.lax.fori_loop(0, -(-n // width), block, zeros), None, None

  known.defvjp(forward, backward)
  return known(weights, start, steps, end)
