"""Hand-designed optimizers: one table for all experiments.

A constructor takes a learning rate and the parameters whose values are listed;
the first value of each is the default, as in Torch7's `optim` of 2016 for the
baselines of Andrychowicz et al. (section 3).
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
import optax
import optax.contrib

from experiments.common.conjugate_gradient import conjugate_gradient


class Baseline(NamedTuple):
  """A hand-designed optimizer.

  Attributes:
    make: learning rate, parameters -> optax transformation.
    parameters: {name: values to try}.
    searches: a line search chooses the steps; there is no rate to tune, and
      the function may be evaluated several times a step.
  """

  make: Callable[..., optax.GradientTransformation]
  parameters: dict[str, tuple] = {}
  searches: bool = False


# Not optax's zoom search: it did not end on a robust regression.
_SEARCH = optax.scale_by_backtracking_linesearch(20, increase_factor=2.0)


def _adam_decaying(rate):
  """b1 = 0.5, a rate falling as 1 / sqrt(t) (Kingma & Ba 2015, section 4)."""
  return optax.adam(lambda t: rate / jnp.sqrt(1 + t / 10), 0.5, 0.99)


def _adam_fading(rate):
  """A rate that falls sooner and further, and a second moment of 20 steps.

  Where gradients fall fast, as on separable data, a longer second moment is
  one of gradients long gone, and the steps shrink with the gradients.
  """
  return optax.adam(lambda t: rate / (1 + t / 20) ** 0.7, 0.5, 0.95)


def _lbfgs_search(rate, memory):
  del rate
  return optax.lbfgs(memory_size=memory, linesearch=_SEARCH)


# As published; optax's default, a sum of squares that begins at 0.1, is much
# worse.
_adagrad = partial(optax.adagrad, initial_accumulator_value=0.0)
_nag = partial(optax.sgd, nesterov=True)
_lbfgs = partial(optax.lbfgs, linesearch=None)
_cg_search = partial(conjugate_gradient, linesearch=_SEARCH)
_MOMENTA = {'momentum': (0.9, 0.5, 0.7, 0.8, 0.85, 0.95)}
_RULES = {'rule': ('polak_ribiere', 'fletcher_reeves')}
TABLE = {
  'SGD': Baseline(optax.sgd),
  'momentum': Baseline(optax.sgd, _MOMENTA),
  'NAG': Baseline(_nag, _MOMENTA),
  'RMSprop': Baseline(optax.rmsprop, {'decay': (0.99, 0.9)}),
  'ADAM': Baseline(optax.adam),
  'ADAM_decaying': Baseline(_adam_decaying),
  'ADAM_fading': Baseline(_adam_fading),
  'AdaGrad': Baseline(_adagrad),
  'CG': Baseline(conjugate_gradient, _RULES),
  'CG, line search': Baseline(_cg_search, _RULES, True),
  'L-BFGS': Baseline(_lbfgs, {'memory': (10, 5)}),
  'L-BFGS, line search': Baseline(_lbfgs_search, {'memory': (10,)}, True),
}
# What treats every coordinate by itself, at a rate.
COORDINATEWISE = tuple(n for n in TABLE if not n.startswith(('CG', 'L-BFGS')))


def _schedule_free(rate, num_steps):
  return optax.contrib.schedule_free_adamw(
    rate, warmup_steps=max(num_steps // 20, 1)
  )


_cosine = optax.cosine_decay_schedule
# What must be told the number of steps: (rate, T) -> optax transformation.
SCHEDULED = {
  'ADAM, cosine': lambda rate, steps: optax.adam(_cosine(rate, steps)),
  'NAdamW, cosine': lambda rate, steps: optax.nadamw(_cosine(rate, steps)),
  'schedule-free AdamW': _schedule_free,
}
# What need not be told, and has no parameter but the rate.
MODERN = {'Muon': optax.contrib.muon, 'Lion': optax.lion}
