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
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, NamedTuple

import numpy as np

from experiments import mnist
from experiments.common import (
  cli,
  comparison,
  plots,
  report,
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


def check(s: Settings) -> None:
  """Refuses a figure without learned optimizers."""
  settings.refuse({'--rivals must name one or more': not s.comparison.rivals})


EXPERIMENT = settings.Experiment(
  'architectures', Settings(), {'default': {}}, __doc__, check=check
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
    f = mnist.net_on(data, depth * (units,), activation, images)
    keys = study.keys(s, what)
    return Problem(f, keys, num_steps, 1, every, objective=True)

  every = math.gcd(EVERY, num_steps)
  for title, net in nets(s.run).items():
    tuning = problem(held_out, net, 'tuning', num_steps)
    unseen = problem(test, net, 'test', every)
    found[title] = Panel(title, tuning, unseen)
  return found


def summarise(curves: dict, s: Settings, learned, tuned: dict) -> dict:
  """What summary.json has."""
  rows = {k: report.statistics(of, tuned[k]) for k, of in curves.items()}
  return {
    'panels': rows,
    'nets': nets(s.run),
    'mean_rank': report.mean_ranks(rows),
    'num_test': s.comparison.num_test,
    'learned': list(learned),
  }


def groups(summary: dict) -> dict[str, tuple]:
  """{title: (x label, [x], [title of the net])}, a panel of the figure each."""
  all_nets, found = {k: tuple(v) for k, v in summary['nets'].items()}, {}
  for depth in sorted({d for d, *_ in all_nets.values()}):
    of = {
      u: t for t, (d, u, a) in all_nets.items() if (d, a) == (depth, 'sigmoid')
    }
    title = f'{depth} hidden layer{"s" * (depth > 1)}, sigmoid'
    found[title] = 'hidden units of a layer', *_in_order(of, sorted(of))
  base = TRAINED_ON[:2]
  of = {a: t for t, (*net, a) in all_nets.items() if tuple(net) == base}
  if len(of) > 1:
    title = 'other activations, 1 hidden layer of 20'
    found[title] = 'activation', *_in_order(of, ACTIVATIONS)
  return found


def _in_order(of, order):
  """Those keys of a dict that are in `order`, and their values."""
  keys = [key for key in order if key in of]
  return keys, [of[key] for key in keys]


def draw(path) -> None:
  """architectures.png of a run directory's summary.json."""
  summary = run.read_summary(path)
  rows, learned = summary['panels'], summary['learned']
  number = lambda x: np.nan if x is None else x
  values = lambda titles, name, key: np.array(
    [number(rows[t][name][key]) for t in titles]
  )
  found, cross = {}, None
  for title, (label, x, titles) in groups(summary).items():
    of = {
      name: tuple(values(titles, name, k) for k in ('final', 'final_stderr'))
      for name in rows[titles[0]]
    }
    found[title] = label, x, of
    here = [tuple(summary['nets'][t]) == TRAINED_ON for t in titles]
    if cross is None and any(here):
      i = here.index(True)
      cross = title, x[i], of[learned[0]][0][i]
  plots.final_losses(path / 'architectures.png', found, learned, cross)


def show(path) -> None:
  """Prints the tables of summary.json, a panel of the figure each."""
  summary = run.read_summary(path)
  rows, learned = summary['panels'], summary['learned']
  infinite = lambda x: np.inf if x is None else x
  final = lambda title, name: infinite(rows[title][name]['final'])
  for group, (_, x, titles) in groups(summary).items():
    first = rows[titles[0]]
    names = sorted(first, key=lambda name: first[name]['rank_by_final'])
    lines = [[n, *(f'{final(t, n):.4g}' for t in titles)] for n in names]
    tuned = [n for n in names if n not in learned]
    for name in learned if tuned else ():
      least = [min(final(t, n) for n in tuned) for t in titles]
      over = [f'{final(t, name) / y:.2f}' for t, y in zip(titles, least)]
      lines.append([f'{name} / best tuned', *over])
    cli.say(tables.columns(group, ['mean final loss', *x], lines))
  cli.say(f'\nwritten: {path}/architectures.png summary.json curves.csv')


def measure(path, wanted: dict[str, Panel], learned, s: Comparison):
  """({title: losses}, {title: settings}), a net for each core at a time."""
  curves, tuned = {}, {}

  def one(title):
    panel, file = wanted[title], path / comparison.PARTS / f'{title}.npz'
    make = lambda: comparison.measure(panel, learned, s)
    return comparison.kept(file, panel.test, [*learned, *s.baselines], make)

  with ThreadPoolExecutor(run.cores()) as pool:
    results = pool.map(one, wanted)
    for title, found in zip(wanted, results):
      curves[title], tuned[title] = found
      cli.log(f'{len(curves)} of {len(wanted)}: {title}')
  return curves, tuned


def main(s: Settings) -> None:
  """Tunes and runs on every net, then shows all."""
  if comparison.shown(EXPERIMENT, s, draw, show):
    return
  began, wanted = time.monotonic(), panels(s)
  for panel in wanted.values():
    others = comparison.rivals(s.comparison.rivals, panel.test.optimizee)
  with run.opened(EXPERIMENT, s) as path:
    curves, tuned = measure(path, wanted, others, s.comparison)
    summary = summarise(curves, s, others, tuned)
    every = {title: panel.test.every for title, panel in wanted.items()}
    report.write_curves(path / 'curves.csv', curves, every)
    run.write_json(path / 'summary.json', run.without_nan(summary))
    draw(path)
    comparison.finish(path, began)
    show(path)


if __name__ == '__main__':
  cli.run(main, EXPERIMENT)
