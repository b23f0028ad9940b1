"""Tables: curves as CSV, and numbers in columns of text."""

import csv
import io
from collections.abc import Iterable, Sequence

import numpy as np

from experiments.common import run as run_lib


def write_csv(path, head: Sequence[str], rows: Iterable[Sequence]) -> None:
  """Replaces a file; floats have six digits."""
  out = io.StringIO()
  writer = csv.writer(out, lineterminator='\n')
  writer.writerow(head)
  for row in rows:
    writer.writerow([f'{x:.6g}' if isinstance(x, float) else x for x in row])
  run_lib.write(path, out.getvalue())


def read_csv(path, names: Sequence[str], numbers: Sequence[str]) -> dict:
  """{name: {name: ... {number: array}}}, a level for each column of `names`."""
  found: dict = {}
  for row in csv.DictReader(io.StringIO(run_lib.read_text(path))):
    curve = found
    for name in names:
      curve = curve.setdefault(row[name], {})
    for number in numbers:
      curve.setdefault(number, []).append(float(row[number]))
  return _arrays(found)


def _arrays(x):
  if isinstance(x, dict):
    return {k: _arrays(v) for k, v in x.items()}
  return np.array(x)


def columns(title: str, head: Sequence[str], rows, left: int = 1) -> str:
  """Text in columns, the first `left` to the left and the others to the right.

  A blank line and the title, if there is one, stand above.
  """
  lines = [list(map(str, row)) for row in (head, *rows)]
  wide = [max(map(len, column)) for column in zip(*lines)]
  sides = [str.ljust] * left + [str.rjust] * (len(wide) - left)
  one = lambda line: '  '.join(f(*x) for f, *x in zip(sides, line, wide))
  return '\n'.join(['', *([title] if title else []), *map(one, lines)])
