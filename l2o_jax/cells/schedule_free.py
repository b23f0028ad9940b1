"""Schedule-free averaging around any cell: no schedule of rates is needed."""

import math
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from l2o_jax.base import Cell
from l2o_jax.checks import above_zero, require, traced
from l2o_jax.coordinatewise import CoordinatewiseState
from l2o_jax.cpu import sigmoid


def _average(theta, offset):
  """x - y = -(1 - β) / β o, the average relative to the parameters."""
  beta = sigmoid(theta['momentum'])
  return -(1 - beta) / beta * offset


def schedule_free(
  cell: Cell,
  age: float,
  momentum: float = 0.9,
  power: float = 1.0,
  warmup: float = 0.0,
) -> Cell:
  r"""The cell steps from z, the gradient is taken at y, x is the average of z.

      z <- z + delta / (1 + w / (t + 1))      delta: the cell's step
      x <- x + c (z - x)                      c = q / (q + t), t = 0, 1, ...
      y <- (1 - β) z + β x                    the parameters

  (Defazio et al. 2024; there the cell is Adam without its first moment.)  x is
  the mean of all z with weights that grow as t^{q-1}.  A falling rate has to be
  planned for a number of steps; the average works for any.  It runs over time,
  not over coordinates.

  x is where to judge (`eval_params`), and is often better than y.  Only the
  offset o = z - y is kept, since x - y = -(1 - β) / β o.  The step of
  the parameters is linear in delta: scaling the updates, for example by
  `optax.scale` behind the optimizer, scales its steps.  β and q are part of
  theta and trained with it.

  Args:
    cell: a whole cell.  Its last input must be log(1 + t / age), which
      `adam_ratios(..., age=age)` provides.
    age: of that input, in steps.
    momentum: β at the start, 0 < β < 1.
    power: q at the start, q > 0; 1: x is the plain mean.
    warmup: w >= 0, in steps: the first one has 1 / (1 + w) of its length, the
      w-th half.  Deep nets do not recover from first steps that
      are too long.

  Returns:
    A whole Cell with theta {'cell': theta of the cell, 'momentum': log(β /
    (1 - β)) [], 'power': log q []} and state (state of the cell, o [1, ...]).

  Raises:
    ValueError: the cell is not whole, or a number is out of its bounds.
  """
  require(cell.whole, 'schedule_free: the cell must be whole')
  within = f'schedule_free: momentum must be in (0, 1), got {momentum!r}'
  require(traced(momentum) or 0 < momentum < 1, within)
  above_zero('schedule_free', age=age, power=power)
  sane = traced(warmup) or 0 <= warmup < math.inf
  require(sane, f'schedule_free: warmup must not be negative, got {warmup!r}')

  def init(key, num_features):
    start = jnp.array([momentum / (1 - momentum), power], jnp.float32)
    logit, log_power = jnp.log(start)
    inner = cell.init(key, num_features)
    return {'cell': inner, 'momentum': logit, 'power': log_power}

  def initial_state(n):
    return cell.initial_state(n), jnp.zeros((1, n))

  def step(theta, inputs, state):
    inner, (offset,) = state
    delta, inner = cell.step(theta['cell'], inputs, inner)
    beta, q = sigmoid(theta['momentum']), jnp.exp(theta['power'])
    t = age * jnp.expm1(inputs[-1])
    c = q / (q + t)
    # All three relative to the parameters y as they are.
    z = offset + delta / (1 + warmup / (t + 1))
    x = _average(theta, offset)
    x = x + c * (z - x)
    y = (1 - beta) * z + beta * x
    return y, (inner, (z - y)[None])

  return Cell(init, initial_state, step, True, cell.communicates)


# States of what gives every step a factor of its own.
_OF_ONE_STEP = (
  optax.ScaleByScheduleState,
  optax.ScaleByBacktrackingLinesearchState,
  optax.ScaleByZoomLinesearchState,
  optax.contrib.MechanicState,
  optax.contrib.ReduceLROnPlateauState,
)


class FactorState(NamedTuple):
  """The constant factor of a run's steps, [], for `eval_params`."""

  factor: chex.Array


def constant_factor(factor: float) -> optax.GradientTransformation:
  """`optax.scale(factor)`, whose state tells `eval_params` the factor."""
  init = lambda params: FactorState(jnp.asarray(factor, float))

  def update(updates, state, params=None):
    del state, params
    times = lambda u: jnp.asarray(factor, jnp.result_type(u)) * u
    # Not the old state: `inject_hyperparams` may change the factor.
    return jax.tree.map(times, updates), init(updates)

  return optax.GradientTransformation(init, update)


def _states(opt_state, kind):
  """The states of this kind inside another one."""
  own = lambda s: isinstance(s, kind)
  return list(filter(own, jax.tree.leaves(opt_state, is_leaf=own)))


def _behind(opt_state):
  """States of what stands behind the optimizer in the same chain."""
  chains = [s for s in jax.tree.leaves(opt_state, is_leaf=_is_chain)]
  behind = []
  for chain in filter(_is_chain, chains):
    own = [bool(_states(state, CoordinatewiseState)) for state in chain]
    if any(own):
      first = own.index(True)
      behind += [*chain[first + 1 :], *_behind(chain[first])]
  return behind


def _is_chain(state):
  return type(state) is tuple and len(state) > 0


def eval_params(theta, opt_state, params, learning_rate: float | None = None):
  """Where to judge a run of `robust_optimizer`: at the average of its iterates.

      x = y - η (1 - β) / β o     y: the parameters, o: see `schedule_free`

  The loss at x is often lower than at y, and x is what to judge and to use in
  the end.  Training goes on from y: a run whose parameters are replaced by x
  diverges.  Running averages of batch normalisation are of y; let some
  3 / (1 - μ) minibatches update them at x, μ their momentum.
  `optax.contrib.schedule_free_eval_params` is the same for optax's form.

  Args:
    theta: of `robust_optimizer` without labels; `pretrained` returns it.
    opt_state: of the optimizer, or of a chain or wrapper with it inside.
    params: y, the tree that `init` saw, or a larger one around it, such as an
      Equinox module: the rest stays as it is.
    learning_rate: η, if you scale the optimizer's steps by a constant factor of
      your own.  None: the factor that `pretrained_optimizer` was given, else 1.
      With a schedule the formula does not hold: judge at y, which a schedule
      that ends at 0 has brought to rest.

  Returns:
    x, like `params`; what has no offset, masked leaves too, as it is.

  Raises:
    ValueError: theta has no average, there is not one such state, it is of
      other parameters, there is a schedule or a line search, or a mask behind
      the optimizer: frozen parameters would not stay where they are.
  """
  averages = isinstance(theta, dict) and 'momentum' in theta
  order = 'arguments are theta, opt_state, params'
  require(averages, f'eval_params: theta is not of robust_optimizer; {order}')
  injected = _states(opt_state, optax.InjectStatefulHyperparamsState)
  schedules = _states(opt_state, _OF_ONE_STEP)
  schedules += [s for s in injected if s.hyperparams_states]
  planned = callable(learning_rate) or (learning_rate is None and schedules)
  schedule = 'eval_params: with a schedule, judge at the parameters themselves'
  whose = 'give learning_rate if it is of another optimizer'
  require(not planned, f'{schedule}; {whose}')
  masked = _states(_behind(opt_state), optax.MaskedState)
  around = 'put optax.partition or selective_transform around the optimizer'
  some = 'eval_params: behind the optimizer some parameters have other steps'
  require(not masked, f'{some}; {around}')
  if learning_rate is None:
    given = [state.factor for state in _states(opt_state, FactorState)]
    learning_rate = given[0] if given else 1.0
  states = _states(opt_state, CoordinatewiseState)
  one = f'eval_params: needs one state of the optimizer, found {len(states)}'
  one += '; of optax.partition take the inner_states one after the other'
  require(len(states) == 1, one)
  _, offsets = states[0].cell[0]  # a tree like the parameters, leaves [1, *s]
  leaves = jax.tree.leaves_with_path(offsets)
  # By path: flax.nnx has parameters and states in variables of two kinds.
  offset_at = {jax.tree_util.keystr(path): offset for path, offset in leaves}
  other = 'eval_params: the state is not of parameters like these, or chunked'

  def judged(path, y):
    offset = offset_at.pop(jax.tree_util.keystr(path), None)
    if offset is None:
      return y
    y = jnp.asarray(y)
    require(offset.shape[1:] == y.shape, other)
    return y + (learning_rate * _average(theta, offset[0])).astype(y.dtype)

  x = jax.tree.map_with_path(judged, params)
  require(not offset_at, other)
  return x
