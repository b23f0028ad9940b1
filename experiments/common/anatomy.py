"""What is measured of a learned optimizer, as curves, and their pictures."""

import numpy as np

from experiments.common import panels, responses
from experiments.common.panels import Picture, curve
from experiments.common.plots import LEARNED, looks

DRAWN = 4  # coordinates
SWEEP = np.linspace(-3, 3, 61)  # gradients, in root mean squares
POINTS = 10  # steps at which time-scales are measured

PICTURES = {
  'sweeps': Picture(
    'Update against gradient, in the state of the step; dots: as it happened; '
    'dashed: {last}',
    4,
    'gradient / its root mean square',
    'update',
  ),
  'proposals': Picture(
    'Updates of single coordinates; all optimizers see the same gradients',
    4,
    'step',
    'update',
  ),
  'impulses': Picture(
    'Descent by one additional gradient (a root mean square of it), step after '
    'step; median and quartiles of coordinates',
    4,
    'steps after the gradient',
    'descent',
  ),
  'scales': Picture(
    'Left: descent in all by an additional gradient of 1.  Right: how late it '
    'comes.  Median and quartiles of coordinates',
    2,
    'step of the gradient',
    {'step size': 'effective step size', 'lag': 'mean lag, steps'},
    xscale='log',
    yscale='log',
  ),
  'magnitudes': Picture(
    'Every optimizer on its own run, root mean squares over all coordinates',
    3,
    'step',
    {'loss': 'loss', 'gradient': 'gradient', 'update': 'update'},
    yscale='log',
  ),
}


def measure(label: str, mine, others: dict, record: dict, s):
  """({picture: {panel: {name: curve}}}, rows of summary.json) of one theta.

  Args:
    label: its name.
    mine: the learned optimizer as a `responses.Subject`.
    others: {name: Subject} of hand-designed ones with the same record.
    record: of the chosen coordinates, {name: gradients [T]}.
    s: the flags.
  """
  everyone = {label: mine, **others}
  drawn, last = list(record)[:DRAWN], list(others)[-1]
  rms = np.sqrt(np.mean(np.square(list(record.values())), 1))  # [C]
  steps = np.arange(s.num_steps)
  found = {name: {} for name in PICTURES if name != 'magnitudes'}
  updates = {k: np.asarray(responses.proposals(v)) for k, v in everyone.items()}
  for i, name in enumerate(drawn):
    curves = {k: curve(steps, u[:, i]) for k, u in updates.items()}
    found['proposals'][f'{label}: {name}'] = curves
  swept = {k: responses.sweep(everyone[k]) for k in (label, last)}
  for t in s.times:
    at = {k: np.asarray(f(t, SWEEP[:, None] * rms)) for k, f in swept.items()}
    curves = found['sweeps'].setdefault(f'{label}, step {t}', {})
    for i, name in enumerate(drawn):
      curves[name] = curve(SWEEP, at[label][:, i])
      curves[f'_{last}, {name}'] = curve(SWEEP, at[last][:, i])
      x = record[name][t] / rms[i]
      curves[f'_{name}'] = curve([x], updates[label][t, i : i + 1])
  rows = {'like': likeness(updates, label), 'impulse': {}}
  lags = np.arange(s.window)
  final = s.num_steps - s.window
  points = {*s.times, *np.geomspace(1, final, POINTS).astype(int).tolist()}
  for k, subject in everyone.items():
    respond = responses.impulse(subject, s.window)
    by_step = {t: -np.asarray(respond(t)) for t in sorted(points)}
    size = np.array([r.sum(0) for r in by_step.values()])  # [points, C]
    lag = np.array([responses.time_scale(r) for r in by_step.values()])
    for what, values in (('effective step size', size), ('mean lag', lag)):
      panel = found['scales'].setdefault(f'{label}: {what}', {})
      panel[k] = curve(sorted(points), values)
    for t in s.times:
      panel = found['impulses'].setdefault(f'{label}, gradient at {t}', {})
      panel[k] = curve(lags, by_step[t] * rms)
    medians = zip(by_step, np.nanmedian(size, 1), np.nanmedian(lag, 1))
    rows['impulse'][k] = {
      str(t): {'effective_step_size': float(a), 'mean_lag': float(b)}
      for t, a, b in medians
    }
  return found, rows


def likeness(updates: dict, label: str) -> dict:
  """How the updates [T, C] of a learned optimizer are like those of others.

  `cosine`: of all its updates with those of another; `opposite`: share of its
  updates with the other sign; `persistence`: Σ_t u_t u_{t+1} / Σ_t u_t², 1 for
  updates that stay the same and 0 for noise, median over coordinates;
  `length`: its root mean square over that of the other.
  """
  u, found = updates[label], {}
  for name, v in updates.items():
    norms = np.linalg.norm(u), np.linalg.norm(v)
    both = (u != 0) & (v != 0)
    again = (v[1:] * v[:-1]).sum(0) / np.maximum((v**2).sum(0), 1e-30)
    found[name] = {
      'cosine': float((u * v).sum() / (norms[0] * norms[1])),
      'opposite': float(np.mean((u * v < 0)[both])),
      'persistence': float(np.median(again)),
      'length': float(norms[0] / norms[1]),
    }
  return found


def magnitudes(runs: dict) -> dict:
  """{panel: {name: curve}} of own runs {name: (gradients, updates, values)}."""
  found = {'loss': {}, 'gradients': {}, 'updates': {}}
  rms = lambda x: np.sqrt(np.mean(np.square(np.asarray(x, np.float64)), 1))
  for name, (gradients, updates, values) in runs.items():
    curves = zip(found.values(), (values, rms(gradients), rms(updates)))
    for panel, y in curves:
      panel[name] = curve(np.arange(len(values)), y)
  return found


def _coordinates(curves_of, last) -> dict:
  """Styles of the curves of the sweeps."""
  names = [name for name in curves_of if not name.startswith('_')]
  found = {}
  for name, color in zip(names, LEARNED):
    found[name] = {'color': color, 'lw': 2}
    found[f'_{last}, {name}'] = {'color': color, 'lw': 1, 'ls': '--'}
    found[f'_{name}'] = {'color': color, 'marker': 'o', 'ms': 6}
  return found


def draw(path, pictures: dict, learned, others) -> None:
  """All pictures.

  Args:
    path: of the directory.
    pictures: {picture: {panel: {name: curve}}}.
    learned: names of learned optimizers.
    others: names of the others, the last of which is in the sweeps.
  """
  everyone = looks([*learned, *others], learned)
  for style in everyone.values():
    style.pop('markevery', None)
    style.pop('marker', None)
  for name, of in pictures.items():
    how = everyone
    if name == 'sweeps':
      how = {}
      for curves in of.values():
        how |= _coordinates(curves, others[-1])
    picture = PICTURES[name]
    picture = picture._replace(title=picture.title.format(last=others[-1]))
    panels.draw(path / f'{name}.png', picture, of, how)
