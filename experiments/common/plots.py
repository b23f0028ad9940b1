"""Figures of learning curves, readable in grey."""

import itertools
import string
import textwrap
from collections.abc import Sequence

import numpy as np

from l2o_jax import files

# Of learned optimizers: wide, the first six solid.  Of others: dashes, markers.
LEARNED = ('black', '#d55e00', '#0072b2', '#009e73', '#cc79a7', '#e69f00')
_OTHERS = ('#0072b2', '#e69f00', '#009e73', '#cc79a7', '#56b4e9', '#7f7f7f')
_DASHES = ('--', '-.', ':', (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
_FILLED = 'DPXh'  # of learned optimizers, where there are no lines
_MARKERS = ('o', 's', '^', 'v', 'D', 'x', '+', '*')
SIZE = 5.0, 3.6  # inches of a panel
LEGEND, LINE = 2.8, 0.21  # inches: width of the legend, height of a name
RANGE = 1.5  # the highest loss that is shown, over that at the start
MANY = 500  # losses of a curve, from which on it is smoothed


def looks(names: Sequence[str], learned: Sequence[str]) -> dict[str, dict]:
  """{name: how its curve is drawn}, the same in all panels."""
  styles = {}
  others = zip(*map(itertools.cycle, (_OTHERS, _DASHES, _MARKERS)))
  # Where there are more than colors, the next round has dashes.
  own = ((color, dash) for dash in ('-', *_DASHES) for color in LEARNED)
  for name in names:
    if name in learned:
      color, dash = next(own)
      styles[name] = {'color': color, 'ls': dash, 'lw': 2.6, 'zorder': 3}
    else:
      color, dash, marker = next(others)
      dashed = {'ls': dash, 'marker': marker, 'ms': 4, 'markevery': 0.12}
      styles[name] = {'color': color, 'lw': 1.3, **dashed}
  return styles


def learning_curves(
  path, panels: dict, learned: Sequence[str], xlabels: dict | None = None
) -> None:
  """Mean loss against step, a panel for each problem.

  Learned optimizers have a band from the first to the third quartile.

  The range of a panel shows who is in the race: curves far above the
  start are cut off.  Curves of 500 losses or more, which minibatches make
  noisy, are drawn as the means of about a hundred stretches.  A panel with
  means below 0, such as the margin of victory, has a linear axis with a line at
  0; on the others what is 0 is not drawn.

  Args:
    path: of the PNG.
    panels: {title: {optimizer: {'step', 'mean', 'quartile_1', 'quartile_3'}}}.
    learned: names drawn solid and wide.
    xlabels: {title: what 'step' is in that panel}, where it is not the step.
  """
  figure, axes = grid(panels, 3, letters=len(panels) > 1)
  names = dict.fromkeys(name for curves in panels.values() for name in curves)
  styles = looks(list(names), learned)
  for axis, (title, curves) in zip(axes, panels.items()):
    _panel(axis, curves, styles)
    if title in (xlabels or {}):
      axis.set_xlabel(xlabels[title])
      axis.locator_params('x', nbins=4)
      axis.xaxis.set_major_formatter('{x:g}')
    else:
      axis.set_xlabel('step')
      axis.locator_params('x', integer=True)
  save(figure, path)


def pictures(path, panels: dict) -> None:
  """Pictures in a grid: columns are what they are of, rows are cases.

  Args:
    path: of the PNG.
    panels: {title: {column: [picture [H, W, 3] in [0, 1], ...]}}, all with the
      same columns.
  """
  from matplotlib.figure import Figure

  columns = list(next(iter(panels.values())))
  rows = [
    (t, i) for t, of in panels.items() for i in range(len(of[columns[0]]))
  ]
  inches = 1.75 * len(columns), 1.85 * len(rows) + 0.4
  figure = Figure(figsize=inches, layout='constrained')
  axes = figure.subplots(len(rows), len(columns), squeeze=False)
  for (title, i), line in zip(rows, axes):
    for name, axis in zip(columns, line):
      axis.imshow(panels[title][name][i], interpolation='nearest')
      axis.set(xticks=[], yticks=[])
    if i == 0:
      line[0].set_ylabel(title, fontsize=9)
  for name, axis in zip(columns, axes[0]):
    axis.set_title(textwrap.fill(name, 22), fontsize=9)
  with files.replacing(path) as f:
    figure.savefig(f, format='png', dpi=110)


def ratios(path, panels: dict, learned: Sequence[str]) -> None:
  """Loss over the loss of tuned Adam: tasks are rows, horizons are panels.

  Left of the line at 1 an optimizer ends lower.  What lies beyond the axis is
  drawn at its end.

  Args:
    path: of the PNG.
    panels: {horizon: {task: {optimizer: ratio}}}.
    learned: names drawn filled, the first of them large and on top.
  """
  tasks = list(next(iter(panels.values())))
  names = list(next(iter(panels.values()))[tasks[0]])
  height = 1.2 + 0.28 * max(len(tasks), len(names))  # the legend fits
  titles, size = [f'{horizon} steps' for horizon in panels], (3.2, height)
  figure, axes = grid(titles, len(panels), size, letters=False, sharey=True)
  styles, low, high = looks(names, learned), 0.02, 20.0
  ticks = low, 0.1, 0.3, 1, 3, high
  labels = [f'≤{low:g}', *(f'{x:g}' for x in ticks[1:-1]), f'≥{high:g}']
  for axis, rows in zip(axes, panels.values()):
    for name in names:
      x = np.array([rows[task][name] for task in tasks])
      x = np.clip(np.nan_to_num(x, nan=high, posinf=high), low, high)
      mine, first = name in learned, name in learned[:1]
      color = styles[name]['color']
      marker = styles[name].get('marker') or _FILLED[learned.index(name) % 4]
      look = {'s': 55 if first else 28, 'zorder': 2 + mine + first}
      look |= {'marker': marker, 'color': color}
      if not mine and marker not in 'x+*':
        look['facecolors'] = 'none'
      axis.scatter(x, np.arange(len(tasks)), label=name, **look)
    axis.axvline(1, color='black', lw=0.8)
    axis.set_xscale('log')
    axis.set_xlim(low * 0.9, high * 1.1)
    axis.set_xticks(ticks, labels)
    axis.xaxis.set_minor_formatter('')
    axis.set_xlabel("loss / tuned Adam's loss")
  axes[0].set_yticks(range(len(tasks)), [t.replace('_', ' ') for t in tasks])
  axes[0].invert_yaxis()
  save(figure, path, handlelength=2)


def final_losses(
  path, panels: dict, learned: Sequence[str], cross: tuple | None = None
) -> None:
  """Final loss against hidden units or activation, a panel for each depth.

  Bars are standard errors.  Numbers on the x axis are on a logarithmic scale;
  words have places of their own.

  Args:
    path: of the PNG.
    panels: {title: ([x], {optimizer: (means [X], errors [X])})}.
    learned: names drawn solid and wide.
    cross: (panel's title, x, y), where dashed lines cross.
  """
  names = dict.fromkeys(name for _, rows in panels.values() for name in rows)
  styles = looks(list(names), learned)
  figure, axes = grid(panels, 2)
  for axis, (title, (x, rows)) in zip(axes, panels.items()):
    words = isinstance(x[0], str)
    places = np.arange(len(x)) if words else np.array(x, float)
    for i, (name, (means, errors)) in enumerate(rows.items()):
      style = {'marker': 'D', 'ms': 5, **styles[name], 'markevery': None}
      style |= {'ls': 'none'} if words else {}
      at = places + words * 0.08 * (i - (len(rows) - 1) / 2)  # side by side
      axis.errorbar(at, means, errors, label=name, elinewidth=1, **style)
    axis.set_yscale('log')
    if words:
      axis.set_xlim(-0.5, len(x) - 0.5)
    else:
      axis.set_xscale('log')
    axis.set_xticks(places, x)
    axis.set_xticks([], minor=True)
    plain_numbers(axis)
    if cross and title == cross[0]:
      axis.axvline(cross[1], color='black', ls='--', lw=0.8)
      axis.axhline(cross[2], color='black', ls='--', lw=0.8)
    axis.set_xlabel('activation' if words else 'hidden units of a layer')
    axis.set_ylabel('mean final loss')
  save(figure, path)


def grid(titles, columns: int, size=SIZE, *, fontsize=11, letters=True, **how):
  """A figure with room for a legend, and its axes row by row.

  Args:
    titles: of the panels.
    columns: panels side by side, at most.
    size: inches of a panel.
    fontsize: of the titles.
    letters: before the titles: (a), (b) ... (z), (aa) ...
    **how: see matplotlib's `subplots`.
  """
  from matplotlib.figure import Figure

  titles = list(titles)
  columns = min(columns, len(titles))
  rows = -(-len(titles) // columns)
  inches = size[0] * columns + LEGEND, size[1] * rows
  figure = Figure(figsize=inches, layout='constrained')
  axes = figure.subplots(rows, columns, squeeze=False, **how).ravel()
  a_to_z = string.ascii_lowercase
  names = [*a_to_z, *map(''.join, itertools.product(a_to_z, repeat=2))]
  for axis, name, title in zip(axes, names, titles):
    title = f'({name}) {title}' if letters else title
    axis.set_title(title, loc='left', fontsize=fontsize)
    axis.grid(alpha=0.3, lw=0.4)
  for axis in axes[len(titles) :]:
    axis.axis('off')
  return figure, axes


def save(figure, path, handlelength: float = 3.5) -> None:
  """Writes a PNG with one legend, right of all axes."""
  handles = {}
  for axis in figure.axes:
    handles |= dict(zip(*reversed(axis.get_legend_handles_labels())))
  where = {'loc': 'outside right upper', 'frameon': False}
  how = {'handlelength': handlelength, **where}
  figure.legend(handles.values(), handles.keys(), **how)
  width, height = figure.get_size_inches()
  lines = sum(1 + name.count('\n') for name in handles)
  figure.set_size_inches(width, max(height, LINE * lines + 0.3))
  with files.replacing(path) as f:
    figure.savefig(f, format='png', dpi=120)


def _panel(axis, curves, styles):
  means = np.concatenate([curve['mean'] for curve in curves.values()])
  linear = bool(np.any(means[np.isfinite(means)] < 0))
  longest = max((curve['step'] for curve in curves.values()), key=len)
  length = 1 if linear or len(longest) < MANY else len(longest) // 100
  steps = length * round(longest[1] - longest[0]) if length > 1 else 1
  curves = {name: _smooth(curve, length) for name, curve in curves.items()}
  for name, curve in curves.items():
    seen = np.isfinite(curve['mean']).any()
    style = styles[name] if seen else styles[name] | {'markevery': None}
    axis.plot(curve['step'], curve['mean'], label=name, **style)
    if not linear and 'marker' not in styles[name]:
      band = curve['quartile_1'], curve['quartile_3']
      color = styles[name]['color']
      axis.fill_between(curve['step'], *band, color=color, alpha=0.15, lw=0)
  if linear:
    _margin_axis(axis, curves)
  else:
    _loss_axis(axis, curves, steps)


def _smooth(curve, length):
  """The start, and the means of stretches of so many points."""
  count = (len(curve['step']) - 1) // length

  def mean(x):
    stretches = x[1 : count * length + 1].reshape(count, length)
    return np.append(x[0], stretches.mean(1))

  return {name: mean(x) for name, x in curve.items()}


def _loss_axis(axis, curves, steps):
  """Logarithmic, with plain numbers."""
  of = f' of {steps} steps' if steps > 1 else ''
  axis.set_ylabel(f'mean loss{of} (band: quartiles)')
  finite = lambda x: x[np.isfinite(x) & (x > 0)]
  starts = [finite(curve['mean'][:1]) for curve in curves.values()]
  means = [finite(curve['mean']) for curve in curves.values()]
  top = np.concatenate(starts).max(initial=0) * RANGE
  bottom = np.concatenate(means).min(initial=top)
  if not 0 < bottom < top:  # nothing is finite
    return
  axis.set_yscale('log')
  axis.set_ylim(bottom * 0.85, top)
  plain_numbers(axis)


def plain_numbers(axis) -> None:
  """Labels a logarithmic y axis with 0.2 and not with 2 x 10^-1."""
  from matplotlib.ticker import LogLocator

  bottom, top = axis.get_ylim()
  decades = np.log10(top / bottom)
  subs = (1, 1.5, 2, 3, 5, 7) if decades < 1.2 else (1, 2, 5)
  subs = subs if decades < 3 else (1,)
  axis.yaxis.set_major_locator(LogLocator(subs=subs, numticks=12))
  axis.yaxis.set_major_formatter('{x:g}')
  axis.yaxis.set_minor_formatter('')


def _margin_axis(axis, curves):
  """Linear; the first curve, from step 2 on, fills the range."""
  first = next(iter(curves.values()))['mean'][2:]
  reach = np.abs(first[np.isfinite(first)]).max(initial=1e-6)
  axis.set_ylim(-2 * reach, 5 * reach)
  axis.axhline(0, color='black', lw=0.8)
  axis.set_ylabel('mean margin')
