r"""Judges any theta as a sceptic would: other tasks, rivals tuned as much.

Copy and paste:
  python -m experiments.evaluate                  # two tasks, some minutes
  python -m experiments.evaluate --preset=small   # those with small nets
  python -m experiments.evaluate --preset=hard    # where `robust` did badly
  python -m experiments.evaluate --preset=large   # four larger nets, hours
  python -m experiments.evaluate --preset=full    # all of them, a day
  python -m experiments.evaluate --theta=mnist_gated --theta=robust
  python -m experiments.evaluate --theta=theta.npz --task=quadratic_50 \
      --horizons=100 --baselines=NAG --num_test=2   # a file; half a minute

Every optimizer without a fixed rate is tuned on each task and for each horizon,
with the same seven rates and seeds, and more rates while the best is at an end.
Training losses are over the first 2,000 images, or 256 pieces of the text,
after so many steps; each run is judged at the end of its own schedule.  Rows
that
are done stay in --workdir: the same command goes on from there.  Writes
results.jsonl, summary.json, ratios.png, and curves.png with the losses against
steps, milliseconds and FLOPs, all of the longest runs.
"""

import itertools
import json
import pathlib
import time
from typing import Literal, NamedTuple

import numpy as np
import optax

from experiments.common import (
  cli,
  comparison,
  judging,
  plots,
  run,
  settings,
  signals,
  tasks,
  verdict,
)
from experiments.common.baselines import MODERN, SCHEDULED, TABLE, Baseline
from experiments.common.judging import Contender
from experiments.common.tasks import Task
from l2o_jax.base import Optimizee
from l2o_jax.cells.schedule_free import eval_params

FIXED = 'ADAM 1e-3'
PLAIN = ('SGD', 'momentum', 'NAG', 'RMSprop', 'AdaGrad', 'ADAM')
BASELINES = (*PLAIN, *SCHEDULED, *MODERN)


class Judgement(NamedTuple):
  """What is judged, on what, against whom.

  Attributes:
    preset: Values of the flags that are not given; see below.
    workdir: Directory of the results, made if missing.
    resume: auto: go on with the rows that --workdir lacks; never: refuse a
      --workdir with a run in it; must: refuse one without.
    theta: Learned optimizers, a flag for each: a name of l2o_jax.pretrained, a
      file of theta or a run directory.
    tune_theta: Tune a factor of the learned optimizers' steps, with as many
      trials as the rivals' rates; they are judged with and without it.
    average: Judge those that average their steps at the average, too, as
      schedule-free AdamW is (l2o_jax.eval_params).
    weight_decay: Judge the learned optimizers with weight decay, too: with
      optax.add_decayed_weights of this strength before them, a flag for each.
    task: Tasks, a flag for each.
    horizons: Steps of a run, a flag for each; multiples of 100.
    baselines: Hand-designed optimizers, a flag for each; ADAM is always there,
      and ADAM 1e-3, which is not tuned.
    num_test: Seeds, >= 1.
    num_tuning: Other seeds on which rates are tuned, >= 1.
    dataset: Images of the tasks with digits.
    data_dir: Where prepared data sets are.
  """

  preset: str = ''
  workdir: str = 'runs/evaluate'
  resume: Literal['auto', 'never', 'must'] = 'auto'
  theta: tuple[str, ...] = ('robust',)
  tune_theta: bool = False
  average: bool = False
  weight_decay: tuple[settings.Positive, ...] = ()
  task: tuple[Literal[tuple(tasks.KINDS)], ...] = ('wide', 'residual')
  horizons: tuple[settings.Count, ...] = (100, 500, 2000)
  baselines: tuple[Literal[BASELINES], ...] = ('ADAM, cosine',)
  num_test: settings.Count = 3
  num_tuning: settings.Count = 1
  dataset: str = 'mnist_5k'
  data_dir: str | None = None


class Settings(NamedTuple):
  """All flags."""

  run: Judgement = Judgement()


def check(s: Settings) -> None:
  """Refuses horizons between two judgements."""
  settings.refuse(
    {
      f'--horizons={h} is not a multiple of {judging.EVERY}': h % judging.EVERY
      for h in s.run.horizons
    }
  )


LARGE = ('large_dense', 'large_resnet', 'large_char_lstm', 'large_transformer')
SLOW = ('conv_norm', 'resnet', 'char_lstm', 'transformer', *LARGE)
HARD = 'unlike_units', 'embeddings', 'factorisation', 'sines', 'warm_start'
_SCEPTICAL = {
  'baselines': ('NAG', 'RMSprop', *SCHEDULED, *MODERN),
  'num_test': 10,
  'num_tuning': 2,
  'tune_theta': True,
  'average': True,
  'weight_decay': (1e-4, 1e-3),
}
EXPERIMENT = settings.Experiment(
  'evaluate',
  Settings(),
  {
    'quick': {},
    'small': {
      'task': tuple(n for n in tasks.KINDS if n not in (*SLOW, *HARD)),
      **_SCEPTICAL,
    },
    'hard': {
      'task': HARD,
      'theta': ('robust', 'robust_coordinatewise'),
      'tune_theta': True,
      'average': True,
      'weight_decay': (1e-3,),
      'baselines': ('schedule-free AdamW',),
    },
    'large': {
      'task': LARGE,
      'horizons': (100, 500),
      'baselines': ('schedule-free AdamW',),
      'average': True,
    },
    'full': {'task': tuple(tasks.KINDS), **_SCEPTICAL},
  },
  __doc__,
  check=check,
)


def at_average(state, params, rate, theta):
  """Where a learned optimizer is judged that averages its steps."""
  return eval_params(theta, state, params, rate)


def learned_contenders(s: Judgement) -> dict[str, Contender]:
  """The learned optimizers by name.

  Raises:
    CheckpointError: a file cannot be read.
  """
  found = {}
  taken = (FIXED, verdict.REFERENCE, *s.baselines)
  factors = tuple(10 ** np.linspace(-1.5, 0.5, len(judging.RATES)))
  for name in dict.fromkeys(s.theta):  # each once
    _, learned, theta = run.find_theta(name)
    path = pathlib.Path(name)
    names = (*taken, *found)
    label = comparison.free_label(names, comparison.label_of(path), path)
    make, points = _stepped(learned), {label: None}
    if s.average and 'momentum' in theta:
      points[f'{label}, average'] = at_average
    for title, point in points.items():
      found[title] = one = Contender(
        make, (1.0,), arguments=(theta,), point=point
      )
      if s.tune_theta:
        found[f'{title}, steps tuned'] = one._replace(rates=factors)
    for decay in s.weight_decay:
      one = Contender(_stepped(learned, decay), (1.0,), arguments=(theta,))
      found[f'{label}, decay {decay:g}'] = one
  return found


def _stepped(learned, decay=None):
  """(factor of its steps, T, theta) -> the optimizer, behind weight decay."""
  before = [] if decay is None else [optax.add_decayed_weights(decay)]

  def make(rate, steps, theta):
    del steps
    return optax.chain(*before, learned.transform(theta), optax.scale(rate))

  return make


def contenders(s: Judgement) -> dict[str, Contender]:
  """All that are compared, by name; the learned ones first."""
  found = learned_contenders(s)
  found[FIXED] = Contender(lambda rate, steps: optax.adam(rate), (1e-3,))
  for name in dict.fromkeys((verdict.REFERENCE, *s.baselines)):
    if name in SCHEDULED:
      found[name] = Contender(SCHEDULED[name], scheduled=True)
    else:
      f, parameters, _ = TABLE.get(name) or Baseline(MODERN[name])
      first = [values[0] for values in parameters.values()]
      found[name] = Contender(lambda rate, _, f=f, z=first: f(rate, *z))
  return found


def check_theta(s: Judgement, task: str, f: Optimizee) -> None:
  """Refuses a theta that is for other parameters than a task has."""
  try:
    comparison.rivals(s.theta, f, flag='theta')
  except settings.UsageError as error:
    raise settings.UsageError(f'{error} (--task={task})') from None


def _whole_lines(file):
  """Lines of the file without one that was torn when the run was killed."""
  lines = run.read_text(file).splitlines(True) if file.exists() else ()
  return [line for line in lines if line.endswith('\n')]


def read(file) -> dict:
  """{(task, optimizer): result} of the rows that are whole."""
  found = {}
  for line in _whole_lines(file):
    try:
      row = json.loads(line)
      ends = {int(h): end for h, end in row['horizons'].items()}
      if all(end['loss'] and end['curve'] for end in ends.values()):
        found[row['task'], row['optimizer']] = ends
    except (ValueError, LookupError, TypeError, AttributeError):
      continue
  return found


def judge_all(s: Judgement, rivals, made: dict[str, Task], file) -> dict:
  """{task: {optimizer: result}}; what `file` has already is not run again."""
  results = read(file)
  run.write(file, ''.join(_whole_lines(file)))
  with open(file, 'a') as lines:
    for task, name in itertools.product(made, rivals):
      if (task, name) in results:
        continue
      how = s.horizons, s.num_tuning, s.num_test
      found = judging.judged(rivals[name], made[task], *how)
      results[task, name] = found
      row = {'task': task, 'optimizer': name, 'horizons': found}
      lines.write(run.as_json(row) + '\n')
      lines.flush()
      ends = [f'{np.mean(found[h]["loss"]):.4g}' for h in s.horizons]
      cli.log(f'{task}: {name}: {" · ".join(ends)}')
  return {task: {n: results[task, n] for n in rivals} for task in made}


def main(s: Settings) -> None:
  """Judges what is not judged yet, then shows everything."""
  began = time.monotonic()
  rivals = contenders(s.run)
  made = {
    name: tasks.make(name, s.run.dataset, s.run.data_dir)
    for name in dict.fromkeys(s.run.task)
  }
  for name, task in made.items():
    check_theta(s.run, name, task.optimizee)
  with run.opened(EXPERIMENT, s) as path:
    signals.announce('stopped; the same command goes on', saving=False)
    results = judge_all(s.run, rivals, made, path / 'results.jsonl')
    summary = verdict.aggregate(results, s.run.horizons)
    run.write_json(path / 'summary.json', summary)
    learned = [name for name, one in rivals.items() if one.arguments]
    ratios = verdict.mean_ratios(results, s.run.horizons)
    plots.ratios(path / 'ratios.png', ratios, learned)
    curves, labels = verdict.cost_curves(results, judging.EVERY)
    plots.learning_curves(path / 'curves.png', curves, learned, labels)
    cli.say(verdict.text(results, summary, judging.EVERY))
    files = 'summary.json results.jsonl ratios.png curves.png'
    cli.say(f'\nwritten: {path}/{files}')
    comparison.finish(path, began)


if __name__ == '__main__':
  cli.run(main, EXPERIMENT)
