"""A run directory: what is in it, who may write to it, how it is rebuilt.

  run.json       command, flags, seed, commit, versions, device, seconds of
                 training and of comparison, memory
  metrics.jsonl  a line for each epoch
  checkpoints/   state to resume from
  theta.npz      the selected theta; the file names its optimizer
  comparison/    what an unfinished comparison has found
  summary.json   the comparison, with curves.csv and a picture

A kept result is a copy of run.json, theta.npz, summary.json and the picture.
"""

import contextlib
import fcntl
import hashlib
import importlib
import inspect
import itertools
import json
import math
import os
import pathlib
import platform
import re
import subprocess
from importlib import metadata

import jax

from experiments.common import images
from experiments.common import settings as settings_lib
from experiments.common.cli import log
from experiments.common.settings import Experiment, UsageError
from l2o_jax import files
from l2o_jax.pretrained import names, pretrained
from l2o_jax.theta_files import load_learned

EXPERIMENTS = (  # those that train
  'quadratics',
  'mnist',
  'cifar10',
  'neural_art',
  'learning_to_optimize',
  'predicted_step_descent',
  'robust',
)
MAX_TEXT = 1 << 30  # bytes of a text file in a run directory

# Without a run.json beside them, these are somebody else's.
_OURS = ('*.npz', '*.png', '*.json', '*.jsonl', '*.csv', 'checkpoints/*')


def is_writer() -> bool:
  """Whether this process, of several, is the one that writes files."""
  return jax.process_index() == 0


def write(path, content: str | bytes) -> None:
  """Replaces a file, whole or not at all."""
  with files.replacing(path) as f:
    f.write(content.encode() if isinstance(content, str) else content)


def as_json(value, indent: int | None = None) -> str:
  """JSON, with null for nan and infinity, which it does not have."""
  return json.dumps(without_nan(value), indent=indent, allow_nan=False)


def write_json(path, value) -> None:
  write(path, as_json(value, indent=1) + '\n')


def read_text(path) -> str:
  """A text file of a run directory.

  Raises:
    UsageError: it is no regular file, cannot be read, or is too large.
  """
  try:
    with files.open_regular(path) as f:
      data = f.read(MAX_TEXT + 1)
    if len(data) > MAX_TEXT:
      raise UsageError(f'{path} is too large')
    return data.decode()
  except (OSError, ValueError) as error:
    reason = str(error).removeprefix(f'{path}: ')
    raise UsageError(f'{path} cannot be read: {reason}') from None


def read_record(path) -> dict:
  """run.json of a run directory.

  Raises:
    UsageError: it is missing or damaged.
  """
  file = pathlib.Path(path) / 'run.json'
  try:
    record = json.loads(read_text(file))
    ok = isinstance(record['flags'], dict) and record['experiment']
  except (json.JSONDecodeError, KeyError, TypeError, RecursionError):
    ok = False
  if not ok:
    raise UsageError(f'{file} is damaged')
  return record


def read_summary(path) -> dict:
  """summary.json of a run directory."""
  return json.loads(read_text(path / 'summary.json'))


def note(path, **values) -> None:
  """Adds to run.json."""
  if is_writer():
    record = read_record(path)
    write_json(path / 'run.json', record | values)


def without_nan(value):
  """The same without nan and inf, which JSON does not have: null there."""
  if isinstance(value, dict):
    return {k: without_nan(v) for k, v in value.items()}
  if isinstance(value, list | tuple):
    return [without_nan(v) for v in value]
  bad = isinstance(value, float) and not math.isfinite(value)
  return None if bad else value


def _commit() -> str | None:
  """The commit of the checkout with this file, '-dirty' if it has changes."""
  root = pathlib.Path(__file__).parents[2]
  if not (root / '.git').exists():
    return None
  words = 'describe --always --dirty --abbrev=40 --exclude=*'.split()
  try:
    out = subprocess.run(
      ['git', '-C', root, *words], capture_output=True, text=True, timeout=20
    )
  except (OSError, subprocess.SubprocessError):
    return None
  return out.stdout.strip() or None


def processor() -> str:
  """The model's name, as Linux has it."""
  try:
    text = pathlib.Path('/proc/cpuinfo').read_text()
  except OSError:
    text = ''
  found = re.search(r'^model name\s*: (.*)$', text, re.MULTILINE)
  return found[1] if found else platform.processor() or platform.machine()


def cores() -> int:
  """How many this process may use."""
  return len(getattr(os, 'sched_getaffinity', lambda pid: range(1))(0))


def provenance() -> dict:
  """Commit, versions and device; what a number depends on beside the flags."""
  device = jax.devices()[0]
  packages = ('jax', 'jaxlib', 'optax', 'numpy')
  versions = {name: metadata.version(name) for name in packages}
  kind = processor() if device.platform == 'cpu' else device.device_kind
  return {
    'commit': _commit(),
    'versions': {'python': platform.python_version(), **versions},
    'device': f'{jax.device_count()} x {device.platform}: {kind}',
  }


# Flags that name weights: files, directories with one, or of the package.
_WEIGHTS = 'theta', 'rivals'
_DATA = 'dataset', 'test_data', 'style', 'new_style', 'net_weights'  # or names


def _inputs(settings) -> dict[str, str]:
  """{name: digest} of the weights and data that flags name."""
  flags = settings_lib.flat(settings)

  def named(which):
    values = [flags.get(flag) or () for flag in which]
    return itertools.chain(*((v,) if isinstance(v, str) else v for v in values))

  found = {}
  for name in named(_WEIGHTS):
    path = pathlib.Path(name)
    file = path / 'theta.npz' if path.is_dir() else path
    if name in names():  # the package comes before files of that name
      file = pathlib.Path(inspect.getfile(pretrained)).with_name(f'{name}.npz')
    if file.is_file():
      found[name] = _digest([file])
  for name in named(_DATA):
    if pathlib.Path(name).is_file():
      found[name] = _digest([name])
  for name in named(['contents']):
    found[name] = _digest(images.pictures(pathlib.Path(name).glob('*')))
  return found


def _digest(paths) -> str:
  digest = hashlib.sha256()
  for path in paths:
    with open(path, 'rb') as f:
      hashlib.file_digest(f, lambda: digest)
  return digest.hexdigest()[:16]


def _check(path, experiment, settings) -> bool:
  """Whether there is a run with these flags in the directory already.

  Raises:
    UsageError: one with others, or other files; or --resume forbids it.
  """
  if not path.exists() or not (path / 'run.json').exists():
    if settings.run.resume == 'must':
      raise UsageError(f'--resume=must: there is no run in {path}')
    found = [f.name for kind in _OURS for f in sorted(path.glob(kind))]
    if found:
      raise UsageError(
        f'{path} holds no run (no run.json) but other files, {found[0]} among '
        'them: choose another --workdir'
      )
    return False
  if settings.run.resume == 'never' and is_writer():
    raise UsageError(f'--resume=never: there is a run in {path}')
  record = read_record(path)
  here = settings_lib.recorded(experiment, settings)
  there = record['flags']
  different = [
    f'--{k}={there.get(k)} there, {here.get(k)} here'
    for k in sorted({*there, *here})
    if there.get(k) != here.get(k)
  ]
  now = _inputs(settings)
  before = record.get('inputs', record.get('thetas', now))
  for name, digest in before.items():
    if now.get(name) != digest:
      different.append(f'{name} was another file')
  if record['experiment'] != experiment.name:
    different = [f'of {record["experiment"]}']
  if different:
    what = '; '.join(different)
    wrong = f'{path} holds a run with other flags, give another --workdir'
    raise UsageError(f'{wrong}: {what}')
  return True


def _lock(path):
  """An open file that is locked until it is closed, or the process ends."""
  file = open(path / '.lock', 'a+')
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    file.seek(0)
    pid = file.read(20).strip() or 'unknown'
    file.close()
    raise UsageError(f'{path} is in use by process {pid}') from None
  except OSError as error:  # some file systems have no locks
    log(f'{path} is not locked: {error.strerror}')
  file.truncate(0)
  file.write(f'{os.getpid()}\n')
  file.flush()
  return file


@contextlib.contextmanager
def opened(experiment: Experiment, settings):
  """Makes a run directory, or takes up the run in it; locks it.

  Args:
    experiment: the binary.
    settings: its flags.

  Yields:
    The directory.

  Raises:
    UsageError: it cannot be made, another process has it, it holds something
      else, or --resume forbids it.
  """
  path = pathlib.Path(settings.run.workdir)
  _check(path, experiment, settings)
  if not is_writer():
    yield path
    return
  try:
    path.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    why = error.strerror or error
    raise UsageError(f'--workdir={path} cannot be made: {why}') from None
  with _lock(path):
    if not _check(path, experiment, settings):
      record = {
        'experiment': experiment.name,
        'command': settings_lib.command(experiment, settings),
        'flags': settings_lib.recorded(experiment, settings),
        'seed': getattr(settings.run, 'seed', None),
        'inputs': _inputs(settings),
        **provenance(),
        'seconds': 0.0,
      }
      write_json(path / 'run.json', record)
    yield path


def finished(experiment: Experiment, settings) -> pathlib.Path | None:
  """The directory, if it holds all results of this very run.

  Raises:
    UsageError: see `opened`.
  """
  path = pathlib.Path(settings.run.workdir)
  if not _check(path, experiment, settings):
    return None
  if not read_record(path).get('finished'):
    return None
  try:
    if experiment.name in EXPERIMENTS:
      load_learned(path / 'theta.npz')
    read_summary(path)
    read_text(path / 'curves.csv')
  except (UsageError, ValueError) as error:  # made again
    log(str(error))
    return None
  return path


def find_theta(path, flag='theta', expected=None):
  """What a flag names: a pretrained theta, a file of one, or a run directory.

  Args:
    path: or name.
    flag: that gave it.
    expected: the optimizer that the theta should be for.  None: any.

  Returns:
    (settings of the run, None without one; learned optimizer; theta).

  Raises:
    UsageError: nothing has that name, or a directory holds no run.
    CheckpointError: the theta cannot be read, or is for another optimizer.
  """
  if str(path) in names():
    return None, *pretrained(str(path), expected)
  place = pathlib.Path(path)
  if place.exists() and not place.is_dir():
    return None, *load_learned(place, expected)
  try:
    known = f'and of l2o_jax.pretrained there are {", ".join(names())}'
    if not place.exists():
      raise UsageError(f'no such file or directory, {known}')
    return rebuild(place, expected)
  except UsageError as error:
    raise UsageError(f'--{flag}={path}: {error}') from None


def rebuild(path, expected=None):
  """A run from its directory.

  Args:
    path: run directory, or a copy of its run.json and theta.npz.
    expected: see `find_theta`.

  Returns:
    (settings, learned optimizer, theta).

  Raises:
    UsageError: there is no run of these experiments.
    CheckpointError: its theta cannot be read.
  """
  path = pathlib.Path(path)
  record = read_record(path)
  if record['experiment'] not in EXPERIMENTS:
    raise UsageError(f'{path} is a run of {record["experiment"]!r}')
  module = importlib.import_module(f'experiments.{record["experiment"]}')
  settings = settings_lib.restored(module.EXPERIMENT, record['flags'])
  learned, theta = load_learned(path / 'theta.npz', expected)
  return settings, learned, theta
