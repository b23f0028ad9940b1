"""The vocabulary that every other file speaks.

Shape letters in all docstrings; a docstring that needs another meaning says so:
  n  coordinates          F  features of a coordinate   H  hidden units
  T  steps of an unroll   U  unrolls of an epoch        B  optimizees at once
  D  state size of a coordinate in guided policy search

`theta` is the weights of the learned optimizer (phi in Andrychowicz et al.),
`params` is what the optimizee optimizes (theta in Andrychowicz et al., x in Li
& Malik).  Names with `meta_` in front belong to the upper level, names without
it to the lower.
Everything here is a NamedTuple of functions or of arrays.  Only `Optimizee`
does something: it checks and wraps its functions.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import optax
from jax.tree_util import Partial

from l2o_jax.checks import takes

Params = chex.ArrayTree
Task = chex.ArrayTree
Theta = chex.ArrayTree
CellState = chex.ArrayTree
Memory = chex.ArrayTree


_ARGUMENTS = {
  'init': ('key',),
  'loss': ('params', 'task', 'key'),
  'objective': ('params', 'task'),
}


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
      minibatches, and `loss` is the objective itself.

  Raises:
    TypeError: a plain function takes other arguments.
  """

  __slots__ = ()

  def __new__(cls, init, loss, objective=None):
    fields = []
    for f, field in zip((init, loss, objective), _ARGUMENTS, strict=True):
      # jax itself rebuilds the tuple with other things than functions in it.
      if callable(f) and not isinstance(f, Partial):
        takes(f'Optimizee: {field}', f, *_ARGUMENTS[field])
        f = Partial(f)
      fields.append(f)
    return super().__new__(cls, *fields)

  @classmethod
  def _make(cls, fields):  # what `_replace` calls
    return cls(*fields)


class Features(NamedTuple):
  """What the optimizer sees of a coordinate; works for arrays of any shape.

  Attributes:
    size: F, the number of features of a coordinate.
    init: x [...] -> memory.
    update: memory, x [...], g [...], value -> memory, [..., F].  The
      value is a number for each coordinate of x, or None.
    needs: which of 'params' and 'value' `update` must be given.  With 'leaf'
      `init` and `update` see a whole leaf [*s] of the parameters, not each
      coordinate by itself.  They may count it and take means over it; what the
      memory holds of the leaf is an array [].
  """

  size: int
  init: Callable[[chex.Array], Memory]
  update: Callable[..., tuple[Memory, chex.Array]]
  needs: frozenset[str] = frozenset()


class Cell(NamedTuple):
  """What an optimizer computes from the features of a coordinate.

  A cell is written either for one coordinate, and `jax.vmap` runs it on all of
  them, or for all coordinates at once, features first (`whole`).  The second
  form is quicker on a CPU: one plain matrix product with the coordinates as
  columns.

  Attributes:
    init: key, F -> theta.
    initial_state: () -> state of one coordinate; whole: n -> leaves [H, n].
    step: theta, x [F], state -> delta [], state.  whole: x [F, ...] and state
      leaves [H, ...] -> delta [...], state, for coordinates of any axes `...`.
    whole: whether it takes all coordinates at once.
    communicates: whether a coordinate's step depends on other coordinates.  If
      so, the cell must be whole, and it sees all coordinates of a function as
      one axis n.
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
    communicates: whether an update may depend on other coordinates, or on which
      leaf the coordinate is in.  If not, trainers run the coordinates of all
      leaves of all optimizees as one array.
    call: {'name', 'arguments'} of the function in `learned_optimizers` that
      built it; a file of theta records it.  None: built by hand.

  Close over it: with a `call` it is not hashable, so it cannot be a static
  argument of `jax.jit`.
  """

  init: Callable[[chex.PRNGKey], Theta]
  transform: Callable[[Theta], optax.GradientTransformationExtraArgs]
  communicates: bool = True
  call: dict[str, Any] | None = None


class Info(NamedTuple):
  """What an epoch of meta-training reports, the same for all trainers.

  Guided policy search and imitation take one meta-step an epoch (U = 1), and
  their losses are [P, N, T + 1]: N rollouts of each of P functions.

  Attributes:
    losses: f(x_t) of every optimizee, [U, B, T + 1].
    meta_loss: what is minimized, [U].
    skipped: whether the meta-step was skipped, [U].
    summary: {name: scalar}; the names differ from trainer to trainer.
  """

  losses: chex.Array
  meta_loss: chex.Array
  skipped: chex.Array
  summary: dict[str, chex.Scalar]


class MetaTrainer(NamedTuple):
  """A way to find theta.

  Attributes:
    init: key -> state; `state.theta` is all that trainers promise in common.
    step: state, optimizee, key -> state, Info; one epoch, in which optimizees
      run from x_0 to their end.  Pure: jit it.
  """

  init: Callable[[chex.PRNGKey], Any]
  step: Callable[[Any, Optimizee, chex.PRNGKey], tuple[Any, Info]]
