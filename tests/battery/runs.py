"""Attacks on a run: kill, signals, faults of the disk, no finite numbers."""

import json
import pathlib
import random
import resource
import shutil
import signal
import tempfile
import time

import jax

from l2o_jax.learned_optimizers import lstm_raw
from l2o_jax.theta_files import save_learned
from tests.battery.programs import (
  CACHE,
  CONTEXT,
  ENVIRONMENT,
  SMALL_RUN,
  check_same,
  final_state,
  mnist,
  num_lines,
  program,
  quadratics,
  reference,
  wait_for_epoch,
)


def kill_and_resume(directory, runs, kills):
  """kill -9 at random epochs; the resumed run ends bitwise the same.

  The second run of every four is of MNIST, with its minibatches.
  """
  rng = random.Random(0)
  flags = ('--search_trials=2', '--search_epochs=9')
  starts = {'quadratics': (quadratics, 60), 'mnist': (mnist, 20)}
  expected = {}
  for run in range(runs):
    name = 'mnist' if run % 4 == 1 else 'quadratics'
    (start, epochs), workdir = starts[name], directory / f'run{run}'
    if name not in expected:
      status, text = start(directory / name, *flags).wait()
      assert status == 0, text
      expected[name] = final_state(directory / name)
    # In the search, then ever later in the run.
    for epoch in sorted(rng.randrange(1, epochs) for _ in range(kills)):
      program = start(workdir, *flags)
      wait_for_epoch(program, workdir, epoch)
      time.sleep(rng.uniform(0, 0.01))
      program.send(signal.SIGKILL)
      program.wait()
    status, text = start(workdir, *flags, '--resume=must').wait()
    assert status == 0, text
    check_same(final_state(workdir), expected[name])
    shutil.rmtree(workdir)
  return f'{runs} runs, {kills} kills each: all final states bitwise equal'


def stop_and_resume(directory, times):
  """SIGINT or SIGTERM at random moments: leaves in 5 s, resumes the same."""
  rng = random.Random(1)
  expected = reference(directory)
  longest = 0.0
  for i in range(times):
    workdir = directory / f'run{i}'
    number = (signal.SIGTERM, signal.SIGINT)[i % 2]
    program = quadratics(workdir)
    wait_for_epoch(program, workdir, rng.randrange(0, 60))
    time.sleep(rng.uniform(0, 0.05))
    if num_lines(workdir) == 0:
      while 'compiling' not in program.output():  # it is up
        time.sleep(0.01)
    program.send(number)
    sent = time.monotonic()
    status, text = program.wait()
    longest = max(longest, time.monotonic() - sent)
    assert status in (128 + number, 0), (status, text)
    assert 'Traceback' not in text, text
    if status:
      assert text.splitlines()[-1].startswith('stopped'), text
    status, text = quadratics(workdir).wait()
    assert status == 0, text
    check_same(final_state(workdir), expected)
    shutil.rmtree(workdir)
  assert longest < 5, longest
  program = quadratics(directory / 'twice', '--num_epochs=100000')
  while 'compiling' not in program.output():
    time.sleep(0.01)
  program.send(signal.SIGINT)
  time.sleep(0.3)
  sent = time.monotonic()
  program.send(signal.SIGINT)
  status, text = program.wait()
  assert status == 130 and 'Traceback' not in text, (status, text)
  assert time.monotonic() - sent < 2, 'the second signal did not end it'
  return f'{times} signals: longest exit {longest:.1f} s, states equal'


def nonfinite_experiment(directory, times):
  """Only non-finite meta-gradients: status 3, the step, theta kept."""
  learned = lstm_raw(0.1)
  theta = learned.init(jax.random.key(0))
  theta['linear']['b'] += 1e30  # a first step of 1e29, so f = inf
  save_learned(directory / 'theta.npz', learned, theta)
  for i in range(times):
    workdir = directory / f'run{i}'
    status, text = quadratics(
      workdir,
      f'--theta={directory}/theta.npz',
      f'--seed={i}',
      '--max_nonfinite=7',
    ).wait()
    assert status == 3, text
    assert 'Traceback' not in text
    assert text.splitlines()[-1].startswith('error: no finite meta-gradient')
    line = json.loads((workdir / 'metrics.jsonl').read_text().splitlines()[-1])
    assert line['skipped'] >= 7 and line['meta_loss'] is None
  return f'{times} hopeless runs: status 3, theta kept'


def _limited_run(flags, errors, environment, cache):
  resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
  program('experiments.quadratics', flags, errors, environment, cache)


def full_disk(directory):
  """No space for the next checkpoint: one line, the old one intact."""
  workdir = directory / 'run'
  status, text = quadratics(workdir, '--num_epochs=8').wait()
  assert status == 0, text
  record = (workdir / 'run.json').read_text()
  record = record.replace('"num_epochs": 8', '"num_epochs": 60')
  record = record.replace('"finished": true', '"finished": false')
  (workdir / 'run.json').write_text(record)
  newest = sorted((workdir / 'checkpoints').glob('*.npz'))[-1]
  before, errors = newest.read_bytes(), tempfile.mktemp()
  process = CONTEXT.Process(
    target=_limited_run,
    args=((*SMALL_RUN, f'--workdir={workdir}'), errors, ENVIRONMENT, CACHE),
  )
  process.start()
  process.join(120)
  text = pathlib.Path(errors).read_text()
  assert process.exitcode == 1, (process.exitcode, text)
  assert 'Traceback' not in text, text
  assert text.splitlines()[-1].startswith('error: '), text
  assert newest.read_bytes() == before
  assert not list(workdir.rglob('*.tmp')), 'a torn file is left'
  assert not list(workdir.rglob('.*.tmp')), 'a torn file is left'
  return 'status 1, one line, the old checkpoint intact'


def vanished_workdir(directory):
  """The run directory is removed under a run: one line, status 1."""
  workdir = directory / 'run'
  program = quadratics(workdir, '--num_epochs=100000')
  wait_for_epoch(program, workdir, 3)
  shutil.rmtree(workdir, ignore_errors=True)
  status, text = program.wait(60)
  assert status == 1 and 'Traceback' not in text, (status, text)
  assert text.splitlines()[-1].startswith('error: '), text
  return 'the run directory vanished: status 1, one line'
