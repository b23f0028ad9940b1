"""Panels of any curves: as a table of numbers, and as a picture."""

from typing import NamedTuple

import numpy as np

from experiments.common import plots
from experiments.common.tables import read_csv, write_csv

SIZE = 3.5, 2.7  # inches of a panel
NAMES = 'picture', 'panel', 'curve'
COLUMNS = 'x', 'y', 'low', 'high'


class Picture(NamedTuple):
  """How panels are drawn.

  Attributes:
    title: what one sees.
    columns: panels side by side.
    xlabel: of all panels.
    ylabel: of all panels; or {a word of the panel's title: label}.
    xscale: 'linear' or 'log'.
    yscale: 'linear', 'log', or {a word of the panel's title: one of them}; an
      axis with values that are not positive is linear near 0.
    reach: the y axis ends at so many times the largest value of the first
      curve; 0: all is shown.
  """

  title: str
  columns: int
  xlabel: str
  ylabel: str | dict[str, str]
  xscale: str = 'linear'
  yscale: str | dict[str, str] = 'linear'
  reach: float = 0.0


def curve(x, y, band: bool = True) -> dict[str, np.ndarray]:
  """A curve y [K], or the median and quartiles of y [K, C]."""
  y = np.asarray(y, np.float64)
  low, mid, high = (
    (y, y, y) if y.ndim == 1 else np.nanquantile(y, [0.25, 0.5, 0.75], axis=1)
  )
  low, high = (low, high) if band else (mid, mid)
  found = zip(COLUMNS, (np.asarray(x, np.float64), mid, low, high))
  return {name: values[np.isfinite(mid)] for name, values in found}


def write(path, pictures: dict) -> None:
  """One line for each point of {picture: {panel: {name: curve}}}."""
  rows = (
    (picture, panel, name, *row)
    for picture, panels in pictures.items()
    for panel, curves in panels.items()
    for name, values in curves.items()
    for row in zip(*(values[c] for c in COLUMNS))
  )
  write_csv(path, (*NAMES, *COLUMNS), rows)


def read(path) -> dict:
  """The inverse of `write`."""
  return read_csv(path, NAMES, COLUMNS)


def draw(path, picture: Picture, panels: dict, styles: dict) -> None:
  """A picture, with one legend right of all panels.

  Args:
    path: of the PNG.
    picture: how.
    panels: {title: {name: curve}}.
    styles: {name: how matplotlib draws it}; a name that begins with _ is not in
      the legend.
  """
  figure, axes = plots.grid(panels, picture.columns, SIZE, fontsize=9)
  figure.suptitle(picture.title, x=0.01, ha='left', fontsize=12)
  for axis, (title, curves) in zip(axes, panels.items()):
    for name, c in curves.items():
      axis.plot(c['x'], c['y'], label=name, **styles[name])
      if np.any(c['low'] != c['high']):
        color = styles[name]['color']
        band = {'color': color, 'alpha': 0.15, 'lw': 0}
        axis.fill_between(c['x'], c['low'], c['high'], **band)
    _scale(axis, picture, title, curves)
    axis.set_xlabel(picture.xlabel, fontsize=9)
    axis.set_ylabel(_of(picture.ylabel, title), fontsize=9)
    axis.tick_params(labelsize=8)
  plots.save(figure, path)


def _of(value, title):
  """A string for all panels, or by a word of their titles."""
  if isinstance(value, str):
    return value
  return next(v for word, v in value.items() if word in title)


def _scale(axis, picture, title, curves):
  y = [c['y'] for c in curves.values()]
  values = np.concatenate(y)
  if not len(values):  # nothing is finite
    return
  if picture.xscale == 'log':
    axis.set_xscale('log')
    axis.xaxis.set_major_formatter('{x:g}')
  if _of(picture.yscale, title) == 'linear':
    axis.axhline(0, color='black', lw=0.5, zorder=0)
    if picture.reach:
      top = picture.reach * np.abs(y[0]).max(initial=1e-12)
      axis.set_ylim(-top, top)
  elif np.all(values > 0):
    axis.set_yscale('log')
    axis.set_ylim(values.min() / 1.5, values.max() * 1.5)
    plots.plain_numbers(axis)
  else:
    sizes = np.abs(values[values != 0])
    small = np.quantile(sizes, 0.2) if len(sizes) else 1.0
    axis.set_yscale('symlog', linthresh=small)
    ticks = np.asarray(axis.get_yticks())  # those in the linear part overlap
    axis.set_yticks(ticks[(ticks == 0) | (np.abs(ticks) >= small)])
    axis.yaxis.set_major_formatter('{x:g}')
