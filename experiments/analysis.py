r"""What a learned optimizer has learned (Andrychowicz et al., appendix B).

Copy and paste:
  python -m experiments.analysis                      # a minute
  python -m experiments.analysis --preset=quadratics --workdir=runs/quadratic
  python -m experiments.analysis --theta=predicted_step_descent \
      --workdir=runs/policy

Runs each learned optimizer once and records what it saw.  Then it is shown the
record again, with other gradients in it: what would it do?  SGD and ADAM,
with tuned rates, are shown the same record.  Draws to --workdir:

  sweeps.png      update against gradient, at several steps
  proposals.png   updates of some coordinates, beside those of SGD and ADAM
  impulses.png    what one additional gradient changes, step after step
  scales.png      effective step size and time-scale of momentum along the run
  magnitudes.png  loss, gradients and updates of every optimizer's own run

and writes summary.json and curves.csv, which has every curve.
"""

import pathlib
import time
from typing import Literal, NamedTuple

import jax
import numpy as np

from experiments import mnist
from experiments.common import (
  anatomy,
  cli,
  comparison,
  panels,
  problems,
  responses,
  run,
  settings,
  tables,
)
from experiments.common.anatomy import DRAWN
from experiments.common.problems import Problem
from l2o_jax import datasets
from l2o_jax.base import Optimizee
from l2o_jax.optimizees.quadratic import quadratic

MANY = 10**5  # numbers of a run, of whose coordinates few are probed one by one
# Coordinates of these know nothing of each other, as `responses` needs it.
BASELINES = 'SGD', 'momentum', 'NAG', 'RMSprop', 'ADAM', 'AdaGrad'


class Analysis(NamedTuple):
  """What is analysed, and on what.

  Attributes:
    preset: Values of the flags that are not given; see below.
    workdir: Directory of the results, made if missing.
    resume: auto: show the results if --workdir holds this run, finished; never:
      refuse a --workdir with a run in it; must: refuse one without.
    theta: Learned optimizers, a flag for each: names of l2o_jax.pretrained,
      files of theta or run directories.
    task: mnist: the net of experiments.mnist, 784-20-10 sigmoid units, on test
      images; quadratic: a function of experiments.quadratics.
    num_steps: Steps of the run, >= 1.
    times: Steps at which updates are drawn against gradients, and at which
      there is an additional gradient, a flag for each.
    window: Steps of which the response to an additional gradient is measured.
    coordinates: How many are measured; four of them are drawn, one of each leaf
      where there are four.  Only these four where coordinates communicate, or
      have a theta for each leaf, and are many.
    baselines: Hand-designed optimizers, a flag for each; the last one is also
      drawn against the gradient.
    num_tuning: Tasks on which their rates are tuned, >= 1.
    dataset: Images of the net.
    data_dir: Where prepared data sets are.
  """

  preset: str = ''
  workdir: str = 'runs/analysis'
  resume: Literal['auto', 'never', 'must'] = 'auto'
  theta: tuple[str, ...] = ('mnist_lstm', 'robust')
  task: Literal['mnist', 'quadratic'] = 'mnist'
  num_steps: settings.Count = 100
  times: tuple[settings.Count, ...] = (1, 5, 20, 60)
  window: settings.Count = 40
  coordinates: settings.Count = 64
  baselines: tuple[Literal[BASELINES], ...] = ('SGD', 'ADAM')
  num_tuning: settings.Count = 3
  dataset: Literal[tuple(datasets.NAMES)] = 'mnist_5k'
  data_dir: str | None = None


class Settings(NamedTuple):
  """All flags."""

  run: Analysis = Analysis()


def check(s: Settings) -> None:
  """Refuses times too late for a response."""
  last, latest = s.run.num_steps - s.run.window, max(s.run.times)
  none = f'--window={s.run.window} leaves no step of'
  late = f'--times={latest}: --num_steps and --window leave steps 1 to {last}'
  rules = {f'{none} --num_steps={s.run.num_steps}': last < 1}
  settings.refuse({**rules, late: latest > last})


EXPERIMENT = settings.Experiment(
  'analysis',
  Settings(),
  {
    'default': {},
    'quadratics': {
      'task': 'quadratic',
      'theta': ('quadratics', 'quadratics_averaging', 'quadratics_ntm_bfgs'),
      'baselines': ('SGD', 'momentum', 'ADAM'),
      'num_tuning': 64,
    },
  },
  __doc__,
  check=check,
)


class Subject(NamedTuple):
  """What is analysed on, and where baselines are tuned for it."""

  optimizee: Optimizee
  key: jax.Array
  tuning: Problem


def make_task(s: Analysis) -> Subject:
  """The function to be minimized, the key of the run."""
  if s.task == 'quadratic':
    f = tuned_on = quadratic(10)
  else:
    images = mnist.Images(s.dataset, s.data_dir)
    _, held_out, test = mnist.load(images)
    base = mnist.PANELS['base']
    f, tuned_on = (mnist.net_on(d, base, images) for d in (test, held_out))
  keys = problems.keys('tuning', s.num_tuning)
  tuning = Problem(tuned_on, keys, s.num_steps, 1, s.num_steps, objective=True)
  return Subject(f, problems.keys('test', 1)[0], tuning)


def learned_optimizers(s: Analysis, optimizee) -> dict[str, tuple]:
  """{name: (learned optimizer, theta)} of --theta.

  Raises:
    UsageError: there is none of that name, it is for other parameters, or its
      state would be too large.
    CheckpointError: a file cannot be read.
  """
  found = {}
  for name in dict.fromkeys(s.theta):  # each once
    of = comparison.rivals((name,), optimizee, flag='theta')
    learned, theta = next(iter(of.values()))
    path = pathlib.Path(name)
    label = comparison.free_label(found, comparison.label_of(path), path)
    found[label] = learned, theta
  return found


def analyse(s: Analysis, task: Subject, learned: dict) -> tuple[dict, dict]:
  """({picture: {panel: {name: curve}}}, summary) of all.

  Args:
    s: the flags.
    task: what is minimized.
    learned: {name: (learned optimizer, theta)}.
  """
  tune = lambda name: problems.tune(task.tuning, name, 'final', 'rate')
  tuned = {name: tune(name) for name in s.baselines}
  make = lambda name: problems.make_baseline(name, tuned[name])
  pictures, runs, rows, chosen = {}, {}, {}, {}

  def own_run(name, opt):
    run = task.optimizee, opt, task.key, s.num_steps
    record, updates, params = responses.recorded(*run)
    runs[name] = record.gradients, updates, record.values
    last = f'loss {record.values[-1]:.4g} at step {s.num_steps - 1}'
    cli.log(f'{name}: {last}')
    return record, params

  for label, (one, theta) in learned.items():
    opt = one.transform(theta)
    record, params = own_run(label, opt)
    if not chosen:  # of the first run, for all
      chosen = responses.choose(record.gradients, params, s.coordinates)
    if not chosen:
      raise cli.NonFinite(f'{label}: no gradient is finite and not 0')
    like = params if one.communicates else None
    # One by one, many coordinates would take long.
    slow = one.communicates and record.params.size > MANY
    places = list(chosen.values())[: DRAWN if slow else None]
    mine = responses.subject(opt, record, places, like)
    others = {k: responses.subject(make(k), record, places) for k in tuned}
    few = dict(zip(chosen, np.asarray(record.gradients)[:, places].T))
    found, rows[label] = anatomy.measure(label, mine, others, few, s)
    for picture, of in found.items():
      pictures.setdefault(picture, {}).update(of)
  for name in s.baselines:
    own_run(name, make(name))
  pictures['magnitudes'] = anatomy.magnitudes(runs)
  return pictures, {'theta': rows, 'baselines': tuned, 'times': list(s.times)}


def draw(path) -> None:
  """All pictures of a run directory's curves.csv and summary.json."""
  summary = run.read_summary(path)
  learned, others = list(summary['theta']), list(summary['baselines'])
  anatomy.draw(path, panels.read(path / 'curves.csv'), learned, others)


def show(path) -> None:
  """Prints the tables of summary.json."""
  summary = run.read_summary(path)
  rates = [f'{k} {v["rate"]:.3g}' for k, v in summary['baselines'].items()]
  cli.say(f'rates, tuned: {", ".join(rates)}')
  times = list(map(str, summary['times']))
  number = lambda x: '' if x is None else f'{x:.3g}'
  keys = 'cosine', 'opposite', 'persistence', 'length'
  row = lambda name, values: [name, *map(number, values)]
  for label, rows in summary['theta'].items():
    like = rows['like'].items()
    lines = [row(name, (of[key] for key in keys)) for name, of in like]
    title = f'{label}: its updates and those that others make of its gradients'
    cli.say(tables.columns(title, ['', *keys], lines))
    for what, word in (
      ('effective_step_size', 'effective step size'),
      ('mean_lag', 'mean lag of an additional gradient'),
    ):
      impulse = rows['impulse'].items()
      lines = [row(name, (of[t][what] for t in times)) for name, of in impulse]
      title = f'{label}: {word}, median of coordinates, by step'
      cli.say(tables.columns(title, ['', *times], lines))
  files = ' '.join(f'{name}.png' for name in anatomy.PICTURES)
  cli.say(f'\nwritten: {path}/{files} summary.json curves.csv')


def main(s: Settings) -> None:
  """Runs, records, probes and draws."""
  if comparison.shown(EXPERIMENT, s, draw, show):
    return
  began = time.monotonic()
  task = make_task(s.run)
  learned = learned_optimizers(s.run, task.optimizee)
  with run.opened(EXPERIMENT, s) as path:
    pictures, summary = analyse(s.run, task, learned)
    panels.write(path / 'curves.csv', pictures)
    run.write_json(path / 'summary.json', summary)
    draw(path)
    comparison.finish(path, began)
    show(path)


if __name__ == '__main__':
  cli.run(main, EXPERIMENT)
