"""NTM-BFGS: an LSTM that writes its own inverse Hessian (appendix D, 2016)."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from l2o_jax.base import Cell
from l2o_jax.cells.layers import linear_init
from l2o_jax.cells.lstm import lstm_layer_init, lstm_layers, lstm_state
from l2o_jax.checks import above_zero, at_least, given, positive, require
from l2o_jax.cpu import tanh

# What the heads emit: eta, mu, alpha, phi, gamma.  These values are BFGS.
BFGS = (1.0, 0.0, 1.0, 0.0, 1.0)

_VECTORS = 6  # that the controller sees
_TINY = 1e-30  # of a squared length
_GROWTH = 4.0  # bound of a step, in units of the longest recent step
_FORGET = 0.9  # how much of the longest recent step remains a step later
# Curvatures below this many roundings of the largest one are raised to this:
# a matrix that spans more cannot be held in its own number type.
_FLATTEST = 8.0
# Where curvatures differ by more than this, the heads return to BFGS, which
# rounding harms least.
_SPREAD = 1e4


class State(NamedTuple):
  """What the cell remembers.

  Attributes:
    memory: M [n, n]; or the last K triples of vectors, three arrays [K, n].
    z: the last scaled gradient, [n].
    step: the last step, [n].
    moved: the sum of all steps, [n].
    scales: longest recent step, largest curvature met, and trust in the heads
      (1: all, 0: BFGS); the same for all coordinates, [3, n].
    lstm: of the controller, see `lstm_state`.
  """

  memory: chex.ArrayTree
  z: chex.Array
  step: chex.Array
  moved: chex.Array
  scales: chex.Array
  lstm: chex.ArrayTree


class _Form(NamedTuple):
  """How the memory is kept: M' = (I - a r^T) M (I - r a^T) + c c^T."""

  init: Callable  # n -> memory, M = I
  read: Callable  # memory, v [n] -> M v [n]
  write: Callable  # memory, a, r, c [n], i = M r [n] -> memory


def _write_whole(memory, a, r, c, i):
  left = jnp.stack([-a, (r @ i) * a - i, c])  # three write heads, [3, n]
  right = jnp.stack([i, a, c])
  return memory + left.T @ right


_WHOLE = _Form(jnp.eye, jnp.matmul, _write_whole)


def _read_last(memory, v):
  """M v from the triples, newest first: the two loops of L-BFGS."""

  def down(v, triple):
    a, r, c = triple
    return v - r * (a @ v), c @ v

  def up(v, inputs):
    (a, r, c), of_c = inputs
    return v - a * (r @ v) + c * of_c, None

  v, of_c = jax.lax.scan(down, v, memory)  # from the newest to the oldest
  return jax.lax.scan(up, v, (memory, of_c), reverse=True)[0]


def _write_last(memory, a, r, c, i):
  del i
  push = lambda rows, new: jnp.concatenate([new[None], rows[:-1]])
  pushed = jax.tree.map(push, memory, (a, r, c))
  some = jnp.any(c != 0)  # an empty triple would push out one that is not
  return jax.tree.map(lambda x, old: jnp.where(some, x, old), pushed, memory)


def _last(count):
  init = lambda n: (jnp.zeros((count, n)),) * 3
  return _Form(init, _read_last, _write_last)


def _same(rows):
  """Rows [K, n] that are the same for all coordinates -> [K]; 0 if n = 0."""
  return jnp.max(rows, -1, initial=0.0)


def _norm(v):
  return jnp.sqrt(jnp.sum(v**2) + _TINY)


def _pair(s, y, z, state):
  """What the last step has taught: (s / √(s^T y), y / √(s^T y)) and scales.

  Before the first step it is (1, 1) / √n.  With the heads of BFGS, M = I then
  does not change; others say how far to go where all coordinates agree.  It is
  (0, 0) where y is below the rounding of a gradient, or s^T y is not positive.
  """
  _, largest, trust = _same(state.scales)
  first, eps = jnp.all(s == 0), jnp.finfo(z.dtype).eps
  # The curvature along s, raised where it is lost in rounding.
  length = _norm(s)
  flat = jnp.sum(s / length * (y / length))
  raised = jnp.maximum(_FLATTEST * eps * largest - flat, 0)
  y = y + jnp.where(flat > 0, raised, 0) * s
  # Whether (s, y) is worth writing.
  sy, length_y = jnp.sum(s * y), _norm(y)
  steepest = jnp.maximum(largest, length_y / length)
  known = jnp.where(largest > 0, largest, steepest)
  rounding = 8 * eps * known * _norm(state.moved)
  write = ~first & (sy > 1e-4 * (length * length_y)) & (length_y > rounding)
  unit = jnp.stack([s, y]) * jax.lax.rsqrt(jnp.where(write, sy, 1))
  start = jnp.where(jnp.any(z != 0), max(len(z), 1) ** -0.5, 0)
  taught = jnp.where(write, unit, jnp.where(first, start, 0))
  # What curvatures have been met, and how far they are apart.
  largest = jnp.where(write, steepest, largest)
  spread = _SPREAD * jnp.maximum(flat, 0) / jnp.where(largest > 0, largest, 1)
  trust = jnp.minimum(trust, jnp.where(first, 1, spread))
  return taught, largest, trust


def _seen(*vectors):
  """Vectors [n] without their lengths, logarithms of these, and cosines."""
  vectors = jnp.stack(vectors)  # [V, n]
  rms = jnp.sqrt(jnp.maximum(jnp.mean(vectors**2, -1), _TINY))
  unit, logs = vectors / rms[:, None], jnp.log(rms)
  cosines = unit @ unit.T / vectors.shape[-1]
  cosines = cosines[np.triu_indices(len(vectors), 1)]
  lengths = jnp.clip(logs[1:] - logs[:1], -5, 5) / 2
  of_all = [jnp.maximum(logs[:1] / 10, -2), lengths, cosines]
  of_all = jnp.concatenate(of_all)[:, None]
  of_all = jnp.broadcast_to(of_all, (len(of_all), vectors.shape[-1]))
  return jnp.concatenate([unit, of_all])  # [2 V + V (V - 1) / 2, n]


def ntm_bfgs_cell(
  hidden: Sequence[int] = (20,),
  scale: float = 0.25,
  averaged: int = 5,
  pairs: int | None = None,
) -> Cell:
  r"""NTM-BFGS (Andrychowicz et al., appendix D): a learned quasi-Newton method.

  The memory M [n, n] stands for the inverse Hessian; M_0 = I.  With z = scale
  g, the last step s, and y = z - z', where z' is the last z:

      s, y   <- s / √(s^T y), y / √(s^T y)
      i      =  M y                                        read
      eta, mu, alpha, phi, gamma = heads(h)                h from the LSTM
      a      =  alpha s + phi (s - i / y^T i)
      M      <- M - a i^T + ((y^T i) a - i) a^T + gamma² s s^T      write
      delta  =  mu s - eta M z                             (s unscaled)

  With the heads (1, 0, 1, 0, 1) of `BFGS` this is BFGS with unit steps and
  inverse Hessian scale M.  alpha says how much of what M held along y goes,
  phi moves through the Broyden class (-1: DFP), gamma² is how much of the new
  curvature is believed.  The write is (I - a y^T) M (I - y a^T) + gamma² s s^T:
  M stays positive semi-definite, whatever the heads say.

  One read head and three write heads, as in the paper.  Two things differ.  The
  paper feeds what was read to the controller a step later; here M y and M z are
  read and used in the same step, since a quasi-Newton step would otherwise come
  too late.  In the paper the heads emit vectors, one number a coordinate; here
  they emit coefficients of the vectors above, from the mean of h over the
  coordinates.  An LSTM cannot divide, and on a function whose curvatures span
  a factor of 1e4, errors of 1 % in single coordinates make M useless.

  The controller is an LSTM with global averaging cells.  It sees z, z', y, s,
  M z and i, each divided by its length; the logarithms of the lengths, and the
  cosines.  heads(h) = b + trust tanh(w^T mean(h)), within 1 of b.

  Everything scales with the function: a step is at most 4 times the longest
  recent one; a curvature below 8 roundings of the largest one is raised to
  that; a difference of gradients below their rounding is not written; where
  curvatures have spanned a factor of c > 1e4, trust is 1e4 / c for the rest of
  the run, else 1; it is 0 in a step that writes nothing.

  Args:
    hidden: H of each LSTM layer; at least one layer.
    scale: the first inverse Hessian is scale I; in units of params² / f.
    averaged: averaging cells per layer, see `lstm_cell`.
    pairs: None: M is whole, O(n²) numbers and work a step.  K: only the last K
      writes are kept, O(n K), the paper's NTM-L-BFGS; with the heads of `BFGS`
      this is L-BFGS with a memory of K and the first matrix scale I.

  Returns:
    A whole Cell that communicates, with theta {'lstm': [{'w', 'b'}, ...],
    'heads': {'w': [H, 5], 'b': [5]}} and state `State`.  Its first feature must
    be the gradient; the controller sees the others as they are.

  Raises:
    ValueError: there is no layer, a size or the scale is not positive, or
      `averaged` is no whole number >= 0 or larger than a layer.
  """
  hidden, form = tuple(hidden), _WHOLE if pairs is None else _last(pairs)
  positive('ntm_bfgs_cell', hidden=hidden or 0, **given(pairs=pairs))
  at_least(0, 'ntm_bfgs_cell', averaged=averaged)
  above_zero('ntm_bfgs_cell', scale=scale)
  within = f'ntm_bfgs_cell: averaged must fit {hidden}, got {averaged}'
  require(averaged <= min(hidden), within)

  def init(key, num_features):
    keys = jax.random.split(key, len(hidden) + 1)
    seen = 2 * _VECTORS + _VECTORS * (_VECTORS - 1) // 2 + num_features - 1
    layers = list(map(lstm_layer_init, keys, (seen, *hidden), hidden))
    heads = linear_init(keys[-1], hidden[-1], len(BFGS))
    heads = {'w': 0.1 * heads['w'], 'b': jnp.array(BFGS, jnp.float32)}
    return {'lstm': layers, 'heads': heads}

  def initial_state(n):
    zero, trust = jnp.zeros(n), jnp.ones(n)
    scales, lstm = jnp.stack([zero, zero, trust]), lstm_state(hidden, n)
    return State(form.init(n), zero, zero, zero, scales, lstm)

  def step(theta, x, state):
    limit = jnp.finfo(x.dtype).max ** 0.25  # products of squares stay finite
    z = jnp.clip(scale * x[0], -limit, limit)
    s, memory = state.step, state.memory
    y = z - state.z
    (s_, y_), largest, trust = _pair(s, y, z, state)
    i = form.read(memory, y_)
    seen = _seen(z, state.z, y, s, form.read(memory, z), i)
    seen = jnp.concatenate([seen, x[1:]])
    h, lstm = lstm_layers(theta['lstm'], seen, state.lstm, averaged)  # [H, n]
    b, w = theta['heads']['b'], theta['heads']['w']
    change = jnp.where(jnp.any(s_ != 0), trust, 0) * tanh(jnp.mean(h, -1) @ w)
    eta, mu, alpha, phi, gamma = b + change
    yi = y_ @ i
    a = alpha * s_ + phi * (s_ - i / jnp.where(yi > 0, yi, 1))
    memory = form.write(memory, a, y_, gamma * s_, i)
    delta = mu * s - eta * form.read(memory, z)
    longest, length = _same(state.scales)[0], _norm(delta)
    bound = jnp.where(longest > 0, _GROWTH * longest, length)
    delta *= jnp.minimum(1, bound / length)
    longest = jnp.maximum(_FORGET * longest, _norm(delta))
    scales = jnp.stack([longest, largest, trust])[:, None]
    scales += jnp.zeros_like(z)[None]  # [3, n]
    return delta, State(memory, z, delta, state.moved + delta, scales, lstm)

  return Cell(init, initial_state, step, whole=True, communicates=True)
