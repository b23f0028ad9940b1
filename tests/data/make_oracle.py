"""Makes oracle.npz from the full set of values of the original.

  python tests/data/make_oracle.py DIR

DIR holds what the released TensorFlow code gave: log_and_sign_{f32,f64}.npz,
quad_traj_b16_logsign_{f32,f64}.npz, quad_metagrad_{f32,f64}.npz and
weights_mnist.npz.  README.md describes the names in oracle.npz.  Nothing is
computed, only chosen, and no value is rounded: what is the same in several
places is kept once, and float64 arrays that float32 holds exactly are float32.
"""

import pathlib
import sys

import numpy as np

DTYPES = ('f32', 'f64')
STATES = ('x_start', 'h1_start', 'c1_start', 'h2_start', 'c2_start')
LOSSES = ('loss', 'fx', 'fx_final', 'x_final')


def narrowed(array):
  """The same values as float32 where that is exact."""
  narrow = array.astype(np.float32)
  return narrow if np.array_equal(narrow, array) else array


def trajectory(source, dtype):
  """100 steps: every 20th x, all f and the state after the last step."""
  values = np.load(source / f'quad_traj_b16_logsign_{dtype}.npz')
  for name in ('W', 'y', 'x0'):
    yield f'trajectory/{name}', narrowed(values[name])
  yield f'trajectory/{dtype}/x', values['x'][::20]
  yield f'trajectory/{dtype}/f', values['f']
  for name in ('h1', 'c1', 'h2', 'c2'):
    yield f'trajectory/{dtype}/{name}', values[name][-1]


def log_and_sign(source, dtype):
  values = np.load(source / f'log_and_sign_{dtype}.npz')
  kinds = ('out', 'dlog', 'dsign')
  for name in ('inputs', *(f'{kind}_k{p}' for kind in kinds for p in (5, 10))):
    yield f'log_and_sign/{dtype}/{name}', values[name]


def metagrad(source, dtype):
  """One unroll of 20 steps: what it starts from, its losses, all gradients."""
  values = np.load(source / f'quad_metagrad_{dtype}.npz')
  for tag in ('ident_init', 'logsign_init'):
    batch = int(values[f'{tag}/batch'])
    for name in ('W', 'y'):
      yield f'metagrad/{tag}/{name}', narrowed(values[f'{name}_b{batch}'])
    for name in values.files:
      if name.startswith(f'{tag}/weights/'):
        yield f'metagrad/{name}', narrowed(values[name])
    for start in ('cold', 'warm'):
      case = f'{tag}/{start}/second'
      for name in STATES + LOSSES:  # second derivatives leave them the same
        value, other = (values[f'{case}_{s}/{name}'] for s in ('false', 'true'))
        assert np.array_equal(value, other), name
        if start == 'cold' and name == 'x_start':  # of both dtypes
          yield f'metagrad/{tag}/cold/x_start', narrowed(value)
        elif start == 'cold' and name in STATES:
          assert not value.any(), name
        else:
          yield f'metagrad/{tag}/{start}/{dtype}/{name}', value
      for second in ('false', 'true'):
        prefix = f'{case}_{second}/grad/'
        for name in values.files:
          if name.startswith(prefix):
            short = f'{tag}/{start}/{dtype}/second_{second}'
            grad = name.removeprefix(prefix)
            yield f'metagrad/{short}/grad/{grad}', values[name]


def main(source):
  arrays = {}
  weights = np.load(source / 'weights_mnist.npz')
  arrays |= {f'weights_mnist/{n}': weights[n] for n in weights.files}
  for dtype in DTYPES:
    for part in (trajectory, log_and_sign, metagrad):
      for name, value in part(source, dtype):
        assert np.array_equal(arrays.get(name, value), value), name
        arrays[name] = value
  path = pathlib.Path(__file__).with_name('oracle.npz')
  np.savez_compressed(path, **arrays)
  print(f'{path}: {len(arrays)} arrays, {path.stat().st_size:,} bytes')


if __name__ == '__main__':
  main(pathlib.Path(sys.argv[1]))
