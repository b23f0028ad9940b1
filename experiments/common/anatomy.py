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
    'Update against gradient, in the state of that step.  Marks: as it '
    'happened.  Dashed: {last}, after the same gradients',
    4,
    'gradient / its root mean square',
    'update',
  ),
  'proposals': Picture(
    'Updates of single coordinates; all optimizers see the same gradients.  '
    'What leaves the range is cut',
    4,
    'step',
    'update',
    reach=1.5,
  ),
  'impulses': Picture(
    'Additional updates, step after step, by one additional gradient of the '
    'usual size; thin: by a small one.  Median and quartiles of coordinates',
    4,
    'steps after the gradient',
    'additional descent',
  ),
  'scales': Picture(
    'Left: all additional descent by an additional gradient, over the gradient.'
    '\nRight: how late it comes.  Median and quartiles of coordinates',
    2,
    'step of the gradient',
    {'step size': 'effective step size', 'lag': 'mean lag, steps'},
    xscale='log',
    yscale={'step size': 'log', 'lag': 'linear'},
  ),
  'magnitudes': Picture(
    'Every optimizer on its own run; root mean squares over all coordinates',
    3,
    'step',
    {'loss': 'loss', 'gradient': 'gradient', 'update': 'update'},
    yscale='log',
  ),
}
SMALL = '{}, linearised'


def measure(label: str, mine, others: dict, record: dict, s):
  """({picture: {panel: {name: curve}}}, rows of summary.json) of one theta.

  Args:
    label: its name.
    mine: the learned optimizer as a `responses.Subject`.
    others: {name: Subject} of hand-designed ones with the same record.
    record: of the chosen coordinates, {name: gradients [T]}.
    s: the flags.
  """
  everyone, last = {label: mine, **others}, list(others)[-1]
  rms = np.sqrt(np.mean(np.square(list(record.values())), 1))  # [C]
  rms = np.maximum(rms, 1e-30)
  updates = {k: np.asarray(responses.proposals(v)) for k, v in everyone.items()}
  along = {
    f'{label}: {name}': {
      k: curve(np.arange(s.num_steps), u[:, i]) for k, u in updates.items()
    }
    for i, name in enumerate(list(record)[:DRAWN])
  }
  pair = {label: mine, last: others[last]}
  found = {'sweeps': sweeps(pair, updates[label], record, rms, s.times)}
  found['proposals'] = along
  more, rows = impulses(everyone, rms, s)
  return found | more, {'like': likeness(updates, label), 'impulse': rows}


def sweeps(pair: dict, updates, record: dict, rms, times) -> dict:
  """Panels of updates against gradients: a learned optimizer and another."""
  respond = {name: responses.sweep(subject) for name, subject in pair.items()}
  (label, last), found = pair, {}
  for t in times:
    at = {k: np.asarray(f(t, SWEEP[:, None] * rms)) for k, f in respond.items()}
    curves = found.setdefault(f'{label}, step {t}', {})
    for i, name in enumerate(list(record)[:DRAWN]):
      curves[name] = curve(SWEEP, at[label][:, i])
      curves[f'_{last}, {name}'] = curve(SWEEP, at[last][:, i])
      x = np.clip(record[name][t] / rms[i], SWEEP[0], SWEEP[-1])
      curves[f'_{name}'] = curve([x], updates[t, i : i + 1])
  return found


def impulses(everyone: dict, rms, s) -> tuple[dict, dict]:
  """({picture: panels}, {name: {step: numbers}}); the first one is learned."""
  label, lags = next(iter(everyone)), np.arange(s.window)
  points = np.geomspace(1, s.num_steps - s.window, POINTS).astype(int)
  points = sorted({*s.times, *points.tolist()})
  found, rows = {'impulses': {}, 'scales': {}}, {}
  respond = {k: responses.impulse(v, s.window) for k, v in everyone.items()}
  wanted = [(k, k, rms) for k in everyone]
  for name, k, size in [*wanted, (SMALL.format(label), label, None)]:
    by_step = {t: -np.asarray(respond[k](t, size)) for t in points}
    step = np.array([r.sum(0) for r in by_step.values()])  # [points, C]
    lag = np.array([responses.time_scale(r) for r in by_step.values()])
    for what, values in (('effective step size', step), ('mean lag', lag)):
      panel = found['scales'].setdefault(f'{label}: {what}', {})
      panel[name] = curve(points, values, band=size is not None)
    for t in s.times if k in (label, list(everyone)[-1]) else ():
      panel = found['impulses'].setdefault(f'{label}, gradient at {t}', {})
      panel[name] = curve(lags, by_step[t] * rms, band=size is not None)
    rows[name] = {
      str(t): {'effective_step_size': float(a), 'mean_lag': float(b)}
      for t, a, b in zip(points, np.nanmedian(step, 1), np.nanmedian(lag, 1))
    }
  return found, rows


def likeness(updates: dict, label: str) -> dict:
  """How the updates [T, C] of a learned optimizer are like those of others.

  `cosine`: of all its updates with those of another; `opposite`: share of its
  updates with the other sign; `persistence`: Σ_t u_t u_{t+1} / Σ_t u_t², 1 for
  updates that stay the same and 0 for noise, median over coordinates;
  `length`: its root mean square over the other's.
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
  for name, color, marker in zip(names, LEARNED, 'os^D'):
    mark = {'color': color, 'marker': marker}
    found[name] = {'lw': 2, 'ms': 6, 'markevery': [], **mark}  # in the legend
    found[f'_{last}, {name}'] = {'color': color, 'lw': 1, 'ls': '--'}
    found[f'_{name}'] = {'ms': 8, 'mec': 'white', 'zorder': 4, **mark}
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
  for name in learned:
    everyone[SMALL.format(name)] = {**everyone[name], 'lw': 0.9}
  for name, of in pictures.items():
    how = everyone
    if name == 'sweeps':
      how = {}
      for curves in of.values():
        how |= _coordinates(curves, others[-1])
    picture = PICTURES[name]
    picture = picture._replace(title=picture.title.format(last=others[-1]))
    panels.draw(path / f'{name}.png', picture, of, how)
