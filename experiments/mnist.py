"""Learned optimizer on small nets for MNIST (Andrychowicz et al., section 3.2).

Copy and paste:
  python -m experiments.mnist                          # 5,000 packaged digits
  python -m l2o_jax.datasets prepare mnist             # or: --from DIR
  python -m experiments.mnist --preset=full --dataset=mnist --workdir=runs/mnist

Meta-trains one LSTM on a 784-20-10 sigmoid net and compares it with tuned SGD,
momentum, NAG, RMSprop and ADAM there and where it has not been: more steps,
more units, two layers, ReLU.  With the preset `gated` the LSTM sets the step
lengths of schedule-free Adam, and is meta-trained on the nets of all panels.
Meta-training, validation and test use disjoint images.  Writes theta.npz,
learning_curves.png, summary.json and curves.csv to --workdir.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from experiments.common import bptt, cli, comparison, problems, settings, study
from experiments.common.comparison import PAPER, Comparison, Panel
from experiments.common.images import split_off
from experiments.common.problems import Problem
from l2o_jax import datasets
from l2o_jax.base import LearnedOptimizer, Optimizee
from l2o_jax.optimizees.classifier import classifier, mlp


class Net(NamedTuple):
  """A net, and for how many times --num_steps it is trained."""

  title: str
  hidden: tuple[int, ...]
  activation: str = 'sigmoid'
  times: int = 1


PANELS = {
  'base': Net('base net', (20,)),
  'long': Net('base net', (20,), times=2),
  'wide': Net('40 hidden units', (40,)),
  'deep': Net('2 hidden layers of 20', (20, 20)),
  'relu': Net('ReLU', (20,), 'relu'),
}


class Images(NamedTuple):
  """Images and nets.

  Attributes:
    dataset: Images; mnist_5k is in the package, the others are prepared by
      python -m l2o_jax.datasets.
    data_dir: Where prepared data sets are; $TFDS_DATA_DIR or
      ~/tensorflow_datasets by default.
    panels: Problems of the comparison, a flag for each; long: twice the steps,
      wide: 40 hidden units, deep: 2 hidden layers of 20.
    train_on: Panels on whose nets the optimizer is meta-trained and validated,
      a flag for each; in turn, where there are several.
    batch_size: Images per minibatch, >= 1.
    initial_std: Standard deviation of the nets' initial weights and biases,
      > 0; 0.01 in the released code.  Near 0 a net of two sigmoid layers stays
      on a plateau.
  """

  dataset: Literal[tuple(datasets.NAMES)] = 'mnist_5k'
  data_dir: str | None = None
  panels: tuple[Literal[tuple(PANELS)], ...] = tuple(PANELS)
  train_on: tuple[Literal[tuple(PANELS)], ...] = ('base',)
  batch_size: settings.Count = 128
  initial_std: settings.Positive = 0.1


class Settings(NamedTuple):
  """All flags."""

  run: settings.Run = settings.Run(workdir='runs/mnist')
  images: Images = Images()
  optimizer: settings.Optimizer = settings.Optimizer()
  lstm: settings.Lstm = settings.Lstm()
  gate: settings.Gate = settings.Gate()
  bptt: settings.Bptt = settings.Bptt(learning_rate=2e-3)
  comparison: Comparison = Comparison(
    num_test=100, num_tuning=16, baselines=PAPER
  )
  hosts: settings.Hosts = settings.Hosts()


_TUNED = {'weights': 'rising', 'second_derivatives': True}
EXPERIMENT = settings.Experiment(
  'mnist',
  Settings(),
  {
    'quick': {
      **_TUNED,
      'num_epochs': 100,
      'evaluation_period': 20,
      'num_validation': 8,
    },
    'full': {
      **_TUNED,
      'num_epochs': 600,
      'evaluation_period': 30,
      'num_validation': 96,
    },
    'gated': {
      **_TUNED,
      'optimizer': 'gated',
      'train_on': tuple(PANELS),
      'num_epochs': 600,
      'evaluation_period': 60,
      'num_validation': 32,
      'unroll_length': 50,
      'learning_rate': 3e-3,
    },
    'paper': {
      'num_epochs': 900,
      'evaluation_period': 45,
      'num_validation': 32,
      'preprocessing_p': 10.0,
      'output_scale': 0.1,
    },
    'original': {
      'num_epochs': 10000,
      'num_validation': 20,
      'initial_std': 0.01,
      'preprocessing_p': 5.0,
      'learning_rate': 1e-3,
      'learning_rate_schedule': 'constant',
      'clip_norm': 0.0,
    },
  },
  __doc__,
  only=settings.ONLY_OPTIMIZER,
)


def load(s: Images):
  """Images and labels to train on, to validate and tune on, and to test on."""
  part = lambda split: datasets.load(s.dataset, split, s.data_dir)
  return *split_off(part('train'), 12), part('test')  # 5,000 of 60,000


def net_on(data, net: Net, s: Images) -> Optimizee:
  """The net on these images and labels."""
  images, labels = data
  sizes = math.prod(images.shape[1:]), *net.hidden, int(labels.max()) + 1
  layers = mlp(sizes, net.activation, s.initial_std)
  return classifier(*data, layers, s.batch_size)


def validation(found: Sequence[Problem], learned: LearnedOptimizer):
  """(theta -> losses, by which score of them theta is selected).

  Of one problem the mean curve, judged by its end; of several the ends of
  their mean curves, judged by their mean.
  """
  curves = [problems.mean_curve(problem, learned) for problem in found]
  if len(curves) == 1:
    return curves[0], 'final'
  return lambda theta: np.array([curve(theta)[-1] for curve in curves]), 'mean'


def main(s: Settings) -> None:
  """Meta-trains and compares."""
  if comparison.shown(EXPERIMENT, s):
    return
  learned = bptt.learned_optimizer(s)
  train, held_out, test = load(s.images)

  def problem(data, net, what):
    f, steps = net_on(data, net, s.images), net.times * s.run.num_steps
    return Problem(f, study.keys(s, what), steps, batch_size=1)

  nets = [PANELS[name] for name in s.images.train_on]
  held = [problem(held_out, net, 'validation') for net in nets]
  validate, by = validation(held, learned)
  lengths = [one.num_steps for one in held]
  trained = [net_on(train, net, s.images) for net in nets]

  opened = study.opened(
    EXPERIMENT, s, learned, trained, validate=validate, by=by
  )
  with opened as (t, compare):
    progress, facts = bptt.train(t, s.bptt, lengths=lengths)
    panels = []
    for net in (PANELS[name] for name in s.images.panels):
      tuning = problem(held_out, net, 'tuning')
      unseen = problem(test, net, 'test')
      title = f'{net.title}, {unseen.num_steps} steps'
      panels.append(Panel(title, tuning, unseen))
    compare(progress, facts, panels)


if __name__ == '__main__':
  cli.run(main, EXPERIMENT)
