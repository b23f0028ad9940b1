"""Meta-trained optimizers that come with the package."""

import importlib.resources
import math
from collections.abc import Callable

import optax

from l2o_jax.base import LearnedOptimizer, Theta
from l2o_jax.cells.schedule_free import constant_factor
from l2o_jax.checks import plain_number, require, traced
from l2o_jax.theta_files import load_learned

_FILES = importlib.resources.files(__name__)


def names() -> tuple[str, ...]:
  """What `pretrained` can load; README.md beside the files describes each."""
  files = (file.name for file in _FILES.iterdir())
  return tuple(sorted(f[:-4] for f in files if f.endswith('.npz')))


def pretrained(
  name: str = 'robust', expected: LearnedOptimizer | None = None
) -> tuple[LearnedOptimizer, Theta]:
  """A learned optimizer with its weights, from the installed package.

  Args:
    name: 'robust' is the one to try first, 'robust_coordinatewise' with
      minibatches of one or two examples or sharded parameters; `from
      l2o_jax.pretrained import names` for all of them.
    expected: see `load_learned`.

  Returns:
    (learned, theta).

  Raises:
    ValueError: there is none of that name.
    CheckpointError: the file is damaged, or for another optimizer than
      expected.
  """
  known = f'pretrained: there is {", ".join(names())}, but no {name!r:.100}'
  require(name in names(), f'{known}; load_learned reads files')
  with importlib.resources.as_file(_FILES / f'{name}.npz') as path:
    return load_learned(path, expected)


def pretrained_optimizer(
  name: str = 'robust', learning_rate: float | Callable = 1.0
) -> optax.GradientTransformationExtraArgs:
  """A pretrained optimizer, where `optax.adam(1e-3)` stood.

      x ← x + η_t · step of the learned optimizer

  Weight decay goes before it, as part of the gradient:
  `optax.chain(optax.add_decayed_weights(1e-3), pretrained_optimizer())`.  A run
  of either with a constant factor is best judged, and saved, at the average of
  its iterates (`eval_params`).

  Args:
    name: see `pretrained`.
    learning_rate: η, a factor of every step, or a schedule: step count -> η.
      It is no rate of Adam: 1 is the usual value, and there is no need to tune
      it.  A schedule that ends at 0 helps where the number of steps is known.

  Returns:
    An optax transformation.

  Raises:
    ValueError, CheckpointError: see `pretrained`.
    ValueError: the factor is negative or not finite.
  """
  learned, theta = pretrained(name)
  if not (callable(learning_rate) or traced(learning_rate)):
    factor = plain_number(learning_rate)
    number = isinstance(factor, float | int) and not isinstance(factor, bool)
    sane = number and 0 <= factor < math.inf
    within = f'a finite number >= 0, 1 by default; got {learning_rate!r}'
    require(sane, f'pretrained_optimizer: learning_rate must be {within}')
  planned = callable(learning_rate)
  scale = optax.scale_by_schedule if planned else constant_factor
  chained = optax.chain(learned.transform(theta), scale(learning_rate))
  return optax.with_extra_args_support(chained)
