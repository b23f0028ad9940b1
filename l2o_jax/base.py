"""The vocabulary that every other file speaks.

Shape letters, used in all docstrings:
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

Params = chex.ArrayTree
Task = chex.ArrayTree
Theta = chex.ArrayTree
CellState = chex.ArrayTree
Memory = chex.ArrayTree
MetaState = Any
Info = Any


class Optimizee(NamedTuple):
  """A family of functions f to be minimized.

  Fields are `jax.tree_util.Partial`, so the data set behind a family is a leaf
  of the optimizee: an argument of the jitted function, not a constant.

  Attributes:
    init: key -> (params, task); draws x_0 and f.  The task is what is fixed for
      this f (W and y of a quadratic; `()` where only the minibatch varies).
    loss: params, task, key -> scalar f(x); the key draws the minibatch.
    objective: params, task -> scalar, f over all data.  None: there are no
      minibatches, `loss` is it.
  """

  init: Callable[[chex.PRNGKey], tuple[Params, Task]]
  loss: Callable[[Params, Task, chex.PRNGKey], chex.Scalar]
  objective: Callable[[Params, Task], chex.Scalar] | None = None


class Features(NamedTuple):
  """What the optimizer sees of a coordinate; works for arrays of any shape.

  Attributes:
    size: F, the number of features of a coordinate.
    init: x [...] -> memory.
    update: memory, x [...], g [...], value [] or None -> memory, [..., F].
  """

  size: int
  init: Callable[[chex.Array], Memory]
  update: Callable[
    [Memory, chex.Array, chex.Array, chex.Scalar | None],
    tuple[Memory, chex.Array],
  ]


class Cell(NamedTuple):
  """The program that every single coordinate runs; `vmap` makes it many.

  Attributes:
    init: key, F -> theta.
    initial_state: () -> state of ONE coordinate.
    step: theta, x [F], state -> delta [], state.
  """

  init: Callable[[chex.PRNGKey, int], Theta]
  initial_state: Callable[[], CellState]
  step: Callable[[Theta, chex.Array, CellState], tuple[chex.Scalar, CellState]]


class LearnedOptimizer(NamedTuple):
  """An optimizer that still lacks its weights.

  Attributes:
    init: key -> theta.
    transform: theta -> an optax transformation.  Call it INSIDE the traced
      function: theta is then an argument and two thetas share one trace.
  """

  init: Callable[[chex.PRNGKey], Theta]
  transform: Callable[[Theta], optax.GradientTransformationExtraArgs]


class MetaTrainer(NamedTuple):
  """A way to find theta.

  Attributes:
    init: key -> state; `state.theta` is all that trainers promise in common.
    step: state, optimizee, key -> state, info; one epoch, that is one whole
      run of B optimizees.  Pure: jit it.
  """

  init: Callable[[chex.PRNGKey], MetaState]
  step: Callable[[MetaState, Optimizee, chex.PRNGKey], tuple[MetaState, Info]]
