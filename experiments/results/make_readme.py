"""Writes README.md beside this file from the run.json of every kept run.

Copy and paste:
  python -m experiments.results.make_readme

A row of the table is an entry of a run's `headline`: figure, ours, best_tuned,
paper, and `notes`, a heading of NOTES.md, if another command than the run's
makes it.  All else on the page stands in make_readme.md.
"""

import json
import pathlib

RESULTS = pathlib.Path(__file__).resolve().parent
TEMPLATE = RESULTS / 'make_readme.md'
ORDER = [
  'quadratics',
  'mnist',
  'architectures',
  'analysis',
  'cifar10',
  'neural_art',
  'learning_to_optimize',
]
COLUMNS = 'figure', 'command', 'minutes', 'memory', 'ours', 'tuned', 'paper'


def load(path):
  return json.loads(path.read_text())


def rank(path):
  """Experiments in the order of the papers, their runs by figure."""
  experiment, figure = path.parts[-3], load(path)['headline'][0]['figure']
  place = ORDER.index(experiment) if experiment in ORDER else len(ORDER)
  return place, figure


def minutes(run):
  """`14 + 3`: meta-training and comparison, as far as they are known."""
  training, total = run.get('minutes'), run.get('total_minutes')
  if training is None and run.get('seconds'):
    training = run['seconds'] / 60
  if training is None:
    return '–' if total is None else f'{total:.3g} in all'
  rest = '' if total is None else f' + {total - training:.3g}'
  return f'{training:.3g}{rest}'


def rows(path):
  """The table's lines of one run; the command stands in its first."""
  run, link = load(path), path.parent.relative_to(RESULTS)
  command = run['command'] and f'`{run["command"]}`'
  command = command or f'see [NOTES.md]({link}/NOTES.md)'
  memory = run.get('memory_mb')
  memory = '–' if memory is None else f'{memory:.0f} MB'
  cells = command, minutes(run), memory
  for i, entry in enumerate(run['headline']):
    figure = f'[{entry["figure"]}]({link})'
    numbers = [entry[name] or '–' for name in ('ours', 'best_tuned', 'paper')]
    how = cells if i == 0 else ('the same', '', '')
    if 'notes' in entry:
      see = f'see [NOTES.md]({link}/NOTES.md#{entry["notes"]})'
      how = f'{command}, then {see}' if i == 0 else see, *how[1:]
    yield figure, *how, *numbers


def readme() -> str:
  """The page, as it should be in README.md."""
  lines = [COLUMNS, ['---'] * len(COLUMNS)]
  for path in sorted(RESULTS.glob('*/*/run.json'), key=rank):
    lines += rows(path)
  text = ''.join('| ' + ' | '.join(cells) + ' |\n' for cells in lines)
  return TEMPLATE.read_text().replace('{table}', text)


if __name__ == '__main__':
  (RESULTS / 'README.md').write_text(readme())
