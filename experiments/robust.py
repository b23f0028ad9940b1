r"""Meta-trains the learned optimizers for any net.

Copy and paste:
  python -m experiments.robust                    # a small one
  python -m experiments.robust --preset=full      # `robust` in the package
  python -m experiments.robust --preset=coordinatewise \
      --workdir=runs/coordinatewise               # `robust_coordinatewise`

The optimizer is schedule-free Adam with a learned gate on the length of its
steps; each leaf adapts that length, and the first steps are shorter
(`robust_optimizer`).  It is meta-trained by evolution strategies on small nets
and quadratics, some of them in random units, on whole runs; what counts is the
loss relative to the loss of a fixed Adam.  It is selected by validation on
other nets, sizes and batches.  Writes theta.npz, and a comparison on a few
other tasks; `python -m experiments.evaluate` judges it on more.
"""

import functools
from collections.abc import Sequence
from typing import Annotated, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax

from experiments.common import (
  cli,
  comparison,
  families,
  settings,
  study,
  tasks,
  training,
)
from experiments.common.comparison import Comparison, Panel
from experiments.common.problems import Problem
from experiments.common.training import Stage
from l2o_jax.base import LearnedOptimizer, Optimizee
from l2o_jax.evolution import evolution
from l2o_jax.learned_optimizers import robust_optimizer

PANELS = ('wide', 'batch_8', 'residual', 'autoencoder')
_AGE = 30.0  # steps until the weights of losses fall
_WORST = 5.0  # of all ratios to the reference's losses


class Optimizer(NamedTuple):
  """Learned optimizer.

  Attributes:
    hidden: Units of the LSTM in the gate; 0: none.
    bound: Bound of a step, > 0.09.
    agreement: How quickly each leaf adapts the length of its steps to whether
      its gradients agree with the last ones; 0: it does not.
    warmup: The step of this number is half as long as without a warm-up, >= 0.
  """

  hidden: Annotated[int, 0, 1000] = 0
  bound: Annotated[float, 0.091, 10.0] = 0.9
  agreement: Annotated[float, 0.0, 100.0] = 1.0
  warmup: Annotated[float, 0.0, 1e6] = 10.0


class Curriculum(NamedTuple):
  """Stages of meta-training, each with the same number of epochs.

  Attributes:
    horizons: Steps of a run in meta-training, a stage for each; --num_steps is
      of the comparison.
    num_optimizees: Pairs of optimizees in parallel, >= 1.
    learning_rate: Meta learning rate of Adam, > 0; it falls to 1 % by a cosine
      in each stage, and each stage begins with half of the rate of the last.
    clip_norm: Global norm to which a meta-gradient is clipped, > 0.
    std: Standard deviation of evolution's noise on theta, > 0.
    margin: By how much the mean loss of validation must be lower for later
      weights to be selected, >= 0; rounding alone changes it by 0.04.
  """

  horizons: tuple[settings.Count, ...] = (1000,)
  num_optimizees: settings.Count = 24
  learning_rate: settings.Positive = 0.003
  clip_norm: settings.Positive = 1.0
  std: settings.Positive = 0.15
  margin: settings.NotNegative = 0.04


class Settings(NamedTuple):
  """All flags."""

  run: settings.Run = settings.Run(
    workdir='runs/robust', num_steps=500, num_validation=1
  )
  optimizer: Optimizer = Optimizer()
  curriculum: Curriculum = Curriculum()
  comparison: Comparison = Comparison(
    num_test=3, num_tuning=2, baselines=('ADAM', 'NAG')
  )


def check(s: Settings) -> None:
  """Refuses stages without steps, and steps between two judgements."""
  settings.refuse(
    {
      '--horizons needs at least one': not s.curriculum.horizons,
      '--num_steps must be a multiple of 100': s.run.num_steps % 100,
    }
  )


_FULL = {'num_epochs': 48, 'evaluation_period': 12, 'num_validation': 4}
EXPERIMENT = settings.Experiment(
  'robust',
  Settings(),
  {
    'quick': {'num_epochs': 32, 'evaluation_period': 16, 'horizons': (300,)},
    'full': _FULL,
    'coordinatewise': {**_FULL, 'agreement': 0.0, 'warmup': 0.0, 'margin': 0.0},
  },
  __doc__,
  check=check,
  words={
    'num_epochs': 'Epochs of meta-training, >= 0; one epoch is runs of '
    '--horizons steps of one family, the families in turn.',
    'num_steps': 'Steps of a run in the comparison, a multiple of 100.',
    'num_validation': 'Seeds of each validation net, >= 1; the theta that is '
    'best on them is kept.',
  },
)


def optimizer(s: Optimizer) -> LearnedOptimizer:
  """The learned optimizer of the flags, without its weights."""
  adapts = {'agreement': s.agreement or None, 'warmup': s.warmup}
  return robust_optimizer(s.hidden, s.bound, **adapts)


def _weights(horizon: int) -> np.ndarray:
  """Weights of the losses at t = 0 ... T, of sum 1.

  A decade of steps counts as much as another.
  """
  weights = 1 / (_AGE + np.arange(horizon + 1))
  return weights / weights.sum()


def _relative(reference, losses):
  """f(x_t) / E f(y_t), y_t of the reference; 5 where it is larger.

  Every family counts as much as another, however low its losses become.
  """
  ratio = (losses + families.FLOOR) / (reference + families.FLOOR)
  return jnp.minimum(jnp.nan_to_num(ratio, nan=_WORST, posinf=_WORST), _WORST)


def stages(learned, s: Settings, trained: Sequence[Optimizee]):
  """A stage for each horizon, in each of them a trainer for each family."""
  c, found = s.curriculum, []
  epochs = np.full(len(c.horizons), s.run.num_epochs // len(c.horizons))
  epochs[: s.run.num_epochs % len(c.horizons)] += 1
  for i, (horizon, count) in enumerate(zip(c.horizons, epochs)):
    rate = optax.cosine_decay_schedule(
      c.learning_rate / 2**i, max(int(count), 1), alpha=0.01
    )
    clip = optax.clip_by_global_norm(c.clip_norm)
    trainer = functools.partial(
      evolution,
      learned,
      optax.chain(clip, optax.adam(rate)),
      unroll_length=horizon,
      num_unrolls=1,
      num_optimizees=c.num_optimizees,
      std=c.std,
      weights=_weights(horizon),
    )
    of_loss = [
      functools.partial(_relative, curve)
      for curve in families.reference_curves(trained, horizon)
    ]
    found.append(Stage([trainer(of_loss=h) for h in of_loss], int(count)))
  return tuple(found)


def main(s: Settings) -> None:
  """Meta-trains and compares."""
  if comparison.shown(EXPERIMENT, s):
    return
  learned = optimizer(s.optimizer)
  validate = families.validate(learned, s.run.num_validation)
  trained = families.trained()

  def panel(name):
    f, keys = tasks.make(name).optimizee, study.keys(s, 'tuning')
    tuning = Problem(f, keys, s.run.num_steps, 1, 100, objective=True)
    test = tuning._replace(keys=study.keys(s, 'test'))
    return Panel(name.replace('_', ' '), tuning, test)

  parts = {'validate': validate, 'by': 'mean', 'margin': s.curriculum.margin}
  opened = study.opened(EXPERIMENT, s, learned, trained, **parts)
  with opened as (t, compare):
    t = t._replace(stages=stages(learned, s, trained))
    progress = training.meta_train(t)
    compare(progress, {}, map(panel, PANELS))


if __name__ == '__main__':
  cli.run(main, EXPERIMENT)
