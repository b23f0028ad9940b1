"""What many results say together: ratios to tuned Adam, and tables."""

import itertools

import numpy as np

from experiments.common.report import ranks
from experiments.common.tables import columns

REFERENCE = 'ADAM'
_RESAMPLES = 500  # of the seeds, for an interval


def _nan_as_inf(x):
  return np.where(np.isnan(x), np.inf, x)


def interquartile_mean(x) -> float:
  """The mean of what lies between the quartiles; nan counts as inf."""
  x = np.sort(_nan_as_inf(np.ravel(x)))
  quarter = len(x) // 4
  return float(np.mean(x[quarter : len(x) - quarter]))


def _losses(values):
  """Losses, with inf for what is not finite; in the file it is null."""
  found = np.array([np.inf if v is None else v for v in values], float)
  return np.where(np.isfinite(found), found, np.inf)


def ratios(results: dict, horizon: int) -> dict[str, np.ndarray]:
  """{optimizer: losses over the mean of tuned Adam, [tasks, seeds]}.

  Where tuned Adam has diverged nothing is known: all ratios are 1.  Where its
  loss is 0 the ratio of 0 is 1.

  Args:
    results: {task: {optimizer: {horizon: what `judging.judged` found}}}.
    horizon: steps of the runs.
  """
  found = {}
  for of_task in results.values():
    adam = np.mean(_losses(of_task[REFERENCE][horizon]['loss']))
    for name, ends in of_task.items():
      losses = _losses(ends[horizon]['loss'])
      if not np.isfinite(adam):
        row = np.ones_like(losses)
      elif adam:
        row = losses / adam
      else:
        row = np.where(losses > 0, np.inf, 1.0)
      found.setdefault(name, []).append(row)
  return {name: np.array(rows) for name, rows in found.items()}


def mean_ratios(results, horizons) -> dict:
  """{horizon: {task: {optimizer: mean over seeds}}}."""
  found = {}
  for horizon in horizons:
    of = {n: x.mean(1) for n, x in ratios(results, horizon).items()}
    found[horizon] = {
      task: {name: float(x[i]) for name, x in of.items()}
      for i, task in enumerate(results)
    }
  return found


def _interval(x):
  """95 % of the interquartile mean; seeds are drawn anew within each task."""
  random = np.random.default_rng(0)
  rows, seeds = x.shape
  drawn = random.integers(seeds, size=(_RESAMPLES, rows, seeds))
  means = [interquartile_mean(x[np.arange(rows)[:, None], d]) for d in drawn]
  with np.errstate(invalid='ignore'):  # nan between two numbers, one inf
    ends = np.quantile(means, [0.025, 0.975])
  return [float(v) for v in _nan_as_inf(ends)]


def aggregate(results: dict, horizons) -> dict:
  """{horizon: {optimizer: interquartile mean of the ratios, and more}}."""
  summary = {}
  for horizon in horizons:
    found = ratios(results, horizon)
    means = np.array([x.mean(1) for x in found.values()])  # [optimizers, tasks]
    places = np.stack([ranks(x) for x in means.T], 1)
    summary[horizon] = {}
    for i, (name, x) in enumerate(found.items()):
      ends = [of_task[name][horizon] for of_task in results.values()]
      summary[horizon][name] = {
        'interquartile_mean': interquartile_mean(x),
        'interval': _interval(x),
        'mean_rank': float(places[i].mean()),
        'worst': float(means[i].max()),
        'ahead_of_adam': int(np.sum(means[i] < 1 - 1e-6)),
        'tasks': len(ends),
        'diverged': sum(end['diverged'] for end in ends),
        'rose': sum(end['rose'] for end in ends),
        'runs': int(x.size),
      }
  return summary


def steps_to_target(of_task: dict, name: str, every: int) -> float:
  """The first judged step at or below tuned Adam's last loss; inf: none."""
  last = max(of_task[name])
  target = np.mean(_losses(of_task[REFERENCE][last]['loss']))
  curve = _losses(of_task[name][last]['curve'])
  reached = np.flatnonzero(curve <= target * (1 + 1e-6))
  return float(every * reached[0]) if reached.size else np.inf


def cost_curves(results: dict, every: int) -> tuple[dict, dict]:
  """Losses against steps, milliseconds and GFLOPs of the longest runs.

  Rivals are tuned for that horizon, so at an earlier step they may be higher
  than those of the tables, which are tuned for it.

  Returns:
    (panels as `plots.learning_curves` wants them, {title: x label}).
  """
  costs = {  # of a step
    'steps': lambda end: 1,
    'ms': lambda end: end['ms'],
    'GFLOPs': lambda end: 1e-9 * (end['flops'] or np.nan),
  }
  panels, labels = {}, {}
  for task, (unit, cost) in itertools.product(results, costs.items()):
    curves = {}
    for name, ends in results[task].items():
      end = ends[max(ends)]
      low, high = map(_losses, end['quartiles'])
      mean = _losses(end['curve'])
      x = every * cost(end) * np.arange(len(mean))
      band = {'quartile_1': low, 'quartile_3': high}
      curves[name] = {'step': x, 'mean': mean, **band}
    if all(np.isfinite(curve['step'][-1]) for curve in curves.values()):
      title = f'{task.replace("_", " ")}: loss against {unit}'
      panels[title], labels[title] = curves, unit
  return panels, labels


def _mean(end, key):
  """The mean over the seeds as text; nothing where it is not known."""
  values = [v for v in end.get(key, ()) if v is not None and not np.isnan(v)]
  return f'{np.mean(values):.4g}' if values else ''


def _task_table(task, of_task, horizons, every):
  """Loss at each horizon, then what the last one says beside it."""
  last = max(horizons)
  extra = ['held out', 'accuracy', 'norm', 'ms/step', "to Adam's"]
  head = ['optimizer', *map(str, horizons), 'rate', *extra]
  rows = []
  for name, ends in of_task.items():
    losses = [f'{np.mean(_losses(ends[h]["loss"])):.4g}' for h in horizons]
    rate, ms = f'{ends[last]["rate"]:.3g}', f'{ends[last]["ms"]:.3g}'
    beside = [_mean(ends[last], k) for k in ('held_out', 'accuracy', 'norm')]
    steps = f'{steps_to_target(of_task, name, every):.0f}'
    rows.append([name, *losses, rate, *beside, ms, steps])
  title = f'{task}: mean loss after so many steps; the rest at {last}'
  return columns(title, head, rows)


def _overall_table(rows, horizon):
  head = ['optimizer', 'IQM', '95 %', 'rank', 'worst', 'ahead', 'bad']
  lines = []
  order = sorted(rows.items(), key=lambda kv: kv[1]['interquartile_mean'])
  for name, r in order:
    low, high = r['interval']
    mean, interval = f'{r["interquartile_mean"]:.3f}', f'{low:.3f} … {high:.3f}'
    rank, worst = f'{r["mean_rank"]:.2f}', f'{r["worst"]:.3g}'
    ahead = f'{r["ahead_of_adam"]}/{r["tasks"]}'
    bad = f'{r["diverged"] + r["rose"]}/{r["runs"]}'
    lines.append([name, mean, interval, rank, worst, ahead, bad])
  what = 'loss over the loss of Adam, tuned for each task and horizon'
  return columns(f'{horizon} steps: {what}', head, lines)


LEGEND = """
held out: loss on other data; norm: of the parameters; to Adam's: steps until
the mean loss is at or below the last one of tuned Adam, inf: never; IQM:
interquartile mean of the ratios over tasks and seeds, with a bootstrap interval
over seeds; rank: mean over tasks; worst: the largest mean ratio of a task;
ahead: tasks with a mean ratio below 1; bad: runs that diverged, or rose after
they had fallen.
"""


def text(results: dict, summary: dict, every: int) -> str:
  """All tables, and what their columns say."""
  horizons = list(summary)
  how = horizons, every
  parts = [_task_table(task, of, *how) for task, of in results.items()]
  parts += [_overall_table(rows, horizon) for horizon, rows in summary.items()]
  parts.append(LEGEND)
  return '\n'.join(parts)
