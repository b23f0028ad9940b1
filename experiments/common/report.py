"""Statistics of a comparison, its files, its tables."""

from collections.abc import Sequence

import numpy as np

from experiments.common import plots
from experiments.common import run as run_lib
from experiments.common.cli import say
from experiments.common.tables import columns, read_csv, write_csv

_NAMES = 'panel', 'optimizer'
_COLUMNS = 'step', 'mean', 'quartile_1', 'median', 'quartile_3'


def _moments(losses):
  """mean, quartile_1, median, quartile_3 over tasks [B, ...]."""
  x = np.asarray(losses, np.float64)
  with np.errstate(invalid='ignore', over='ignore'):  # what diverged: inf, nan
    return x.mean(0), *np.quantile(x, [0.25, 0.5, 0.75], axis=0)


def statistics(curves: dict, settings: dict) -> dict[str, dict]:
  """{optimizer: statistics of its losses [B, K + 1]}, with ranks.

  `mean` is over steps and tasks, `final` over tasks.  What diverged comes last.
  """
  rows = {}
  for name, losses in curves.items():
    final = np.asarray(losses[:, -1], np.float64)
    mean, low, median, high = (float(v) for v in _moments(final))
    with np.errstate(invalid='ignore', over='ignore'):
      spread = final.std(ddof=1) if len(final) > 1 else np.nan
      rows[name] = {
        'setting': settings.get(name),
        'mean': float(np.mean(losses, dtype=np.float64)),
        'final': mean,
        'final_stderr': float(spread / np.sqrt(len(final))),
        'final_median': median,
        'final_quartiles': [low, high],
      }
  for by in ('mean', 'final'):
    values = [row[by] for row in rows.values()]
    for name, rank in zip(rows, ranks(values)):
      rows[name][f'rank_by_{by}'] = rank
  return rows


def ranks(values) -> list[float]:
  """Ranks from 1 on; equal values share the mean of theirs, nan is last."""
  values = np.asarray(values, float)
  values = np.where(np.isnan(values), np.inf, values)
  below = [np.sum(values < v) for v in values]
  equal = [np.sum(values == v) for v in values]
  return [float(b + (e + 1) / 2) for b, e in zip(below, equal)]


def mean_ranks(panels: dict) -> dict[str, dict]:
  """{optimizer: {'mean', 'final'}}, ranks by each, mean over the panels."""
  rank = lambda name, by: [of[name][f'rank_by_{by}'] for of in panels.values()]
  return {
    name: {by: float(np.mean(rank(name, by))) for by in ('mean', 'final')}
    for name in next(iter(panels.values()))
  }


def margin(losses: dict, name: str, others: Sequence[str]) -> np.ndarray:
  """Best competitor's loss less one's own, for each function, [B, T + 1].

      min_c f_b(x_t of c) - f_b(x_t)

  (Li & Malik 2016, section 5: the mean over b is positive where `name` beats
  all others.)  The best competitor is chosen separately for every function and
  step.  A competitor above f_b(x_0), such as one that diverged, counts as
  f_b(x_0).

  Args:
    losses: {optimizer: [B, T + 1]}.
    name: whose margin.
    others: competitors.
  """
  found = [np.asarray(losses[other], np.float64) for other in others]
  best = np.min([np.where(x <= x[:, :1], x, x[:, :1]) for x in found], 0)
  own = np.asarray(losses[name], np.float64)
  return best - np.where(np.isnan(own), np.inf, own)


def margins(losses: dict, name: str, together: Sequence[str]) -> dict:
  """{competitors: margin}, over some of them together, and over each."""
  groups = [tuple(together)] + [(other,) for other in losses if other != name]
  return {', '.join(g): margin(losses, name, g) for g in groups if g}


def victory(margins: dict, horizon: int) -> dict[str, dict]:
  """Summarizes mean margins: from step 2 to the horizon, and after it."""
  rows = {}
  for name, each in margins.items():
    mean = each.mean(0)
    before, after = mean[2 : horizon + 1], mean[horizon + 1 :]
    rows[name] = {
      'mean_2_to_horizon': float(before.mean()),
      'positive_2_to_horizon': float((before > 0).mean()),
      'positive_after': float((after > 0).mean()) if len(after) else None,
    }
  return rows


def write_curves(path, panels: dict, every: dict[str, int]) -> None:
  """One line for each panel, optimizer and step: mean and quartiles."""
  rows = (
    (title, name, i * every.get(title, 1), *row)
    for title, curves in panels.items()
    for name, losses in curves.items()
    for i, row in enumerate(zip(*_moments(losses)))
  )
  write_csv(path, (*_NAMES, *_COLUMNS), rows)


def read_curves(path) -> dict[str, dict[str, dict[str, np.ndarray]]]:
  """{panel: {optimizer: {'step', 'mean', 'quartile_1', ...}}}."""
  return read_csv(path, _NAMES, _COLUMNS)


def draw(path) -> None:
  """learning_curves.png of a run directory's curves.csv and summary.json."""
  summary = run_lib.read_summary(path)
  curves = read_curves(path / 'curves.csv')
  picture = path / 'learning_curves.png'
  plots.learning_curves(picture, curves, summary['learned'])


def show(path) -> None:
  """Prints the tables of a run directory's summary.json."""
  summary = run_lib.read_summary(path)
  panels, by = summary['panels'], summary['by']
  parts = [table(title, rows, by) for title, rows in panels.items()]
  if len(panels) > 1:
    parts.append(_rank_table(summary['mean_rank'], by))
  if 'margin_of_victory' in summary:
    parts.append(_margin_table(summary['margin_of_victory']))
  files = 'learning_curves.png summary.json curves.csv theta.npz'
  say('\n'.join([*parts, f'\nwritten: {path}/{files}']))


def _number(value, digits=4):
  return 'diverges' if value is None else f'{value:.{digits}g}'


def _setting(setting):
  show = lambda v: f'{v:.3g}' if isinstance(v, float) else str(v)
  return ', '.join(f'{k} {show(v)}' for k, v in (setting or {}).items())


def table(title: str, rows: dict[str, dict], by: str) -> str:
  """One panel as text, the best first."""
  numbers = 'mean', 'final', '± s.e.', 'median', 'quartiles'
  lines = []
  for name, row in sorted(rows.items(), key=lambda kv: kv[1][f'rank_by_{by}']):
    between = ' … '.join(_number(v) for v in row['final_quartiles'])
    error = row['final_stderr']  # none of one task, or where some diverged
    error = '–' if error is None else _number(error, 2)
    mean, final, median = (
      _number(row[key]) for key in ('mean', 'final', 'final_median')
    )
    setting = _setting(row['setting'])
    lines.append([name, setting, mean, final, error, median, between])
  return columns(title, ['optimizer', 'setting', *numbers], lines, left=2)


def _rank_table(rows, by):
  order = sorted(rows.items(), key=lambda kv: kv[1][by])
  lines = [[n, f'{r["mean"]:.2f}', f'{r["final"]:.2f}'] for n, r in order]
  return columns('', ['mean rank', 'by mean', 'by final'], lines)


def _margin_table(rows):
  keys = ('mean_2_to_horizon', 4), ('positive_2_to_horizon', 2)
  head = 'margin of victory over', 'mean, 2 … T', '> 0'
  of = lambda row: [_number(row[key], digits) for key, digits in keys]
  return columns('', head, [[name, *of(row)] for name, row in rows.items()])
