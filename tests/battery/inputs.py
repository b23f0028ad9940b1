"""Attacks by input: flags and archives that are wrong in some way."""

import contextlib
import gzip
import io
import pathlib
import random
import shutil
import time

import numpy as np

from l2o_jax import datasets
from tests.battery.programs import Program

ROOT = pathlib.Path(__file__).parents[2]

_BAD_VALUES = {
  'num_epochs': ('-1', '1.5', 'many', 'nan', ''),
  'num_steps': ('0', '-20', '30', '1e2', 'inf'),
  'unroll_length': ('0', '7', 'x', '-5'),
  'learning_rate': ('0', '-1e-3', 'nan', 'inf', 'fast', ''),
  'output_scale': ('0', '-1', 'nan', 'inf', 'x'),
  'clip_norm': ('-1', 'nan', 'inf', 'x'),
  'seed': ('-1', '0.5', 'x', str(2**40), ''),
  'evaluation_period': ('0', '-1', 'x'),
  'num_validation': ('0', 'x'),
  'num_tuning': ('-3', '1.1'),
  'num_test': ('0', 'all'),
  'num_problems': ('0', 'nan', str(10**12)),
  'dimension': ('0', '-2', 'x', str(10**9)),
  'num_optimizees': ('0', 'x', '-1'),
  'max_nonfinite': ('0', 'x'),
  'weights': ('some', ''),
  'entries': ('cauchy', ''),
  'batch_form': ('max',),
  'preset': ('fastest', ''),
  'resume': ('perhaps', 'must'),
  'learning_rate_schedule': ('step',),
  'second_derivatives': ('2', 'perhaps'),
  'remat': ('x',),
  'theta': (
    '/nowhere/best.npz',
    '/',
    '/dev/null',
    '',
    str(ROOT / 'experiments/results/mnist/best.npz'),
  ),
  'workdir': ('', '/proc/nowhere', '/dev/null/x'),
  'search_trials': ('-1', 'x'),
  'search_epochs': ('0',),
  'no_such_flag': ('1',),
  'num_epoch': ('5',),
  'coordinator': ('localhost:1',),
  'process_id': ('0', '-1'),
  'num_processes': ('0', '2'),
}
_CONTRADICTIONS = (
  ('--search_trials=3', '--learning_rate=1e-3'),
  ('stray',),
  ('--num_steps=30', '--unroll_length=20'),
  ('--multihost=perhaps',),
  ('--num_epochs',),
  ('--', '--num_epochs=3'),
  ('--noseed',),
  ('--remat=blocks', '--second_derivatives'),
)


def bad_flags(directory, times):
  """Status 2 (1 where a directory cannot be made), at most 3 lines, 5 s."""
  rng = random.Random(6)
  cases = [
    (f'--{name}={value}',)
    for name, values in _BAD_VALUES.items()
    for value in values
  ] + list(_CONTRADICTIONS)
  rng.shuffle(cases)
  others = ('--num_epochs=3', '--seed=1', '--weights=all', '--num_test=5')
  slowest = 0.0
  for i in range(times):
    case = cases[i % len(cases)]
    workdir = directory / f'run{i}'
    if i >= len(cases):  # again, in company
      names = {flag.split('=')[0] for flag in case}
      case = (
        *(f for f in rng.sample(others, 2) if f.split('=')[0] not in names),
        *case,
      )
    program = Program('experiments.quadratics', f'--workdir={workdir}', *case)
    status, text = program.wait(60)
    slowest = max(slowest, time.monotonic() - program.started)
    allowed = (1, 2) if '--workdir' in str(case) else (2,)
    assert status in allowed, (case, status, text)
    assert 'Traceback' not in text and 0 < len(text.splitlines()) <= 3, (
      case,
      text,
    )
    assert not workdir.exists(), case
  assert slowest < 5, slowest
  return (
    f'{times} bad command lines: status 2, at most 3 lines, nothing '
    f'left behind, slowest {slowest:.1f} s'
  )


def _idx(array):
  return (
    b'\0\0\x08'
    + bytes([array.ndim])
    + b''.join(s.to_bytes(4, 'big') for s in array.shape)
    + array.tobytes()
  )


def bad_data(directory, times):
  """Damaged archives and images: one DatasetError, nothing left behind."""
  rng = np.random.default_rng(7)
  kinds = (
    'truncated',
    'magic',
    'label',
    'hash',
    'shape',
    'missing',
    'count',
    'text',
    'flipped',
  )
  for i in range(times):
    source, target = directory / f'source{i}', directory / f'target{i}'
    source.mkdir()
    kind = kinds[i % len(kinds)]
    size = int(rng.integers(2, 20))
    for part in ('train', 't10k'):
      images = rng.integers(0, 256, (size, 28, 28), np.uint8)
      labels = rng.integers(0, 10, size, np.uint8)
      if kind == 'label':
        labels[int(rng.integers(size))] = 10 + int(rng.integers(200))
      if kind == 'count':
        labels = labels[:-1]
      if kind == 'shape':
        images = images[:, : int(rng.integers(1, 27))]
      for what, array in (('images-idx3', images), ('labels-idx1', labels)):
        data = _idx(array)
        if kind == 'magic':
          data = bytes([int(rng.integers(1, 256))]) + data[1:]
        packed = gzip.compress(data)
        if kind == 'truncated':
          packed = packed[: int(rng.integers(len(packed)))]
        if kind == 'text':
          packed = b'<html>404</html>'
        if kind == 'flipped':
          at = int(rng.integers(10, len(packed)))
          packed = packed[:at] + bytes([packed[at] ^ 8]) + packed[at + 1 :]
        (source / f'{part}-{what}-ubyte.gz').write_bytes(packed)
    if kind == 'missing':
      next(source.iterdir()).unlink()
    errors = io.StringIO()
    started = time.monotonic()
    with (
      contextlib.redirect_stderr(errors),
      contextlib.redirect_stdout(io.StringIO()),
    ):
      status = datasets.main(
        ['prepare', 'mnist', '--from', str(source), '--data_dir', str(target)]
      )
    took = time.monotonic() - started
    assert status == 2, (kind, status)
    lines = [
      line
      for line in errors.getvalue().splitlines()
      if line.startswith('error:')
    ]
    assert len(lines) == 1, errors.getvalue()
    assert not any(target.rglob('*')), (kind, list(target.rglob('*')))
    assert i == 0 or took < 5, took  # the first imports tensorflow-datasets
    shutil.rmtree(source)
  return f'{times} damaged sets of archives: status 2, nothing left behind'
