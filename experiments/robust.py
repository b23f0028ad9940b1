"""Meta-trains `robust`, the learned optimizer for any net.

Copy and paste:
  python -m experiments.robust                    # a small one, in 20 minutes
  python -m experiments.robust --preset=full      # the one in the package

The optimizer is Adam corrected by a small LSTM (`robust_optimizer`).  It is
meta-trained on small nets and quadratics whose parameters are in random units,
by truncated back-propagation on the logarithm of the loss, on runs that get
longer by stages.  It is selected by validation on other nets, sizes and
batches, over 2,000 steps.  Writes theta.npz, and a comparison on a few tasks
that are neither; `python -m experiments.evaluate` judges it on all of them.
"""

from typing import Annotated, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax

from experiments.common import (
  cli,
  comparison,
  families,
  problems,
  run,
  settings,
  tasks,
  training,
)
from experiments.common.comparison import Comparison, Panel
from experiments.common.problems import Problem
from experiments.common.training import Stage
from l2o_jax.evolution import evolution
from l2o_jax.learned_optimizers import robust_optimizer
from l2o_jax.truncated_bptt import truncated_bptt

PANELS = ('wide', 'batch_8', 'residual', 'autoencoder')
_FLOOR = 1e-6


class Optimizer(NamedTuple):
  """Learned optimizer.

  Attributes:
    hidden: Units of the LSTM; 0: none, only linear corrections of Adam.
    bound: Bound of a step, > 0.03.
  """

  hidden: Annotated[int, 0, 1000] = 8
  bound: Annotated[float, 0.031, 10.0] = 0.1


class Curriculum(NamedTuple):
  """Stages of meta-training, each with the same number of epochs.

  Attributes:
    horizons: Steps of a run, a stage of truncated back-propagation for each.
    unroll_length: Steps that the meta-gradient goes back, >= 1, a divisor of
      each horizon.
    num_optimizees: Optimizees in parallel, >= 1.
    learning_rate: Meta learning rate of Adam, > 0; it falls to 1 % by a cosine
      in each stage, and the stages after the first begin with half of it.
    clip_norm: Global norm to which a meta-gradient is clipped, > 0.
    evolution_epochs: Epochs of evolution strategies after all stages, with the
      last horizon, >= 0.
    evolution_std: Standard deviation of their noise on theta, > 0.
    evolution_rate: Meta learning rate of Adam in them, > 0.
  """

  horizons: tuple[settings.Count, ...] = (200, 800)
  unroll_length: settings.Count = 40
  num_optimizees: settings.Count = 8
  learning_rate: settings.Positive = 2e-3
  clip_norm: settings.Positive = 1.0
  evolution_epochs: settings.Whole = 0
  evolution_std: settings.Positive = 0.02
  evolution_rate: settings.Positive = 1e-3


class Settings(NamedTuple):
  """All flags."""

  run: settings.Run = settings.Run(
    workdir='runs/robust', num_steps=2000, num_validation=1
  )
  optimizer: Optimizer = Optimizer()
  curriculum: Curriculum = Curriculum()
  comparison: Comparison = Comparison(
    num_test=3, num_tuning=2, baselines=('ADAM', 'NAG')
  )


def check(s: Settings) -> None:
  """Refuses horizons that are no multiples of the unroll length."""
  length = s.curriculum.unroll_length
  settings.refuse(
    {
      f'--horizons={h} is not a multiple of --unroll_length={length}': (
        h % length
      )
      for h in s.curriculum.horizons
    }
    | {'--horizons needs at least one': not s.curriculum.horizons}
    | {
      f'--num_steps must be a multiple of {families.EVERY}': (
        s.run.num_steps % families.EVERY
      )
    }
  )


EXPERIMENT = settings.Experiment(
  'robust',
  Settings(),
  {
    'quick': {'num_epochs': 400, 'evaluation_period': 100},
    'full': {'num_epochs': 2400, 'evaluation_period': 200, 'num_validation': 2},
  },
  __doc__,
  check=check,
)


def _log(loss):
  return jnp.log(loss + _FLOOR)


def stages(learned, s: Settings) -> tuple[Stage, ...]:
  """Truncated back-propagation on longer and longer runs, then evolution."""
  c = s.curriculum
  epochs = np.full(len(c.horizons), s.run.num_epochs // len(c.horizons))
  epochs[: s.run.num_epochs % len(c.horizons)] += 1

  def adam(rate, count):
    decay = optax.cosine_decay_schedule(rate, max(int(count), 1), alpha=0.01)
    clip = optax.clip_by_global_norm(c.clip_norm)
    return optax.chain(clip, optax.adam(decay))

  found = []
  sizes = {'num_optimizees': c.num_optimizees, 'of_loss': _log}
  for i, (horizon, count) in enumerate(zip(c.horizons, epochs)):
    unrolls = horizon // c.unroll_length
    rate = c.learning_rate / (2 if i else 1)
    trainer = truncated_bptt(
      learned,
      adam(rate, count * unrolls),
      unroll_length=c.unroll_length,
      num_unrolls=unrolls,
      weights=np.full(horizon + 1, 1 / c.unroll_length),
      **sizes,
    )
    found.append(Stage(trainer, int(count)))
  if c.evolution_epochs:
    unrolls = c.horizons[-1] // c.unroll_length
    trainer = evolution(
      learned,
      adam(c.evolution_rate, c.evolution_epochs * unrolls),
      unroll_length=c.unroll_length,
      num_unrolls=unrolls,
      std=c.evolution_std,
      **sizes,
    )
    found.append(Stage(trainer, c.evolution_epochs))
  return tuple(found)


def main(s: Settings) -> None:
  """Meta-trains and compares."""
  if comparison.shown(EXPERIMENT, s):
    return
  learned = robust_optimizer(s.optimizer.hidden, s.optimizer.bound)
  theta = training.given_theta(learned, s)
  validate = families.validate(learned, s.run.num_steps, s.run.num_validation)
  trained = families.trained()
  others = comparison.rivals(s.comparison.rivals, trained[0])

  def problem(name, what, count):
    f, keys = tasks.make(name).optimizee, problems.keys(what, count)
    return Problem(f, keys, s.run.num_steps, 1, families.EVERY, objective=True)

  with run.opened(EXPERIMENT, s) as path:
    parts = {'validate': validate, 'by': 'mean', 'stages': stages(learned, s)}
    t = training.prepare(EXPERIMENT, s, path, learned, trained, **parts)
    progress = training.meta_train(t, theta)
    panels = [
      Panel(
        name.replace('_', ' '),
        problem(name, 'tuning', s.comparison.num_tuning),
        problem(name, 'test', s.comparison.num_test),
      )
      for name in PANELS
    ]
    mine = comparison.contenders(learned, progress.best_theta, s, others)
    facts = {'validation_loss': float(progress.best)}
    comparison.compare(path, mine, panels, s.comparison, extra=facts)


if __name__ == '__main__':
  cli.run(main, EXPERIMENT)
