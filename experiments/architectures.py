r"""Learned optimizers on nets of other sizes (Andrychowicz et al., Fig. 6).

Copy and paste:
  python -m experiments.architectures              # 17 minutes of one core
  python -m experiments.architectures --rivals=predicted_step_descent \
      --depths=1 --workdir=runs/depth1
  python -m experiments.architectures --dataset=mnist --workdir=runs/fig6 \
      --rivals=mnist_gated --rivals=mnist_lstm --rivals=robust

Trains nets of one, two and three hidden layers of 5 to 80 sigmoid units, and
the net of meta-training with other activations.  Hand-designed optimizers are
tuned for each net, on other images.  Nothing is meta-trained.  The final loss
is over all images that the net is trained on, the test images.  Writes
architectures.png, summary.json and curves.csv to --workdir.
"""

import math
from typing import Literal, NamedTuple

import numpy as np

from experiments import mnist
from experiments.common import (
  cli,
  comparison,
  plots,
  run,
  settings,
  study,
  tables,
)
from experiments.common.comparison import PAPER, Comparison, Panel
from experiments.common.problems import Problem
from l2o_jax import datasets
from l2o_jax.optimizees.classifier import ACTIVATIONS

TRAINED_ON = 1, 20, 'sigmoid'  # depth, units, activation
EVERY = 20  # steps between losses of curves.csv


class Nets(NamedTuple):
  """Nets and images.

  Attributes:
    preset: Values of the flags that are not given; see below.
    workdir: Directory of the results, made if missing.
    resume: auto: show the results if --workdir holds this run, finished; never:
      refuse a --workdir with a run in it; must: refuse one without.
    units: Units of a hidden layer, a flag for each.
    depths: Numbers of hidden layers, a flag for each; all with sigmoids.
    activations: Other activations, a flag for each, of a net with one layer of
      20 units, as in meta-training.
    num_steps: Steps of a run, >= 1.
    dataset: Images; mnist_5k is in the package, the others are prepared by
      python -m l2o_jax.datasets.
    data_dir: Where prepared data sets are.
    batch_size: Images per minibatch, >= 1.
    initial_std: Standard deviation of the nets' initial weights, biases, > 0.
  """

  preset: str = ''
  workdir: str = 'runs/architectures'
  resume: Literal['auto', 'never', 'must'] = 'auto'
  units: tuple[settings.Count, ...] = (5, 10, 20, 40, 60, 80)
  depths: tuple[settings.Count, ...] = (1, 2, 3)
  activations: tuple[Literal[tuple(ACTIVATIONS)], ...] = ('tanh', 'relu', 'elu')
  num_steps: settings.Count = 100
  dataset: Literal[tuple(datasets.NAMES)] = 'mnist_5k'
  data_dir: str | None = None
  batch_size: settings.Count = 128
  initial_std: settings.Positive = 0.1


class Settings(NamedTuple):
  """All flags."""

  run: Nets = Nets()
  comparison: Comparison = Comparison(
    num_test=8, num_tuning=3, baselines=PAPER, rivals=('mnist_lstm', 'robust')
  )


EXPERIMENT = settings.Experiment(
  'architectures', Settings(), {'default': {}}, __doc__
)


def nets(s: Nets) -> dict[str, tuple]:
  """{title: (depth, units, activation)} of all nets."""
  found = {(d, u, 'sigmoid') for d in s.depths for u in s.units}
  if s.activations:
    found |= {(*TRAINED_ON[:2], a) for a in ('sigmoid', *s.activations)}
  order = sorted(found, key=lambda net: (net[2] != 'sigmoid', net))
  title = lambda d, u, a: f'{d} x {u}, {a}'
  return {title(*net): net for net in order}


def panels(s: Settings) -> dict[str, Panel]:
  """{title: problem}, tuned on held-out images and tested on test images."""
  images = mnist.Images(s.run.dataset, s.run.data_dir)
  how = s.run.batch_size, s.run.initial_std
  images = images._replace(batch_size=how[0], initial_std=how[1])
  _, held_out, test = mnist.load(images)
  num_steps, found = s.run.num_steps, {}

  def problem(data, net, what, every):
    depth, units, activation = net
    layers = mnist.Net('', depth * (units,), activation)
    f = mnist.net_on(data, layers, images)
    keys = study.keys(s, what)
    return Problem(f, keys, num_steps, 1, every, objective=True)

  every = math.gcd(EVERY, num_steps)
  for title, net in nets(s.run).items():
    tuning = problem(held_out, net, 'tuning', num_steps)
    unseen = problem(test, net, 'test', every)
    found[title] = Panel(title, tuning, unseen)
  return found


def groups(summary: dict) -> dict[str, dict]:
  """{title: {units or activation: title of the net}}, a panel each."""
  found, other = {}, {}
  for net, (depth, units, activation) in summary['nets'].items():  # in order
    if activation == 'sigmoid':
      title = f'{depth} hidden layer{"s" * (depth > 1)}, sigmoid'
      found.setdefault(title, {})[units] = net
    if (depth, units) == TRAINED_ON[:2]:
      other[activation] = net
  if len(other) > 1:
    in_order = {a: other[a] for a in ACTIVATIONS if a in other}
    found['other activations, 1 hidden layer of 20'] = in_order
  return found


def draw(path) -> None:
  """architectures.png of a run directory's summary.json."""
  summary = run.read_summary(path)
  rows, learned = summary['panels'], summary['learned']
  number = lambda x: np.nan if x is None else x
  found, cross = {}, None
  for title, of in groups(summary).items():
    found[title] = (
      list(of),
      {
        name: tuple(
          np.array([number(rows[net][name][key]) for net in of.values()])
          for key in ('final', 'final_stderr')
        )
        for name in next(iter(rows.values()))
      },
    )
  base = '{} x {}, {}'.format(*TRAINED_ON)
  if base in rows:
    y = number(rows[base][learned[0]]['final'])
    cross = '1 hidden layer, sigmoid', TRAINED_ON[1], y
  plots.final_losses(path / 'architectures.png', found, learned, cross)


def show(path) -> None:
  """Prints the tables of summary.json, a panel of the figure each."""
  summary = run.read_summary(path)
  rows, learned = summary['panels'], summary['learned']
  infinite = lambda x: np.inf if x is None else x
  final = lambda net, name: infinite(rows[net][name]['final'])
  for title, of in groups(summary).items():
    across = list(of.values())  # the nets, a column each
    first = rows[across[0]]
    names = sorted(first, key=lambda name: first[name]['rank_by_final'])
    lines = [[n, *(f'{final(net, n):.4g}' for net in across)] for n in names]
    tuned = [n for n in names if n not in learned]
    for name in learned if tuned else ():
      least = [min(final(net, n) for n in tuned) for net in across]
      mine = np.array([final(net, name) for net in across])
      with np.errstate(divide='ignore', invalid='ignore'):  # losses of 0
        over = mine / np.array(least)
      lines.append([f'{name} / best tuned', *(f'{x:.2f}' for x in over)])
    cli.say(tables.columns(title, ['mean final loss', *of], lines))
  cli.say(f'\nwritten: {path}/architectures.png summary.json curves.csv')


def main(s: Settings) -> None:
  """Tunes and runs on every net, then shows all."""
  if comparison.shown(EXPERIMENT, s, draw, show):
    return
  wanted = panels(s)
  for panel in wanted.values():
    others = comparison.rivals(s.comparison.rivals, panel.test.optimizee)
  how = {'extra': {'nets': nets(s.run)}, 'draw': draw, 'show': show}
  with run.opened(EXPERIMENT, s) as path:
    comparison.compare(path, others, wanted.values(), s.comparison, **how)


if __name__ == '__main__':
  cli.run(main, EXPERIMENT)
