"""Learned against tuned hand-designed optimizers on unseen tasks."""

import contextlib
import functools
import pathlib
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.common import problems, report
from experiments.common import run as run_lib
from experiments.common.baselines import TABLE
from experiments.common.cli import log
from experiments.common.problems import Problem
from experiments.common.settings import Count, UsageError, flat
from l2o_jax import checkpoint
from l2o_jax.base import Optimizee
from l2o_jax.checkpoint import CheckpointError
from l2o_jax.pretrained import pretrained

_NAMES = {
  'lstm_raw': 'LSTM (Andrychowicz et al.)',
  'lstm_averaging': 'LSTM + averaging (Andrychowicz et al.)',
  'lstm_log_and_sign': 'LSTM, log-and-sign (Andrychowicz et al.)',
  'ntm_bfgs': 'NTM-BFGS (Andrychowicz et al.)',
  'lstm_policy': 'LSTM, log-and-sign',
  'predicted_step_descent': 'Predicted Step Descent',
  'autonomous_optimizer': 'autonomous optimizer (Li & Malik)',
  'robust_optimizer': 'robust',
  'rnnprop': 'RNNprop (Lv et al.)',
}
PAPER = 'SGD', 'momentum', 'NAG', 'RMSprop', 'ADAM'  # Andrychowicz et al.
PARTS = 'comparison'  # directory of what an unfinished comparison has found
_MOST = 10**8  # numbers of an optimizer's state
_TRAINERS = {'bptt': ', by back-propagation', 'badmm': ', by Bregman ADMM'}


class Comparison(NamedTuple):
  """Comparison with hand-designed optimizers.

  Attributes:
    num_test: Unseen tasks, >= 1.
    num_tuning: Tasks on which a hand-designed optimizer is tuned, >= 1.
    baselines: Hand-designed optimizers, a flag for each.
    tune: rate: tune learning rates, the rest as Torch has it; all: tune
      momentum, decay, memory and the like as well.
    rivals: Learned optimizers that are compared too: run directories, files of
      theta, or names of l2o_jax.pretrained, a flag for each.
  """

  num_test: Count = 1024
  num_tuning: Count = 64
  baselines: tuple[Literal[tuple(TABLE)], ...] = ()
  tune: Literal['rate', 'all'] = 'rate'
  rivals: tuple[str, ...] = ()


class Panel(NamedTuple):
  """A problem of the comparison, and where baselines are tuned for it."""

  title: str
  tuning: Problem
  test: Problem


def name_of(learned, settings=None) -> str:
  """What a learned optimizer is called in tables and pictures."""
  call = (learned.call or {}).get('name', '')
  name = _NAMES.get(call, 'learned optimizer')
  if call == 'robust_optimizer':
    name = 'schedule-free Adam, gated'
    if learned.call['arguments']['hidden']:
      name = 'gated LSTM'
    for known in 'robust', 'robust_coordinatewise':
      if pretrained(known)[0].call == learned.call:
        name = known
  trainer = flat(settings).get('trainer') if settings else None
  of_policy = call in ('predicted_step_descent', 'lstm_policy')
  return name + _TRAINERS.get(trainer, '') * of_policy


def rivals(
  paths: Sequence[str], optimizee: Optimizee, flag: str = 'rivals'
) -> dict[str, tuple]:
  """{name: (learned optimizer, theta)} of other runs.

  Args:
    paths: run directories, files of theta, or names of pretrained optimizers.
    optimizee: on whose parameters they must work.
    flag: that gave the paths.

  Raises:
    UsageError: nothing has that name, a directory holds no run, or a theta is
      for other parameters.
    CheckpointError: its theta cannot be read.
  """
  found: dict[str, tuple] = {}
  for name in dict.fromkeys(paths):  # each once
    # A path would lose the ./ that makes a name of the package a directory.
    path = pathlib.Path(name)
    settings, learned, theta = run_lib.find_theta(name, flag)
    try:
      params, _ = jax.eval_shape(optimizee.init, jax.random.key(0))
      state = jax.eval_shape(learned.transform(theta).init, params)
    except (ValueError, TypeError) as error:
      reason = f'is for other parameters: {str(error).splitlines()[0]}'
      raise UsageError(f'--{flag}={path}: {reason}') from None
    n, size = (sum(x.size for x in jax.tree.leaves(t)) for t in (params, state))
    numbers = f'its state has {size:.2g} numbers for {n:,} coordinates'
    if size > _MOST:
      raise UsageError(f'--{flag}={path}: {numbers}, more than {_MOST:.0e}')
    label = free_label(found, name_of(learned, settings), path)
    found[label] = learned, theta
  return found


def label_of(path: pathlib.Path) -> str:
  """What a file or directory is called in pictures."""
  text = '/'.join(path.parts[-2:] or path.resolve().parts[-1:])
  return f'./{text}' if text.startswith('_') else text  # _: in no legend


def free_label(names, name: str, path: pathlib.Path) -> str:
  """The name, or with as much of the path as makes it another than `names`."""
  labels = name, f'{name} ({path.name})', f'{name} ({path})'
  return next((label for label in labels if label not in names), labels[-1])


def contenders(learned, theta, settings, others: dict[str, tuple]) -> dict:
  """This run's learned optimizer, by its name, and then its rivals."""
  name = name_of(learned, settings)
  return {name + ' (this run)' * (name in others): (learned, theta), **others}


def compare(
  path: pathlib.Path,
  learned: dict[str, tuple],
  panels: Iterable[Panel],
  s: Comparison,
  *,
  by: str = 'final',
  margin_over: Sequence[str] = (),
  horizon: int = 0,
  extra: dict[str, Any] | None = None,
  also: Callable[[dict, dict], None] = lambda learned, rows: None,
  draw: Callable = report.draw,
  show: Callable = report.show,
) -> None:
  """Tunes, runs, ranks; writes all results, then prints them.

  Args:
    path: run directory; gets curves.csv, summary.json and learning_curves.png.
    learned: {name: (learned optimizer, theta)}; this run's is the first.
    panels: the problems.
    s: the flags.
    by: 'final' or 'mean', what baselines are tuned for and tables ordered by.
    margin_over: baselines over which the margin of victory is taken together,
      on the last panel; none: no margins.
    horizon: of meta-training, for the margins.
    extra: for summary.json.
    also: makes more of `learned` and of the results, {panel: {optimizer:
      statistics}}, before the run counts as finished.
    draw: makes the picture of a run directory with all other files.
    show: prints its tables.
  """
  if not run_lib.is_writer():
    return
  began = time.monotonic()
  curves, tuned, steps = _run_all(path, learned, panels, s, by)
  rows = {k: report.statistics(of, tuned[k]) for k, of in curves.items()}
  summary = {
    'panels': rows,
    'mean_rank': report.mean_ranks(rows),
    'num_test': max(len(x) for of in curves.values() for x in of.values()),
    'by': by,
    'learned': list(learned),
    **(extra or {}),
  }
  if margin_over:
    last = list(curves.values())[-1]
    margins = report.margins(last, next(iter(learned)), margin_over)
    summary['margin_of_victory'] = report.victory(margins, horizon)
    curves['margin of victory'] = margins
  report.write_curves(path / 'curves.csv', curves, steps)
  run_lib.write_json(path / 'summary.json', summary)
  draw(path)
  also(learned, rows)
  finish(path, began)
  show(path)


def _run_all(path, learned, panels, s: Comparison, by) -> tuple:
  """Tunes and runs; ({panel: {optimizer: losses [B, K + 1]}}, and more).

  More: {panel: {baseline: its setting}}, {panel: steps between two losses}.
  """
  curves, tuned, steps, tuned_on = {}, {}, {}, None
  for number, panel in enumerate(panels):
    if panel.tuning is not tuned_on:
      tuned_on, known = panel.tuning, {}
      tuning = problems.together(tuned_on, s.baselines, s.tune)
    makers = _makers(panel, learned, s, by, known, tuning)
    found = curves[panel.title] = {}
    for i, (name, make) in enumerate(makers.items()):
      file = path / PARTS / f'{number}_{i}.npz'
      started = time.monotonic()
      found[name], setting = kept(file, panel.test, name, make)
      if setting is not None:
        known[name] = setting
      log(f'{panel.title}: {name}, {time.monotonic() - started:.0f} s')
    tuned[panel.title], steps[panel.title] = dict(known), panel.test.every
  return curves, tuned, steps


def kept(
  file: pathlib.Path, problem: Problem, name: str, make: Callable
) -> tuple[np.ndarray, dict | None]:
  """`make()`, or what it returned when this comparison was begun before.

  Args:
    file: in PARTS of the run directory, where the results are kept until all
      are there; what a killed comparison has found is not run again.
    problem: that was run on.
    name: of the optimizer.
    make: () -> (losses [B, K + 1], setting of a hand-designed one or None).
  """
  shape = len(problem.keys), problem.num_steps // problem.every + 1
  like = jax.ShapeDtypeStruct(shape, jnp.zeros(()).dtype)
  if file.exists():
    try:
      facts = checkpoint.metadata(file)
      if facts['name'] == name:
        return np.asarray(checkpoint.load(file, like)), facts['setting']
    except (CheckpointError, LookupError, TypeError) as error:
      log(f'{str(error).splitlines()[0]}; run again')
  losses, setting = make()
  file.parent.mkdir(exist_ok=True)
  checkpoint.save(file, losses, metadata={'name': name, 'setting': setting})
  return losses, setting


def finish(path, began: float) -> None:
  """Says in run.json that all results are there, and what this session took."""
  seconds = round(time.monotonic() - began, 1)
  unit = 1 if sys.platform == 'darwin' else 1024  # bytes on macOS, else kB
  mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit >> 20
  how = {'comparison_seconds': seconds, 'memory_mb': mb}
  if not run_lib.read_record(path).get('finished'):  # else it is shown again
    run_lib.note(path, finished=True, **how)
  shutil.rmtree(path / PARTS, ignore_errors=True)


def _makers(panel, learned, s: Comparison, by, known, tuning):
  """{optimizer: () -> (losses [B, K + 1], its setting; None if learned)}.

  Hand-designed optimizers are tuned whose setting is not `known`; `tuning` is
  `problems.together` of the problem to tune on.
  """
  test = problems.together(panel.test, s.baselines, s.tune)

  def run_learned(name):
    one, theta = learned[name]
    # One leaf instead of many is quicker to compile.
    join = (lambda opt: opt) if one.communicates else optax.flatten
    run = problems.runner(panel.test, lambda theta: join(one.transform(theta)))
    return np.asarray(run(theta)), None

  def run_baseline(name):
    setting = known.get(name)
    if setting is None:
      setting = problems.tune(panel.tuning, name, by, s.tune, tuning)
    return test(name, *problems.rate_and_choice(setting)), setting

  found = {name: functools.partial(run_learned, name) for name in learned}
  return found | {n: functools.partial(run_baseline, n) for n in s.baselines}


def shown(experiment, settings, draw=report.draw, show=report.show) -> bool:
  """Whether this very run is finished; then its results are shown again."""
  path = run_lib.finished(experiment, settings)
  if path is None or not run_lib.is_writer():
    return path is not None
  log(f'{path} holds this run, finished; these are its results')
  try:
    with contextlib.suppress(OSError):  # where nothing can be written any more
      draw(path)
    show(path)
  except (ValueError, LookupError, TypeError, ArithmeticError) as error:
    log(f'results cannot be read ({error!r:.100}); compared again')
    return False
  return True
