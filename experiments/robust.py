"""Meta-trains `robust`, the learned optimizer for any net.

Copy and paste:
  python -m experiments.robust                    # a small one
  python -m experiments.robust --preset=full      # the one in the package

The optimizer is Adam with a learned gate on the length of its steps
(`robust_optimizer`).  It is meta-trained on small nets and quadratics, some of
them in random units, on the logarithm of the loss, on runs that get longer by
stages.  It is selected by validation on other nets, sizes and batches.  Writes
theta.npz, and a comparison on a few tasks that are neither;
`python -m experiments.evaluate` judges it on more of them.
"""

from typing import Annotated, Literal, NamedTuple

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
_FLOOR = 1e-4  # of losses, in logarithms
_AGE = 30.0  # steps until the weights of losses fall


class Optimizer(NamedTuple):
  """Learned optimizer.

  Attributes:
    hidden: Units of the LSTM in the gate; 0: none.
    bound: Bound of a step, > 0.03.
  """

  hidden: Annotated[int, 0, 1000] = 0
  bound: Annotated[float, 0.031, 10.0] = 0.3


class Curriculum(NamedTuple):
  """Stages of meta-training, each with the same number of epochs.

  Attributes:
    trainer: evolution: evolution strategies over whole runs; bptt: truncated
      back-propagation.
    horizons: Steps of a run in meta-training, a stage for each; --num_steps is
      of the comparison.
    unroll_length: Steps that the meta-gradient of bptt goes back, >= 1, a
      divisor of each horizon.
    num_optimizees: Optimizees in parallel, >= 1; each of them twice for
      evolution.
    learning_rate: Meta learning rate of Adam, > 0; it falls to 1 % by a cosine
      in each stage, and each stage begins with half of the rate of the last.
    clip_norm: Global norm to which a meta-gradient is clipped, > 0.
    std: Standard deviation of evolution's noise on theta, > 0.
  """

  trainer: Literal['evolution', 'bptt'] = 'evolution'
  horizons: tuple[settings.Count, ...] = (300,)
  unroll_length: settings.Count = 50
  num_optimizees: settings.Count = 8
  learning_rate: settings.Positive = 0.03
  clip_norm: settings.Positive = 1.0
  std: settings.Positive = 0.1


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
  """Refuses horizons that are no multiples of the unroll length."""
  length = s.curriculum.unroll_length
  bptt = s.curriculum.trainer == 'bptt'
  settings.refuse(
    {
      f'--horizons={h} is not a multiple of --unroll_length={length}': (
        bptt and h % length
      )
      for h in s.curriculum.horizons
    }
    | {'--horizons needs at least one': not s.curriculum.horizons}
    | {'--num_steps must be a multiple of 100': s.run.num_steps % 100}
  )


EXPERIMENT = settings.Experiment(
  'robust',
  Settings(),
  {
    'quick': {'num_epochs': 200, 'evaluation_period': 50},
    'full': {
      'horizons': (300, 1000),
      'num_epochs': 700,
      'evaluation_period': 100,
      'num_validation': 2,
    },
  },
  __doc__,
  check=check,
)


def _log(loss):
  return jnp.log(loss + _FLOOR)


def _weights(horizon: int) -> np.ndarray:
  """Of the losses at t = 0 ... T: a decade of steps counts as much as another.

  Their sum is 1.
  """
  weights = 1 / (_AGE + np.arange(horizon + 1))
  return weights / weights.sum()


def stages(learned, s: Settings) -> tuple[Stage, ...]:
  """Meta-training on longer and longer runs."""
  c, found = s.curriculum, []
  epochs = np.full(len(c.horizons), s.run.num_epochs // len(c.horizons))
  epochs[: s.run.num_epochs % len(c.horizons)] += 1
  for i, (horizon, count) in enumerate(zip(c.horizons, epochs)):
    unrolls = horizon // c.unroll_length if c.trainer == 'bptt' else 1
    rate = optax.cosine_decay_schedule(
      c.learning_rate / 2**i, max(int(count) * unrolls, 1), alpha=0.01
    )
    clip = optax.clip_by_global_norm(c.clip_norm)
    meta_optimizer = optax.chain(clip, optax.adam(rate))
    weights = _weights(horizon)
    how = {'unroll_length': horizon // unrolls, 'num_unrolls': unrolls}
    how |= {'num_optimizees': c.num_optimizees, 'of_loss': _log}
    if c.trainer == 'bptt':
      trainer = truncated_bptt(learned, meta_optimizer, weights=weights, **how)
    else:
      trainer = evolution(
        learned, meta_optimizer, weights=weights[1:], std=c.std, **how
      )
    found.append(Stage(trainer, int(count)))
  return tuple(found)


def main(s: Settings) -> None:
  """Meta-trains and compares."""
  if comparison.shown(EXPERIMENT, s):
    return
  learned = robust_optimizer(s.optimizer.hidden, s.optimizer.bound)
  theta = training.given_theta(learned, s)
  validate = families.validate(learned, s.run.num_validation)
  trained = families.trained()
  others = comparison.rivals(s.comparison.rivals, trained[0])

  def problem(name, what, count):
    f, keys = tasks.make(name).optimizee, problems.keys(what, count)
    return Problem(f, keys, s.run.num_steps, 1, 100, objective=True)

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
