"""Attacks by input: flags and archives that are wrong in some way."""

import contextlib
import gzip
import io
import os
import pathlib
import random
import shutil
import time

import numpy as np

from l2o_jax import datasets
from l2o_jax.datasets.__main__ import main
from tests.battery.files import mutated
from tests.battery.programs import Program
from tests.datasets import originals

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
    '/nowhere/theta.npz',
    '/',
    '/dev/null',
    '/dev/zero',
    '',
    str(ROOT / 'experiments/results/mnist/quick/theta.npz'),
  ),
  'workdir': ('', '/proc/nowhere', '/dev/null/x'),
  'baselines': ('SDG', ''),
  'tune': ('none',),
  'rivals': ('/nowhere', ''),
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
  # On a machine that others use as well, as much longer.
  load = max(1.0, os.getloadavg()[0] / os.cpu_count())
  assert slowest < 5 * load, (slowest, load)
  return (
    f'{times} bad command lines: status 2, at most 3 lines, nothing '
    f'left behind, slowest {slowest:.1f} s'
  )


def _spoil(rng, data, packed, kind):
  """One file of an archive, damaged in some way, as bytes."""
  # The last byte before the trailer may have bits that say nothing.
  at = int(rng.choice([*range(10, len(packed) - 9), *range(-8, 0)]))
  at %= len(packed)
  many = (1 << 20).to_bytes(4, 'big')
  return {
    'truncated': packed[: at - 10],
    'plain truncated': data[: int(rng.integers(len(data)))],
    'flipped': packed[:at] + bytes([packed[at] ^ 8]) + packed[at + 1 :],
    'crc': packed[:-8] + bytes(b ^ 1 for b in packed[-8:]),
    'text': b'<html>404</html>',
    'empty': b'',
    'empty gzip': gzip.compress(b''),
    'magic': gzip.compress(bytes([int(rng.integers(1, 256))]) + data[1:]),
    'rank': gzip.compress(data[:3] + b'\x02' + data[4:]),
    'count': gzip.compress(data[:4] + many + data[8:]),
    'pixels': gzip.compress(data[:8] + many + data[12:]),
    'short': gzip.compress(data[:-1]),
    'long': gzip.compress(data + b'\0'),
    'bomb': gzip.compress(data + bytes(64 << 20), 1),
    'label': gzip.compress(data[:-1] + bytes([int(rng.integers(10, 256))])),
    'content': gzip.compress(data[:-1] + bytes([(data[-1] + 1) % 10])),
  }[kind]


_KINDS = (
  *('truncated', 'plain truncated', 'flipped', 'crc', 'text', 'empty'),
  *('empty gzip', 'magic', 'rank', 'count', 'pixels', 'short', 'long', 'bomb'),
  *('label', 'content'),
)
_PLACES = ('missing', 'fifo', 'device', 'folder', 'loop')


def _displace(path, kind):
  path.unlink()
  if kind == 'fifo':
    os.mkfifo(path)
  elif kind == 'device':
    path.symlink_to('/dev/zero')
  elif kind == 'folder':
    path.mkdir()
  elif kind == 'loop':
    path.symlink_to(path)


def bad_data(directory, times):
  """Damaged original files: one line of error, nothing left behind."""
  rng = np.random.default_rng(7)
  for i in range(times):
    source, target = directory / f'source{i}', directory / f'target{i}'
    source.mkdir()
    train, test = (int(n) for n in rng.integers(2, 20, 2))
    arrays = originals.mnist(train, test, seed=i)
    originals.write_mnist(source, arrays)
    kind = (*_KINDS, *_PLACES)[i % (len(_KINDS) + len(_PLACES))]
    files = [f for f in arrays if kind != 'label' or 'labels' in f]
    files = [f for f in files if kind != 'pixels' or 'images' in f]
    file = files[int(rng.integers(len(files)))]
    path = source / f'{file}.gz'
    if kind in _PLACES:
      _displace(path, kind)
    else:
      data = originals.idx(arrays[file])
      path.write_bytes(_spoil(rng, data, path.read_bytes(), kind))
    errors, started = io.StringIO(), time.monotonic()
    with (
      originals.known(arrays),
      contextlib.redirect_stderr(errors),
      contextlib.redirect_stdout(io.StringIO()),
    ):
      status = main(
        ['prepare', 'mnist', '--from', str(source), '--data_dir', str(target)]
      )
    took = time.monotonic() - started
    assert status == 2, (kind, status)
    text = errors.getvalue()
    assert text.startswith('error: ') and text.count('\n') == 1, (kind, text)
    assert file in text, (kind, text)
    assert not target.exists(), (kind, list(target.rglob('*')))
    assert took < 5, (kind, took)
    shutil.rmtree(source)
  return f'{times} damaged sets of files: one line, nothing left behind'


def bad_npz(directory, times):
  """Damaged files of one's own: a DatasetError, or the right arrays."""
  rng, path = random.Random(8), directory / 'own.npz'
  images = np.arange(24, dtype=np.uint8).reshape(6, 2, 2)
  labels = np.arange(6) % 3
  buffer, refused = io.BytesIO(), 0
  np.savez(buffer, train_images=images, train_labels=labels)
  for _ in range(times):
    path.write_bytes(mutated(buffer.getvalue(), rng))
    started = time.process_time()
    try:
      got, classes = datasets.read_npz(path)
    except datasets.DatasetError as error:
      assert str(path) in str(error) and '\n' not in str(error), error
      refused += 1
    else:
      np.testing.assert_array_equal(got, images[..., None])
      np.testing.assert_array_equal(classes, labels)
    assert time.process_time() - started < 2
  return f'{times} damaged .npz: {refused} refused, the others whole'
