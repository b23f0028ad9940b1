"""The project's programs, each in a process of its own."""

import atexit
import multiprocessing
import os
import pathlib
import runpy
import shutil
import sys
import tempfile
import time

import jax

from tests.flags import QUICKLY

# Long enough to be hit, short enough to be run often.
SMALL_RUN = (
  '--num_epochs=60',
  '--num_steps=10',
  '--unroll_length=5',
  '--evaluation_period=7',
  '--num_validation=4',
  '--num_tuning=4',
  '--num_test=4',
  '--num_problems=32',
  '--nosecond_derivatives',
  '--num_optimizees=1',
  '--clip_each=0',
  '--baselines=SGD',
)

# Programs start from a process that has imported the libraries, but not yet
# started JAX: half a second instead of three.
CONTEXT = multiprocessing.get_context('forkserver')
CONTEXT.set_forkserver_preload(
  [
    'jax',
    'optax',
    'chex',
    'matplotlib.figure',
    'experiments.common.comparison',
    'l2o_jax',
  ]
)


# Compiled once: all programs of a battery compile the same functions.
CACHE = tempfile.mkdtemp()
atexit.register(shutil.rmtree, CACHE, ignore_errors=True)

# Of all programs.  In the tests those on quadratics compile in a third of the
# time, to slower code.
ENVIRONMENT = {}
QUICK = {'XLA_FLAGS': QUICKLY}


def program(module, flags, errors, environment, cache):
  descriptor = os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
  os.dup2(descriptor, 1)
  os.dup2(descriptor, 2)
  os.environ.update(environment)
  jax.config.update('jax_compilation_cache_dir', cache)
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
  sys.argv = [module, *flags]
  runpy.run_module(module, run_name='__main__', alter_sys=True)


class Program:
  """One of the project's programs at work in a process of its own."""

  def __init__(self, module, *flags, environment=None):
    self.errors = tempfile.mktemp(suffix='.err')
    self.started = time.monotonic()
    self.process = CONTEXT.Process(
      target=program,
      args=(
        module,
        flags,
        self.errors,
        ENVIRONMENT | (environment or {}),
        CACHE,
      ),
    )
    self.process.start()

  def wait(self, seconds=300):
    """(exit status, all it printed)."""
    self.process.join(seconds)
    assert self.process.exitcode is not None, f'hangs: {self.output()}'
    text = self.output()
    pathlib.Path(self.errors).unlink(missing_ok=True)
    return self.process.exitcode, text

  def output(self):
    path = pathlib.Path(self.errors)
    return path.read_text() if path.exists() else ''

  def send(self, number):
    if self.process.is_alive():
      os.kill(self.process.pid, number)


def quadratics(workdir, *flags, **options):
  return Program(
    'experiments.quadratics',
    *SMALL_RUN,
    f'--workdir={workdir}',
    *flags,
    **options,
  )


def mnist(workdir, *flags, **options):
  common = [
    f for f in SMALL_RUN if 'num_problems' not in f and 'num_epochs' not in f
  ]
  return Program(
    'experiments.mnist',
    *common,
    '--num_epochs=20',
    '--batch_size=4',
    '--panels=base',
    f'--workdir={workdir}',
    *flags,
    environment={'XLA_FLAGS': ''},
    **options,
  )


def num_lines(workdir):
  try:
    return (workdir / 'metrics.jsonl').read_bytes().count(b'\n')
  except FileNotFoundError:
    return 0


def wait_for_epoch(program, workdir, epoch):
  while program.process.is_alive() and num_lines(workdir) < epoch:
    time.sleep(0.0005)


def final_state(workdir):
  """All that must be bitwise the same in two runs of the same flags."""
  newest = sorted((workdir / 'checkpoints').glob('*.npz'))[-1]
  files = [
    newest,
    workdir / 'theta.npz',
    workdir / 'metrics.jsonl',
    workdir / 'curves.csv',
    workdir / 'summary.json',
    *sorted(workdir.glob('search/*/metrics.jsonl')),
  ]
  return {str(f.relative_to(workdir)): f.read_bytes() for f in files}


def check_same(found, expected):
  assert found.keys() == expected.keys(), (found.keys(), expected.keys())
  for name in found:
    assert found[name] == expected[name], f'{name} differs'


def reference(directory, *flags):
  status, text = quadratics(directory / 'whole', *flags).wait()
  assert status == 0, text
  return final_state(directory / 'whole')
