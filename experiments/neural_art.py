r"""Neural art with a learned optimizer (Andrychowicz et al., section 3.4).

Copy and paste:
  python -m experiments.neural_art
  python -m experiments.neural_art --preset=gated --workdir=runs/gated
  python -m experiments.neural_art --contents=PHOTOS --new_style=PAINTING.jpg \
      --workdir=runs/photos

Meta-trains an LSTM to paint photographs of 64 x 64 pixels in one style, and
compares it with tuned SGD, momentum, NAG, RMSprop and ADAM on photographs that
are new to it: in that style, and at 128 x 128 in a style that is new as well.
With the preset `gated` an LSTM sets the step lengths of schedule-free Adam.
Writes theta.npz, learning_curves.png, pictures.png, summary.json and curves.csv
to --workdir.
"""

import functools
from typing import Literal, NamedTuple

import jax
import numpy as np
import optax

from experiments.common import (
  bptt,
  cli,
  comparison,
  plots,
  problems,
  settings,
  study,
  vision,
)
from experiments.common.comparison import PAPER, Comparison, Panel
from experiments.common.images import averaged
from experiments.common.problems import Problem
from l2o_jax.evaluation import learning_curves
from l2o_jax.optimizees.neural_art import neural_art, to_pixels

HELD_OUT = 8  # photographs, of those to train on, for validation and tuning
SHOWN = 3  # contents of each panel in pictures.png


class Pictures(NamedTuple):
  """Pictures and the loss.

  Attributes:
    contents: Directory of 5 or more pictures (.jpg, .jpeg, .png, .webp) of 128
      x 128 pixels or more, which are cropped to squares; the last fifth by name
      is for the test.  By default 83 photographs that come with this program.
    style: Style of meta-training: starry_night, great_wave, or a file.
    new_style: Style of the panel `new`: starry_night, great_wave, or a file.
    net_weights: Trained net whose activations are compared, an .npz; by default
      the first layers of SqueezeNet, which come with this program.
    panels: Problems of the comparison, a flag for each; same: unseen contents
      in --style at 64 x 64, new: in --new_style at 128 x 128.
    content_weight: Weight of the content, >= 0.
    style_weight: Weight of the style, >= 0.
    smoothness: Weight of the differences between neighbouring pixels, >= 0.
  """

  contents: str | None = None
  style: str = 'starry_night'
  new_style: str = 'great_wave'
  net_weights: str | None = None
  panels: tuple[Literal['same', 'new'], ...] = ('same', 'new')
  content_weight: settings.NotNegative = 1.0
  style_weight: settings.NotNegative = 3.0
  smoothness: settings.NotNegative = 0.3


class Settings(NamedTuple):
  """All flags."""

  run: settings.Run = settings.Run(
    workdir='runs/neural_art',
    num_steps=128,
    evaluation_period=20,
    num_validation=8,
  )
  pictures: Pictures = Pictures()
  optimizer: settings.Optimizer = settings.Optimizer()
  lstm: settings.Lstm = settings.Lstm(0.1, 10.0)
  gate: settings.Gate = settings.Gate()
  bptt: settings.Bptt = settings.Bptt(
    unroll_length=32, learning_rate=3e-3, weights='rising'
  )
  comparison: Comparison = Comparison(
    num_test=20, num_tuning=2, baselines=PAPER
  )
  hosts: settings.Hosts = settings.Hosts()


EXPERIMENT = settings.Experiment(
  'neural_art',
  Settings(),
  {
    'quick': {'num_epochs': 300},
    'gated': {
      'optimizer': 'gated',
      'num_epochs': 120,
      'second_derivatives': True,
    },
    'full': {'num_epochs': 2000},
  },
  __doc__,
  only=settings.ONLY_OPTIMIZER,
)


def each_once(optimizee, what: str, count: int) -> jax.Array:
  """At most `count` keys, of runs with different contents."""
  keys = problems.keys(what, 64 * count)

  @jax.jit
  def number(f, keys):
    """Numbers of the contents that runs have; no step is needed."""
    judge = {'objective': lambda x, task: task[0]}
    return learning_curves(f, optax.set_to_zero(), keys, 1, **judge)[:, 0]

  _, first = np.unique(np.asarray(number(optimizee, keys)), return_index=True)
  return keys[first[:count]]


def make_optimizee(s: Settings, net, contents, style):
  """Pictures of these contents in a style."""
  names = 'content_weight', 'style_weight', 'smoothness'
  weights = {name: getattr(s.pictures, name) for name in names}
  return neural_art(contents, style, net, **weights)


def paint(problem: Problem, make_opt, keys):
  """Numbers of the contents [B], and the pictures at the end [B, H, W, 3]."""
  steps = problem.num_steps

  @jax.jit
  def ends(optimizee, keys):
    see = {'objective': lambda x, task: (task[0], to_pixels(x)), 'every': steps}
    return learning_curves(optimizee, make_opt(), keys, steps, 1, **see)

  numbers, pictures = ends(problem.optimizee, keys)
  return np.asarray(numbers[:, 0]), np.clip(np.asarray(pictures[:, 1]), 0, 1)


def draw(path, panels, mine, results) -> None:
  """pictures.png: content, style, and what each optimizer painted."""
  rows = {}
  for panel, style, contents in panels:
    keys, columns = panel.test.keys[:SHOWN], {}
    for name, row in results[panel.title].items():
      if name in mine:
        learned, theta = mine[name]
        make = functools.partial(learned.transform, theta)
      else:
        make = functools.partial(problems.make_baseline, name, row['setting'])
      numbers, columns[name] = paint(panel.test, make, keys)
    given = {
      'content': contents[numbers] / 255,
      'style': [style / 255] * len(keys),
    }
    rows[panel.title] = given | columns
  plots.pictures(path / 'pictures.png', rows)


def main(s: Settings) -> None:
  """Meta-trains, compares, and paints."""
  if comparison.shown(EXPERIMENT, s):
    return
  learned = bptt.learned_optimizer(s)
  own = s.pictures
  net = vision.read_net(own.net_weights)
  contents, unseen = vision.read_contents(own.contents)
  last = -min(HELD_OUT, len(contents) // 2)
  train, held_out = contents[:last], contents[last:]
  style = vision.read_style(own.style, 64)
  new_style = vision.read_style(own.new_style, 128, '--new_style')
  make = functools.partial(make_optimizee, s, net)

  def problem(contents, style, what, count):
    optimizee = make(contents, style)
    keys = each_once(optimizee, what, min(count, len(contents)))
    return Problem(optimizee, keys, s.run.num_steps, batch_size=1)

  base, seen = make(averaged(train, 64), style), averaged(held_out, 64)
  validation = problem(seen, style, 'validation', s.run.num_validation)
  validate = problems.mean_curve(validation, learned)
  of_panel = {
    'same': ('unseen contents, 64 x 64', 64, style),
    'new': ('a new style, 128 x 128', 128, new_style),
  }

  opened = study.opened(EXPERIMENT, s, learned, [base], validate=validate)
  with opened as (t, compare):
    progress, facts = bptt.train(t, s.bptt)
    panels = []
    for title, side, painted in (of_panel[name] for name in own.panels):
      seen, new = averaged(held_out, side), averaged(unseen, side)
      tuning = problem(seen, painted, 'tuning', s.comparison.num_tuning)
      test = problem(new, painted, 'test', s.comparison.num_test)
      panels.append((Panel(title, tuning, test), painted, new))
    only = [panel for panel, *_ in panels]
    paint_all = functools.partial(draw, t.path, panels)
    compare(progress, facts, only, also=paint_all)


if __name__ == '__main__':
  cli.run(main, EXPERIMENT)
