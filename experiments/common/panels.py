"""Panels of any curves: as a table of numbers, and as a picture."""

import csv
import io
import string
from typing import NamedTuple

import numpy as np

from experiments.common import plots
from experiments.common import run as run_lib

SIZE = 3.5, 2.7  # inches of a panel
COLUMNS = 'x', 'y', 'low', 'high'


class Picture(NamedTuple):
  """How panels are drawn.

  Attributes:
    title: what one sees.
    columns: panels side by side.
    xlabel: of all panels.
    ylabel: of all panels; or {a word of the panel's title: label}.
    xscale: of matplotlib.
    yscale: of matplotlib; logarithmic axes become linear near 0 where there
      are values that are not positive.
    share: whether the panels of a row have the same y axis.
  """

  title: str
  columns: int
  xlabel: str
  ylabel: str | dict[str, str]
  xscale: str = 'linear'
  yscale: str = 'linear'
  share: bool = False


def curve(x, y) -> dict[str, np.ndarray]:
  """A curve y [K], or the median and quartiles of y [K, C]."""
  y = np.asarray(y, np.float64)
  low, mid, high = (
    (y, y, y) if y.ndim == 1 else np.nanquantile(y, [0.25, 0.5, 0.75], axis=1)
  )
  found = zip(COLUMNS, (np.asarray(x, np.float64), mid, low, high))
  return {name: values[np.isfinite(mid)] for name, values in found}


def write(path, pictures: dict) -> None:
  """One line for each point of {picture: {panel: {name: curve}}}."""
  out = io.StringIO()
  writer = csv.writer(out, lineterminator='\n')
  writer.writerow(['picture', 'panel', 'curve', *COLUMNS])
  for picture, panels in pictures.items():
    for panel, curves in panels.items():
      for name, values in curves.items():
        for row in zip(*(values[c] for c in COLUMNS)):
          cells = (f'{v:.6g}' for v in row)
          writer.writerow([picture, panel, name, *cells])
  run_lib.write(path, out.getvalue())


def read(path) -> dict:
  """The inverse of `write`."""
  found: dict = {}
  for row in csv.DictReader(io.StringIO(run_lib.read_text(path))):
    panels = found.setdefault(row['picture'], {})
    values = panels.setdefault(row['panel'], {}).setdefault(row['curve'], {})
    for column in COLUMNS:
      values.setdefault(column, []).append(float(row[column]))
  to_arrays = lambda c: {k: np.array(v) for k, v in c.items()}
  return {
    picture: {
      panel: {name: to_arrays(c) for name, c in curves.items()}
      for panel, curves in panels.items()
    }
    for picture, panels in found.items()
  }


def draw(path, picture: Picture, panels: dict, styles: dict) -> None:
  """A picture, with one legend right of all panels.

  Args:
    path: of the PNG.
    picture: how.
    panels: {title: {name: curve}}.
    styles: {name: how matplotlib draws it}; a name that begins with _ is not in
      the legend.
  """
  columns = min(picture.columns, len(panels))
  rows = -(-len(panels) // columns)
  how = {'sharey': 'row'} if picture.share else {}
  figure, axes = plots.grid(rows, columns, size=SIZE, **how)
  figure.suptitle(picture.title, x=0.01, ha='left', fontsize=12)
  for i, (axis, (title, curves)) in enumerate(zip(axes, panels.items())):
    for name, c in curves.items():
      axis.plot(c['x'], c['y'], label=name, **styles[name])
      if np.any(c['low'] != c['high']):
        color = styles[name]['color']
        band = {'color': color, 'alpha': 0.15, 'lw': 0}
        axis.fill_between(c['x'], c['low'], c['high'], **band)
    _scale(axis, picture, curves)
    letter = f'({string.ascii_lowercase[i % 26]}) '
    axis.set_title(letter + title, loc='left', fontsize=9)
    axis.set_xlabel(picture.xlabel, fontsize=9)
    if i % columns == 0 or not picture.share:
      axis.set_ylabel(_label(picture, title), fontsize=9)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.3, lw=0.4)
  for axis in axes[len(panels) :]:
    axis.axis('off')
  plots.save(figure, path)


def _label(picture, title):
  if isinstance(picture.ylabel, str):
    return picture.ylabel
  return next(v for k, v in picture.ylabel.items() if k in title)


def _scale(axis, picture, curves):
  axis.set_xscale(picture.xscale)
  if picture.yscale == 'linear':
    axis.axhline(0, color='black', lw=0.5)
    return
  low = np.concatenate([c['y'] for c in curves.values()])
  if np.all(low > 0):
    axis.set_yscale('log')
  else:
    small = np.quantile(np.abs(low[low != 0]), 0.2) if np.any(low) else 1.0
    axis.set_yscale('symlog', linthresh=small)
