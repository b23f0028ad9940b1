"""The vocabulary that every other file speaks.

Shape letters, used in all docstrings and for nothing else:
  n  coordinates          F  features of a coordinate   H  hidden units
  T  steps of an unroll   U  unrolls of an epoch        B  optimizees at once
  D  state size of a coordinate in guided policy search

`theta` are the weights of the learned optimizer (phi in Andrychowicz et al.),
`params` are what the optimizee optimizes (theta there; x in Li & Malik).  A
word with `meta_` in front belongs to the upper level, a bare one to the lower.
Everything here is a NamedTuple of functions or of arrays: no behaviour.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import optax
from jax.tree_util import Partial

Params = chex.ArrayTree
Task = chex.ArrayTree
Theta = chex.ArrayTree
CellState = chex.ArrayTree
Memory = chex.ArrayTree
MetaState = Any


class _Optimizee(NamedTuple):
  init: Callable[[chex.PRNGKey], tuple[Params, Task]]
  loss: Callable[[Params, Task, chex.PRNGKey], chex.Scalar]
  objective: Callable[[Params, Task], chex.Scalar] | None = None


class Optimizee(_Optimizee):
  """A family of functions f to be minimized.

  Fields are `jax.tree_util.Partial`, so the data set behind a family is a leaf
  of the optimizee: an argument of the jitted function, not a constant.  A plain
  function is wrapped in a Partial without arguments.

  Attributes:
    init: key -> (params, task); draws x_0 and f.  The task is what is fixed for
      this f (W and y of a quadratic; `()` where only the minibatch varies).
    loss: params, task, key -> scalar f(x); the key draws the minibatch.
    objective: params, task -> scalar, f over all data.  None: there are no
      minibatches, `loss` is it.
  """

  __slots__ = ()

  def __new__(cls, init, loss, objective=None):
    # jax itself rebuilds the tuple with other things than functions in it.
    fields = (
      f if isinstance(f, Partial) or not callable(f) else Partial(f)
      for f in (init, loss, objective)
    )
    return super().__new__(cls, *fields)

  @classmethod
  def _make(cls, fields):  # what `_replace` calls
    return cls(*fields)


class Features(NamedTuple):
  """What the optimizer sees of a coordinate; works for arrays of any shape.

  Attributes:
    size: F, the number of features of a coordinate.
    init: x [...] -> memory.
    update: memory, x [...], g [...], value [] or None -> memory, [..., F].
    needs: which of 'params' and 'value' `update` must be given.
  """

  size: int
  init: Callable[[chex.Array], Memory]
  update: Callable[..., tuple[Memory, chex.Array]]
  needs: frozenset[str] = frozenset()


class Cell(NamedTuple):
  """What an optimizer computes from the features of a coordinate.

  A cell is a program of one coordinate, and `jax.vmap` makes it many.  Or it
  takes all coordinates at once, features first (`whole`), which on a CPU is
  quicker: one plain matrix product with the coordinates as columns.

  Attributes:
    init: key, F -> theta.
    initial_state: () -> state of one coordinate; whole: n -> leaves [H, n].
    step: theta, x [F], state -> delta [], state.  whole: x [F, ...] and state
      leaves [H, ...] -> delta [...], state, for coordinates of any axes `...`.
    whole: see above.
    communicates: a coordinate's step depends on other coordinates.  The cell
      must be whole; it sees all coordinates of a function as one axis n.
  """

  init: Callable[[chex.PRNGKey, int], Theta]
  initial_state: Callable[..., CellState]
  step: Callable[..., tuple[chex.Array, CellState]]
  whole: bool = False
  communicates: bool = False


class LearnedOptimizer(NamedTuple):
  """An optimizer that still lacks its weights.

  Attributes:
    init: key -> theta.
    transform: theta -> an optax transformation.  Call it INSIDE the traced
      function: theta is then an argument and two thetas share one trace.
    communicates: an update may depend on other coordinates, or on the leaf that
      the coordinate is in.  Where it does not, trainers run the coordinates of
      all leaves of all optimizees as one array.
    call: {'name', 'arguments'} of the function in `learned_optimizers` that
      built it, for the file of theta to say.  None: built by hand.
  """

  init: Callable[[chex.PRNGKey], Theta]
  transform: Callable[[Theta], optax.GradientTransformationExtraArgs]
  communicates: bool = True
  call: dict[str, Any] | None = None


class Info(NamedTuple):
  """What an epoch of meta-training reports, the same for all trainers.

  Attributes:
    losses: f(x_t) of every optimizee, [U, B, T + 1].
    meta_loss: what is minimized, [U].
    skipped: whether the meta-step was not taken, [U].
    summary: {name: scalar}, which differ from trainer to trainer.
  """

  losses: chex.Array
  meta_loss: chex.Array
  skipped: chex.Array
  summary: dict[str, chex.Scalar]


class MetaTrainer(NamedTuple):
  """A way to find theta.

  Attributes:
    init: key -> state; `state.theta` is all that trainers promise in common.
    step: state, optimizee, key -> state, Info; one epoch, that is one whole
      run of B optimizees.  Pure: jit it.
  """

  init: Callable[[chex.PRNGKey], MetaState]
  step: Callable[[MetaState, Optimizee, chex.PRNGKey], tuple[MetaState, Info]]
