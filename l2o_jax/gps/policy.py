"""The policy's side: what it would do along samples, and its regression."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from l2o_jax.base import Cell, Features, LearnedOptimizer, Theta
from l2o_jax.cells.standardised import standardised
from l2o_jax.checks import at_least, finite, positive, require
from l2o_jax.coordinatewise import as_whole, coordinatewise
from l2o_jax.groups import Groups, grouped

ONE_GROUP = Groups(lambda params: 'all', ('all',))


class Policy(NamedTuple):
  """What is trained, in parts (see `make_policy`).

  Attributes:
    features: what it sees of a coordinate.
    cell: its program, in the units of its task (`standardised`).
    groups: each has its own guide; M of them.
    shared: one theta for all groups; else theta is {group: theta}.
    coordinates: n, if the cell sees and moves all of them; None: one.
    learned: the same as an optimizer.
    in_units: the features are ratios; mean and std of `standardised` stay as
      they are.
  """

  features: Features
  cell: Cell
  groups: Groups
  shared: bool
  coordinates: int | None
  learned: LearnedOptimizer
  in_units: bool = False


def make_policy(
  features: Features,
  cell: Cell,
  groups: Groups | None = None,
  *,
  shared: bool = False,
  coordinates: int | None = None,
  in_units: bool = False,
) -> Policy:
  """A policy to be trained; `standardised` is put around its cell.

  Args:
    features: what it sees of a coordinate.
    cell: its program.
    groups: coordinate groups, one theta for each; None: one group.
    shared: one theta for all groups, although each has its own guide.
    coordinates: n, for a cell that communicates: it sees and moves all n
      coordinates of a function at once (Li & Malik 2016).
    in_units: the features are ratios already.  They are neither shifted, which
      would break the cell's symmetry of signs, nor scaled; only the unit of the
      steps is measured.

  Raises:
    ValueError: groups and coordinates are both given, or coordinates without a
      cell that communicates, or the reverse; the features need a whole
      leaf.
  """
  whole = coordinates is not None
  ask = 'make_policy: `coordinates` and a cell that communicates'
  require(cell.communicates == whole, f'{ask} need each other')
  require(not whole or groups is None, f'{ask} have no groups')
  of_leaf = 'leaf' in features.needs
  require(not of_leaf, 'make_policy: the features need a whole leaf')
  cell = standardised(cell, coordinates=coordinates or 1)
  learned = coordinatewise(features, cell)
  shared = shared or groups is None
  if not shared:
    learned = grouped(learned, groups)
  groups = groups or ONE_GROUP
  parts = features, cell, groups, shared, coordinates, learned
  return Policy(*parts, in_units)


class Regression(NamedTuple):
  """How the policy learns actions.

  Attributes:
    steps: of Adam in every alternation or epoch.
    first_steps: in the first iteration of guided policy search, in which the
      policy starts from nothing.  0: theta is given, and so are its units.
    batch_size: samples a step, with replacement.
    learning_rate: or a schedule of it over the iterations; within one it falls
      to 10 % by a cosine.
    precision_power: p of the weights (precision of the target)^p, relative to
      their median over a group's guides and times, at most 10.  p = 1 follows
      from the objective; with p = 1/2 the guides of steep functions, whose G is
      tiny, count less, and unseen functions gained from that.
  """

  steps: int = 300
  first_steps: int = 600
  batch_size: int = 128
  learning_rate: float | optax.Schedule = 1e-3
  precision_power: float = 0.5


def check_policy(policy, who: str) -> None:
  """Raises a TypeError unless it is of `make_policy`."""
  give = f'{who}: give make_policy(features, cell) of l2o_jax.gps.policy, not a'
  found = type(policy).__name__
  require(isinstance(policy, Policy), f'{give} {found}', TypeError)


def check_regression(knobs: Regression, who: str) -> None:
  """Raises a ValueError where a number is out of its bounds."""
  positive(who, batch_size=knobs.batch_size)
  at_least(0, who, steps=knobs.steps, first_steps=knobs.first_steps)
  finite(who, 0, precision_power=knobs.precision_power)
  if not callable(knobs.learning_rate):
    finite(who, 0, learning_rate=knobs.learning_rate)


def of_iteration(knobs: Regression, iteration, first=False) -> Regression:
  """Steps and learning rate of one iteration, as arrays."""
  rate = knobs.learning_rate
  rate = rate(iteration) if callable(rate) else rate
  steps = jnp.where(first, knobs.first_steps, knobs.steps)
  return knobs._replace(steps=steps, learning_rate=rate)


def _stack(policy: Policy, theta: Theta) -> Theta:
  """All thetas side by side, leaves [M or 1, ...]."""
  names = policy.groups.names
  each = [theta] if policy.shared else [theta[name] for name in names]
  return jax.tree.map(lambda *xs: jnp.stack(xs), *each)


def _unstack(policy: Policy, stacked: Theta) -> Theta:
  """The inverse of `_stack`."""
  of = lambda m: jax.tree.map(lambda x: x[m], stacked)
  if policy.shared:
    return of(0)
  return {name: of(m) for m, name in enumerate(policy.groups.names)}


def _pool(policy: Policy, x: chex.Array) -> chex.Array:
  """[P, M, S, ...] -> one axis of samples for each theta, [M or 1, S', ...]."""
  x = jnp.swapaxes(x, 0, 1)  # [M, P, S, ...]
  return x.reshape(1 if policy.shared else len(x), -1, *x.shape[3:])


def _unpool(x: chex.Array, P: int, M: int, S: int) -> chex.Array:
  """The inverse of `_pool`: [P, M, S, ...]."""
  return jnp.swapaxes(x.reshape(M, P, S, *x.shape[2:]), 0, 1)


def calibrated(
  policy: Policy, theta: Theta, observations, actions, accept=None
) -> Theta:
  """theta in the units of samples: mean, std and output of `standardised`.

  With `in_units` only the output.

  Args:
    policy: whose theta.
    theta: its weights.
    observations: what it sees, [P, M, S, T, F A].
    actions: [P, M, S, T, A].
    accept: functions whose samples count, [P]; None: all.
  """
  o, a = _pool(policy, observations), _pool(policy, actions)
  counts = accept
  if accept is not None:  # [P] -> [M or 1, S', 1, 1]
    counts = jnp.broadcast_to(accept[:, None, None], observations.shape[:3])
    counts = _pool(policy, counts)[..., None, None]
  output = jnp.sqrt(jnp.mean(a**2, (1, 2, 3), where=counts))
  units = {'output': jnp.where(output > 0, output, 1)}
  if not policy.in_units:
    # [M or 1, F A]
    mean, std = (of(o, (1, 2), where=counts) for of in (jnp.mean, jnp.std))
    varies = std > 1e-6 * jnp.maximum(jnp.abs(mean), std)  # and not rounding
    units |= {'mean': mean, 'std': jnp.where(varies, std, 1)}
  stacked = _stack(policy, theta)
  units = {name: z.astype(stacked[name].dtype) for name, z in units.items()}
  return _unstack(policy, {**stacked, **units})


def actions_along(policy: Policy, theta: Theta, observations) -> chex.Array:
  """The cell's actions along recorded observations.

  Args:
    policy: whose cell.
    theta: of one group.
    observations: [S, T, F A].

  Returns:
    [S, T, A].
  """
  cell, n = as_whole(policy.cell), policy.coordinates
  o = observations.transpose(1, 2, 0)  # [T, F A, S]
  T, _, S = o.shape
  if n is None:
    move, state = cell.step, cell.initial_state(S)
  else:  # of all coordinates of a function: x [F, n]
    move = jax.vmap(cell.step, (None, -1, -1), -1)
    spread = lambda s: jnp.broadcast_to(s[..., None], (*s.shape, S))
    state = jax.tree.map(spread, cell.initial_state(n))
    o = o.reshape(T, -1, n, S)

  def step(state, o):
    actions, state = move(theta, o, state)
    return state, actions  # [S] or [A, S]

  _, actions = jax.lax.scan(step, state, o)
  return actions.reshape(T, -1, S).transpose(2, 0, 1)


def policy_actions(policy, theta, observations) -> chex.Array:
  """`actions_along` for all guides, [P, M, S, T, F A] -> [P, M, S, T, A]."""
  along = lambda theta, o: actions_along(policy, theta, o)
  mu = jax.vmap(along)(_stack(policy, theta), _pool(policy, observations))
  return _unpool(mu, *observations.shape[:3])


def fit_cell(policy, theta, observations, targets, weights, key, knobs):
  """Fits the cell's mean actions to targets, through time.

      min_theta  mean_{s,t} w_t ‖μ_theta(o_s0 ... o_st) - target_st‖²

  The sequences are the recorded ones: the policy's own actions do not feed
  back.  Adam, gradients clipped to norm 1; the rate falls to 10 % by a cosine.

  Args:
    policy: whose cell.
    theta: of one group, where to start.
    observations: [S, T, F A].
    targets: [S, T, A].
    weights: w, [S, T].
    key: draws minibatches of samples.
    knobs: steps and learning rate may be traced (see `of_iteration`).

  Returns:
    (theta, loss): the loss is the mean over the last 20 steps, or over all
    where there are fewer.
  """
  opt = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1.0))
  count, seen = observations.shape[0], jnp.minimum(20, knobs.steps)

  def loss(theta, rows):
    error = actions_along(policy, theta, observations[rows]) - targets[rows]
    return jnp.mean(weights[rows] * jnp.sum(error**2, -1))

  def step(i, carry):
    theta, state, mean = carry
    key_rows = jax.random.fold_in(key, i)
    rows = jax.random.randint(key_rows, (knobs.batch_size,), 0, count)
    value, gradient = jax.value_and_grad(loss)(theta, rows)
    updates, state = opt.update(gradient, state, theta)
    fall = 0.55 + 0.45 * jnp.cos(jnp.pi * i / knobs.steps)
    updates = optax.tree.scale(knobs.learning_rate * fall, updates)
    late = jnp.where(i >= knobs.steps - seen, value, 0)
    mean += late.astype(mean.dtype) / seen
    return optax.apply_updates(theta, updates), state, mean

  start = theta, opt.init(theta), jnp.zeros((), jnp.float32)
  theta, _, mean = jax.lax.fori_loop(0, knobs.steps, step, start)
  return theta, mean


class Lesson(NamedTuple):
  """What the policy is to learn in one go.

  Attributes:
    observations: [P, M, S, T, F A].
    targets: actions [P, M, S, T, A].
    precision: of the targets, [P, M, T].
    accept: functions whose samples count, [P].
  """

  observations: chex.Array
  targets: chex.Array
  precision: chex.Array
  accept: chex.Array


def learn(policy: Policy, theta: Theta, lesson: Lesson, knobs, key):
  """`fit_cell` of all thetas.

  Args:
    policy: whose.
    theta: where to start.
    lesson: what to learn.
    knobs: of this iteration, see `of_iteration`.
    key: draws minibatches.

  Returns:
    (theta, root of the mean squared error in units of the action []).
  """
  weights = lesson.precision**knobs.precision_power
  weights = weights / jnp.median(weights, (0, 2), keepdims=True)
  weights = jnp.minimum(weights, 10.0) * lesson.accept[:, None, None]
  stacked, A = _stack(policy, theta), lesson.targets.shape[-1]
  # [P, M, T] -> [P, M, S, T] -> [M or 1, S', T]
  weights = jnp.broadcast_to(weights[:, :, None], lesson.targets.shape[:-1])
  unit = stacked['output'][:, None, None]
  weights = _pool(policy, weights) / unit**2 / A
  o = _pool(policy, lesson.observations)
  targets = _pool(policy, lesson.targets)
  keys = jax.random.split(key, len(o))
  fit = lambda *args: fit_cell(policy, *args, knobs)
  stacked, error = jax.vmap(fit)(stacked, o, targets, weights, keys)
  return _unstack(policy, stacked), jnp.sqrt(jnp.mean(error))
