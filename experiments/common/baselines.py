"""Hand-designed optimizers, optax's own, and where their search begins.

Every other hyper-parameter is as in Torch7's `optim` of 2016, the paper's
baselines (Andrychowicz et al., section 3).
"""

import numpy as np
import optax

BASELINES = {
  'SGD': optax.sgd,
  'momentum': lambda rate: optax.sgd(rate, momentum=0.9),
  'NAG': lambda rate: optax.sgd(rate, momentum=0.9, nesterov=True),
  'RMSprop': lambda rate: optax.rmsprop(rate, decay=0.99, eps=1e-8),
  'ADAM': optax.adam,
}


def grid(low: float, high: float, per_decade: int = 10) -> np.ndarray:
  """Learning rates at a constant ratio; the search widens it where needed."""
  count = round(per_decade * np.log10(high / low)) + 1
  return np.geomspace(low, high, count)
