"""Learned optimizer on random quadratics (Andrychowicz et al., section 3.1).

Copy and paste:
  python -m experiments.quadratics                     # 2 minutes on one core
  python -m experiments.quadratics --preset=full --workdir=runs/full
  python -m experiments.quadratics --preset=original --workdir=runs/original
  python -m experiments.quadratics --preset=averaging --workdir=runs/averaging
  python -m experiments.quadratics --preset=ntm_bfgs --workdir=runs/ntm_bfgs

Meta-trains an LSTM, or one of the optimizers of appendix D whose coordinates
share information, on f(x) = ||W x - y||^2 with 10 coordinates, compares it
with tuned hand-designed optimizers on unseen functions, and writes
theta.npz, learning_curves.png, summary.json and curves.csv to --workdir.
"""

from typing import Literal, NamedTuple

from experiments.common import bptt, cli, comparison, problems, settings, study
from experiments.common.comparison import PAPER, Comparison, Panel
from experiments.common.problems import Problem
from l2o_jax.base import LearnedOptimizer
from l2o_jax.learned_optimizers import lstm_averaging, lstm_raw, ntm_bfgs
from l2o_jax.optimizees.quadratic import quadratic


class Functions(NamedTuple):
  """Functions.

  Attributes:
    entries: Of W and y; uniform: U[0, 1) as in the released code and, by its
      levels, the published figure; normal: N(0, 1) as in the text.
    dimension: Coordinates of a function, >= 1.
    num_problems: Functions in one optimizee, >= 1; more give a less noisy
      meta-gradient and take longer.
    batch_form: Of the functions in one tensor; sum: each coordinate sees the
      gradient of its own function; mean: divided by --num_problems, as in the
      released code.
  """

  entries: Literal['uniform', 'normal'] = 'uniform'
  dimension: settings.Count = 10
  num_problems: settings.Count = 128
  batch_form: Literal['sum', 'mean'] = 'sum'


class Learned(NamedTuple):
  """Learned optimizer.

  Attributes:
    optimizer: lstm: each coordinate on its own, as in section 3.1; averaging:
      with global averaging cells, as in appendix D; ntm_bfgs: with a memory
      that it writes as BFGS writes its inverse Hessian, also appendix D.
    output_scale: Factor of the LSTM's output, > 0, or of the first inverse
      Hessian; smaller means smaller steps at the start.
  """

  optimizer: Literal['lstm', 'averaging', 'ntm_bfgs'] = 'lstm'
  output_scale: settings.Positive = 0.1


class Settings(NamedTuple):
  """All flags."""

  run: settings.Run = settings.Run(workdir='runs/quadratics')
  functions: Functions = Functions()
  learned: Learned = Learned()
  bptt: settings.Bptt = settings.Bptt()
  comparison: Comparison = Comparison(baselines=PAPER)
  hosts: settings.Hosts = settings.Hosts()


def check(s: Settings) -> None:
  """Raises UsageError for flags that contradict each other."""
  together = s.learned.optimizer != 'lstm' and s.functions.num_problems > 1
  message = (
    f'--optimizer={s.learned.optimizer} would mix the functions of an '
    'optimizee: it needs --num_problems=1'
  )
  settings.refuse({message: together})


_TASKS = {'num_validation': 1024, 'num_tuning': 16384, 'num_test': 2048}
_TUNED = {
  **_TASKS,
  'learning_rate': 1e-2,
  'weights': 'rising',
  'second_derivatives': True,
}
# A long horizon needs the meta-gradients of many optimizees, each clipped.
_LONG = {
  **_TUNED,
  'unroll_length': 50,
  'num_optimizees': 16,
  'num_problems': 8,
  'clip_each': 10.0,
}
# Coordinates that communicate see one function at a time.
_TOGETHER = {
  **_LONG,
  'num_optimizees': 128,
  'num_problems': 1,
  'baselines': ('momentum', 'NAG', 'ADAM', 'L-BFGS'),
}
EXPERIMENT = settings.Experiment(
  'quadratics',
  Settings(),
  {
    'quick': {'num_epochs': 400, **_LONG},
    'full': {'num_epochs': 6000, **_LONG},
    'averaging': {'num_epochs': 6000, 'optimizer': 'averaging', **_TOGETHER},
    'ntm_bfgs': {
      **_TOGETHER,
      'num_epochs': 400,
      'evaluation_period': 25,
      'num_validation': 4096,
      'num_optimizees': 64,
      'optimizer': 'ntm_bfgs',
      'output_scale': 0.25,
      'unroll_length': 25,
      'weights': 'all',
    },
    'paper': {'num_epochs': 6000, **_TASKS},
    'original': {
      **_TASKS,
      'num_epochs': 10000,
      'num_validation': 128,
      'output_scale': 1.0,
      'learning_rate': 1e-3,
      'learning_rate_schedule': 'constant',
      'clip_norm': 0.0,
      'batch_form': 'mean',
    },
  },
  __doc__,
  check=check,
)


def make_learned(s: Learned) -> LearnedOptimizer:
  """The learned optimizer that the flags say."""
  make = {'lstm': lstm_raw, 'averaging': lstm_averaging, 'ntm_bfgs': ntm_bfgs}[
    s.optimizer
  ]
  return make(s.output_scale)


def main(s: Settings) -> None:
  """Meta-trains and compares."""
  if comparison.shown(EXPERIMENT, s):
    return
  learned = make_learned(s.learned)
  own = s.functions
  family = {'dimension': own.dimension, 'entries': own.entries}
  count, form = own.num_problems, own.batch_form
  optimizee = quadratic(**family, batch=count, reduction=form)
  # In the released form a function alone would show 128 times the gradient
  # that the optimizer was trained on: it is judged in that form.
  one = quadratic(**family)
  problem = lambda f, what: Problem(f, study.keys(s, what), s.run.num_steps)
  held_out = one if form == 'sum' else optimizee
  validation = problem(held_out, 'validation')
  validate = problems.mean_curve(validation, learned)

  # At the end NTM-BFGS is at the rounding of float32: the whole run counts.
  by = 'mean' if s.learned.optimizer == 'ntm_bfgs' else 'final'
  parts = {'validate': validate, 'by': by}

  opened = study.opened(EXPERIMENT, s, learned, [optimizee], one, **parts)
  with opened as (t, compare):
    scale = 1 / count if form == 'sum' else 1.0
    progress, facts = bptt.train(t, s.bptt, scale)
    title = f'{own.dimension}-dimensional quadratics, {own.entries} entries'
    tuned, unseen = problem(held_out, 'tuning'), problem(held_out, 'test')
    if form == 'mean':  # as many functions, in optimizees of `count`
      few = lambda p: p._replace(keys=p.keys[: -(-len(p.keys) // count)])
      tuned, unseen = few(tuned), few(unseen)
    panel = Panel(title, tuned, unseen)
    compare(progress, facts, [panel])


if __name__ == '__main__':
  cli.run(main, EXPERIMENT)
