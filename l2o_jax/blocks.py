"""Meta-train or apply an optimizer one block of coordinates at a time.

Opt-in, and built on top of the loop.  The numbers are the same; on a CPU the
arrays of a block stay in the cache of a core.  Only for coordinates that do not
communicate.

`x_bar` is the cotangent of x: the derivative of the final scalar with respect
to x.  w is the width of a block, its number of coordinates.
"""

import jax
import jax.numpy as jnp
import optax

from l2o_jax.base import LearnedOptimizer
from l2o_jax.checks import positive, ready, require, several_keys
from l2o_jax.coordinatewise import LeafwiseState, WholeState
from l2o_jax.leaves import check_shape, leaf_by_leaf, to_array, to_tree
from l2o_jax.unroll import Trajectory, along
from l2o_jax.unroll import unroll as plain_unroll

# Coordinates of a block: few enough that what one step computes stays in the
# cache of a core, enough to keep two cores busy.
BLOCK = 5400
_NOT_ALONE = (
  'no block of coordinates stands alone: they communicate, or their rule '
  'depends on the leaf'
)


def unroll(
  loss, opt, params, opt_state, keys, *, second_derivatives=False, remat=True
):
  """`l2o_jax.unroll`, differentiated one block of coordinates after another.

      truncated_bptt(..., unroll=blocks.unroll)

  The forward pass is the same.  The backward pass goes through all steps for
  some 5,000 coordinates before it turns to the next ones.  This is possible
  because the gradients are constants and no coordinate's update depends on
  another coordinate.

  Args:
    loss: see `l2o_jax.unroll`, also for the next four arguments.
    opt: its state must have all coordinates as the last axis.  This is so if
      the parameters are one array [n], and always inside a trainer.
    params: x_0.
    opt_state: the state of `opt` at x_0.
    keys: T + 1 random keys.
    second_derivatives: must be False.
    remat: must be True.

  Returns:
    ((x_T, opt_state), Trajectory) as `l2o_jax.unroll` does; `record` is None.

  Raises:
    ValueError: an option has another value than these, the state has another
      form, or the coordinates communicate or their rule depends on the leaf.
  """
  possible = not second_derivatives and remat is True
  options = 'second derivatives and other values of remat'
  require(possible, f'blocks.unroll: {options} are not possible block by block')
  ready('blocks.unroll', opt=opt)
  several_keys('blocks.unroll', keys)
  joined = lambda x: isinstance(x, WholeState | LeafwiseState)
  alone = not any(map(joined, jax.tree.leaves(opt_state, is_leaf=joined)))
  require(alone, f'blocks.unroll: {_NOT_ALONE}')
  opt = optax.with_extra_args_support(opt)
  shape = jax.eval_shape(loss, params, keys[0]).shape  # () or (B,)
  vector = to_array(params, shape)  # [B n]
  if len(keys) == 1 or not vector.size:
    return plain_unroll(loss, opt, params, opt_state, keys)
  _check_state(opt_state, vector.size)
  cut = jax.lax.stop_gradient
  start = cut((params, opt_state))
  constant = opt._replace(update=lambda *args, **x: cut(opt.update(*args, **x)))
  end, trajectory = plain_unroll(
    loss, constant, *start, keys, record=lambda step: step
  )
  steps = trajectory.record
  to_arrays = jax.vmap(lambda tree: to_array(tree, shape))
  # [T, B n], and [T] or [T, B]
  gradients, values = to_arrays(steps.gradients), cut(steps.loss)
  if shape:  # every coordinate gets its function's value: [T, B] -> [T, B n]
    values = jnp.repeat(values, vector.size // shape[0], 1)
  stored = gradients, values, to_arrays(steps.params), steps.opt_state
  again = lambda g, state, x, f: opt.update(g, state, x, value=f)
  end = to_array(end[0], shape), end[1]
  xs, (vector, state) = _known(again, (vector, opt_state), stored, end)
  apart = lambda xs: xs.reshape(len(keys) - 1, *shape, -1)  # [T, B, n]
  losses = jax.vmap(along)(steps.loss, apart(gradients), apart(xs))
  x = to_tree(vector, params, shape)
  last = loss(x, keys[-1])
  return (x, state), Trajectory(jnp.concatenate([losses, last[None]]), None)


def _check_state(opt_state, n):
  for path, leaf in jax.tree.leaves_with_path(opt_state):
    if jnp.issubdtype(leaf.dtype, jnp.inexact) and leaf.shape[-1:] != (n,):
      raise ValueError(
        'blocks.unroll: needs parameters that are one array and a state whose '
        f'last axis are its {n} coordinates, got {leaf.shape} for '
        f'opt_state{jax.tree_util.keystr(path)}'
      )


def _floats(tree):
  """The leaves that have a derivative; None for the others."""
  real = lambda x: x if jnp.issubdtype(x.dtype, jnp.inexact) else None
  return jax.tree.map(real, tree)


def _put(floats, tree):
  """The inverse of `_floats`: `tree` with these leaves instead of its own."""
  pick = lambda new, old: old if new is None else new
  return jax.tree.map(pick, floats, tree, is_leaf=lambda x: x is None)


def _known(update, start, steps, end):
  """Iterates and end state, known from the forward pass, with derivatives.

      x_{t+1}, s_{t+1} = x_t + u_t, s'_t      u_t, s'_t = update(g_t, s_t, ...)

  As the gradients g_t are constants, a coordinate's x_t and s_t depend only on
  the optimizer's weights, on x_0 and on s_0, not on other coordinates.  The
  backward pass may therefore take all T steps of one block of coordinates, then
  all steps of the next: what one step computes stays in the cache.  s_t is read
  where the forward pass stored it; the rest of a step is computed again.

  Args:
    update: g [w], s, x [w], f [] or [w] -> updates [w], s, for any w
      coordinates; what it closes over is differentiated.
    start: (x_0 [n], s_0), differentiated.  The last axis of the floating-point
      leaves of s is the n coordinates.
    steps: (g [T, n], f [T] or [T, n], x [T, n], s) of all steps; constants.
    end: (x_T [n], s_T); constants.

  Returns:
    (x [T, n], (x_T, s_T)), as given.
  """
  n = start[0].size
  width = -(-n // -(-n // BLOCK))  # w, the same in each block

  def part(tree, first):
    cut = lambda x: jax.lax.dynamic_slice_in_dim(x, first, width, -1)
    return jax.tree.map(lambda x: cut(x) if x.shape[-1:] == (n,) else x, tree)

  def step(x, floats, g, f, state):
    updates, state = update(g, _put(floats, state), x, f)
    return optax.apply_updates(x, updates), _floats(state)

  g, f, x, state = part(jax.tree.map(lambda x: x[0], steps), 0)
  step, weights = jax.closure_convert(step, x, _floats(state), g, f, state)

  def backward_block(first, new, weights, steps, bars):
    """Cotangents of weights and (x_0, s_0) through the block from `first` on.

    Only `new` coordinates count, which no earlier block has seen.
    """
    g, f, x, states = steps  # [T, n], [T] or [T, n], [T, n], [T, ..., n]
    of_new = lambda x: jnp.where(new, x, 0)
    x_bar, end_bar = jax.tree.map(of_new, part(bars, first))

    def backward_step(carry, inputs):
      weights_bar, (later_x_bar, state_bar), g = carry
      t, next_g, f, x, x_bar = inputs  # [], [w], [] or [w], [w], [w]
      at_t = lambda x: jax.lax.dynamic_index_in_dim(
        x, t, keepdims=False, allow_negative_indices=False
      )
      state = part(jax.tree.map(at_t, states), first)
      again = lambda weights, x, floats: step(x, floats, g, f, state, *weights)
      _, pull_back = jax.vjp(again, weights, x, _floats(state))
      more, before_x_bar, state_bar = pull_back((later_x_bar, state_bar))
      weights_bar = jax.tree.map(jnp.add, weights_bar, more)
      return (weights_bar, (before_x_bar + x_bar, state_bar), next_g), None

    # g comes with the carry, one step ahead.  If g were read in the step, XLA
    # would compute the features where they are used, one number after another.
    g, x = part((g, x), first)  # [T, w]
    f = part(f, first) if f.ndim == 2 else f  # [T] or [T, w]
    carry = jax.tree.map(jnp.zeros_like, weights), end_bar, g[-1]
    inputs = jnp.arange(len(g)), jnp.roll(g, 1, 0), f, x, x_bar
    (weights_bar, start_bar, _), _ = jax.lax.scan(
      backward_step, carry, inputs, reverse=True
    )
    return weights_bar, start_bar

  def values(weights, start, steps, end):
    return steps[2], end

  def backward(stored, bars):
    weights, start, steps, _ = stored
    bars = _floats(bars)

    def block(i, totals):
      first = jnp.minimum(i * width, n - width)
      # The last block overlaps the block before it.
      new = first + jnp.arange(width) >= i * width
      weights_bar, start_bar = backward_block(first, new, weights, steps, bars)
      add = lambda whole, bar: jax.lax.dynamic_update_slice_in_dim(
        whole, part(whole, first) + bar, first, -1
      )
      weights_bar = jax.tree.map(jnp.add, totals[0], weights_bar)
      return weights_bar, jax.tree.map(add, totals[1], start_bar)

    zeros = jax.tree.map(jnp.zeros_like, (weights, _floats(start)))
    return *jax.lax.fori_loop(0, -(-n // width), block, zeros), None, None

  known = jax.custom_vjp(values)
  known.defvjp(lambda *stored: (values(*stored), stored), backward)
  return known(weights, start, steps, end)


def _bits(x):
  """bfloat16 as integers, which XLA writes in place on a CPU.

  It would convert a whole bfloat16 array to float32 and back for every block.
  """
  return x.view(jnp.uint16) if x.dtype == jnp.bfloat16 else x


def _number(bits, like):
  """The inverse of `_bits`, with the type of `like`."""
  return bits.view(jnp.bfloat16) if like.dtype == jnp.bfloat16 else bits


def chunked(learned: LearnedOptimizer, size: int = 1280) -> LearnedOptimizer:
  """Runs `learned` on one block of coordinates after another, in place.

  The updates are the same and take less memory: beside state and gradients, an
  update needs what one block needs, and no second state if the state is donated
  to the jitted function.  On a CPU this is also faster for large leaves, as a
  block stays in the cache.  It is for applying an optimizer, not for
  meta-training: differentiating it would store the whole state for every block.

  Args:
    learned: an optimizer whose coordinates do not communicate.
    size: coordinates of a block.  Avoid powers of two on CPUs: the rows of
      [H, size] would map to the same cache sets.

  Returns:
    A LearnedOptimizer.  Its state has a leading axis of blocks in each leaf and
    keeps bfloat16 as uint16, bit by bit; the last block is padded with zeros.
    With a block as large as the leaf it reduces to `learned`.

  Raises:
    ValueError: size is not positive, or the coordinates communicate.
  """
  positive('chunked', size=size)
  require(not learned.communicates, f'chunked: {_NOT_ALONE}')

  def transform(theta):
    opt = optax.with_extra_args_support(learned.transform(theta))

    def blocks(x):  # [*s] -> [number of blocks, w]
      width = max(min(size, x.size), 1)
      padding = -x.size % width if x.size else 1
      return jnp.pad(jnp.ravel(x), (0, padding)).reshape(-1, width)

    def start(x):
      return jax.tree.map(_bits, jax.vmap(opt.init)(blocks(x)))

    def move(g, x, state, value):
      check_shape('parameter', jnp.shape(g if x is None else x), g.shape)
      for s, t in zip(*map(jax.tree.leaves, (state, jax.eval_shape(start, g)))):
        check_shape('state', s.shape, t.shape)

      def one(i, carry):
        read = lambda leaf, like: _number(
          jax.lax.dynamic_index_in_dim(leaf, i, keepdims=False), like
        )
        write = lambda leaf, block: jax.lax.dynamic_update_index_in_dim(
          leaf, _bits(block), i, 0
        )
        block = jax.tree.map(read, (*carry, parameters), like)
        # Always true.  XLA does not fuse a branch with the writing of its
        # result, and therefore writes in place.
        update = lambda block: opt.update(*block, value=value)
        new = jax.lax.cond(i >= 0, update, lambda block: block[:2], block)
        return jax.tree.map(write, carry, new)

      given = blocks(g), None if x is None else blocks(jnp.asarray(x))
      like = (given[0], jax.eval_shape(opt.init, given[0][0]), given[1])
      gradients, parameters = jax.tree.map(_bits, given)
      carry = gradients, state
      updates, state = jax.lax.fori_loop(0, len(gradients), one, carry)
      updates = _number(updates, g)
      return jnp.ravel(updates)[: g.size].reshape(g.shape), state

    compiled = jax.jit(move)  # once, outside of a user's jit too

    def of_leaf(g, x, state, value=None, **extra_args):
      del extra_args  # no features need others, and they may be no arrays
      return compiled(g, x, state, value=value)

    return optax.GradientTransformationExtraArgs(*leaf_by_leaf(start, of_leaf))

  return learned._replace(transform=transform, communicates=True)
