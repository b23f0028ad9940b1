"""How an optimizer responds to gradients: along a run, swept, and in time.

A run is recorded once.  Then the optimizer is shown the record again, with
other gradients in it; parameters and values stay as they were, so that nothing
feeds back.  Everything is an array of coordinates [n], or of C of them.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from l2o_jax.base import Optimizee
from l2o_jax.leaves import to_array, to_tree
from l2o_jax.unroll import unroll


class Record(NamedTuple):
  """What an optimizer was shown in T steps.

  Attributes:
    gradients: [T, n].
    params: x_t, [T, n].
    values: f(x_t), [T].
  """

  gradients: jax.Array
  params: jax.Array
  values: jax.Array


class Subject(NamedTuple):
  """An optimizer and the record that it is shown.

  Attributes:
    opt: on arrays like those of the record.
    record: of all coordinates, or of the C probed ones alone if coordinates do
      not communicate.
    places: where these C are in the record, [C].
    probes: which of them change at the same time, [P, C] zeros and ones; each
      belongs to one probe.
  """

  opt: optax.GradientTransformationExtraArgs
  record: Record
  places: np.ndarray
  probes: np.ndarray


def recorded(optimizee: Optimizee, opt, key, num_steps: int):
  """(Record of T steps, updates [T, n], x_0 as a tree)."""

  @jax.jit
  def run(optimizee, key):
    key_init, key_loss = jax.random.split(key)
    x, task = optimizee.init(key_init)
    loss = lambda x, key: optimizee.loss(x, task, key)
    keys = jax.random.split(key_loss, num_steps + 1)
    see = lambda step: (
      Record(to_array(step.gradients), to_array(step.params), step.loss),
      to_array(step.updates),
    )
    _, seen = unroll(loss, opt, x, opt.init(x), keys, record=see)
    return *seen.record, x

  return run(optimizee, key)


def on_array(opt, like) -> optax.GradientTransformationExtraArgs:
  """`opt` for trees like `like`, on one array [n]."""
  opt = optax.with_extra_args_support(opt)

  def init(x):
    return opt.init(to_tree(x, like))

  def update(g, state, x=None, **extra_args):
    g, x = to_tree(g, like), to_tree(x, like)
    updates, state = opt.update(g, state, x, **extra_args)
    return to_array(updates), state

  return optax.GradientTransformationExtraArgs(init, update)


def subject(opt, record: Record, chosen, like=None) -> Subject:
  """An optimizer and C chosen coordinates of a record.

  Args:
    opt: an optax transformation.
    record: of all coordinates.
    chosen: which coordinates, [C].
    like: the parameters, of an optimizer whose coordinates communicate; its
      coordinates are then probed one at a time.  None: they do not, and C of
      them are as good as all.
  """
  chosen, count = np.asarray(chosen), len(chosen)
  if like is not None:
    return Subject(on_array(opt, like), record, chosen, np.eye(count))
  few = Record(record.gradients[:, chosen], record.params[:, chosen], record[2])
  opt = optax.with_extra_args_support(opt)
  return Subject(opt, few, np.arange(count), np.ones((1, count)))


def _step(s: Subject, state, i, g):
  x, value = s.record.params[i], s.record.values[i]
  return s.opt.update(g, state, x, value=value, grad=g)


def _after(s: Subject, t):
  """The state after t steps of the record."""
  go = lambda i, state: _step(s, state, i, s.record.gradients[i])[1]
  return jax.lax.fori_loop(0, t, go, s.opt.init(s.record.params[0]))


def _each_probe(s: Subject, function: Callable):
  """function(probe [C]) -> [..., C], of each coordinate with its own probe."""
  one = lambda probe: probe * function(probe)
  return jax.lax.map(one, jnp.asarray(s.probes, jnp.float32)).sum(0)


def proposals(s: Subject) -> jax.Array:
  """The updates that the optimizer proposes along the record, [T, C]."""

  @jax.jit
  def run(record):
    it = s._replace(record=record)

    def step(state, i):
      u, state = _step(it, state, i, record.gradients[i])
      return state, u[it.places]

    steps = jnp.arange(len(record.values))
    return jax.lax.scan(step, it.opt.init(record.params[0]), steps)[1]

  return run(s.record)


def sweep(s: Subject) -> Callable:
  """(t, gradients [K, C]) -> updates [K, C] in the state of step t."""

  @jax.jit
  def run(record, t, gradients):
    it = s._replace(record=record)
    state, g = _after(it, t), record.gradients[t]

    def of(probe):
      def update(wanted):  # [C] -> [C]
        new = jnp.where(probe > 0, wanted, g[it.places])
        return _step(it, state, t, g.at[it.places].set(new))[0][it.places]

      return jax.lax.map(update, gradients)

    return _each_probe(it, of)

  return lambda t, gradients: run(s.record, t, gradients)


def impulse(s: Subject, length: int) -> Callable:
  """(t, size [C] or None) -> response to an additional gradient, [K, C].

      d u_{t + k} / d g_t,   k = 0 ... K - 1

  u are the updates, g_t the gradient at step t of the same coordinate.  That is
  the linearised update; with a size δ it is half the difference of u at g_t + δ
  and g_t - δ, over δ.  An update that is a step function has a derivative of 0
  and still responds to a gradient of its usual size.

  For gradient descent with momentum, rate η and momentum μ, both are -η μ^k.

  Args:
    s: the optimizer and its record.
    length: K.
  """

  @jax.jit
  def run(record, t, size):
    it = s._replace(record=record)
    state, g = _after(it, t), record.gradients[t]

    def updates(extra):  # [C] -> [K, C]
      first, now = _step(it, state, t, g.at[it.places].add(extra))

      def step(state, i):
        u, state = _step(it, state, i, record.gradients[i])
        return state, u[it.places]

      rest = jax.lax.scan(step, now, t + 1 + jnp.arange(length - 1))[1]
      return jnp.concatenate([first[it.places][None], rest])

    def of(probe):
      if size is None:
        return jax.jvp(updates, (jnp.zeros_like(probe),), (probe,))[1]
      return (updates(size * probe) - updates(-size * probe)) / (2 * size)

    return _each_probe(it, of)

  return lambda t, size=None: run(s.record, t, size)


def time_scale(response: np.ndarray) -> np.ndarray:
  """Mean lag of impulse responses [K, C], in steps, [C].

      Σ_k k |r_k| / Σ_k |r_k|

  0: the gradient of step t moves the parameters in step t alone; for momentum
  μ, μ / (1 - μ) as K grows.
  """
  size = np.abs(np.asarray(response, np.float64))
  lags = np.arange(len(size))[:, None]
  with np.errstate(invalid='ignore'):
    return (lags * size).sum(0) / size.sum(0)


def choose(gradients: np.ndarray, like, count: int) -> dict[str, int]:
  """{name: place} of coordinates of all leaves, with small and large gradients.

  Leaves take turns.  In each the first is the coordinate whose gradients have
  the median root mean square, then the quartiles follow, and so on.  Those
  whose gradients are always 0 are left out.

  Args:
    gradients: [T, n].
    like: the parameters.
    count: C, at most.
  """
  size, found, start = np.square(np.asarray(gradients)).mean(0), {}, 0
  leaves = []
  for path, x in jax.tree.leaves_with_path(like):
    places = start + np.argsort(size[start : start + x.size])
    start += x.size
    places = places[size[places] > 0]
    if len(places):
      name = jax.tree_util.keystr(path, simple=True, separator='.')
      leaves.append((name or 'x', np.shape(x), start - x.size, places))
  most = sum(len(places) for *_, places in leaves)
  turn = 1
  while leaves and len(found) < min(count, most):
    # Bits in reverse: 1/2, 1/4, 3/4, 1/8, ...
    quantile = int(bin(turn)[:1:-1], 2) / 2 ** turn.bit_length()
    for name, shape, first, places in leaves:
      place = int(places[int(quantile * len(places))])
      index = [int(i) for i in np.unravel_index(place - first, shape)]
      if len(found) < count:
        found[f'{name}{index}'] = place
    turn += 1
  return found
