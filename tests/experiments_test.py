"""The binaries as a user runs them, on tiny settings."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from unittest import mock

import jax
import numpy as np
from absl.testing import absltest, parameterized

from experiments.common import run as harness

ROOT = pathlib.Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(ROOT)}
TINY = (
  '--num_epochs=4',
  '--num_steps=4',
  '--unroll_length=2',
  '--evaluation_period=2',
  '--num_validation=2',
  '--num_tuning=2',
  '--num_test=3',
)
TINY_QUADRATICS = TINY + (
  '--num_problems=2',
  '--dimension=3',
  '--num_optimizees=2',
)


# Compiles in half the time, to code that is slower.
QUICK = {'XLA_FLAGS': '--xla_backend_optimization_level=0'}
CACHE = tempfile.mkdtemp()  # the runs compile the same functions: once will do
ENVIRONMENT.update(
  JAX_COMPILATION_CACHE_DIR=CACHE,
  JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS='0',
)


def tearDownModule():
  # More than once where a worker has tests of other files in between.
  shutil.rmtree(CACHE, ignore_errors=True)


def run(experiment, *flags, **environment):
  """(exit status, stdout, stderr)."""
  process = subprocess.run(
    [sys.executable, '-m', f'experiments.{experiment}', *flags],
    capture_output=True,
    text=True,
    env=ENVIRONMENT | environment,
    cwd=ROOT,
    timeout=1200,
    check=False,
  )
  return process.returncode, process.stdout, process.stderr


class ExperimentsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.directory = pathlib.Path(
      self.enterContext(tempfile.TemporaryDirectory())
    )

  @parameterized.parameters(
    ('quadratics', TINY_QUADRATICS, QUICK),
    (
      'mnist',
      TINY
      + (
        '--nosecond_derivatives',
        '--remat=blocks',
        '--batch_size=4',
        '--panels=deep',
      ),
      QUICK,
    ),
  )
  def test_a_whole_run(self, experiment, flags, environment):
    workdir = self.directory / 'run'
    status, out, err = run(
      experiment, *flags, f'--workdir={workdir}', **environment
    )
    self.assertEqual(status, 0, err)
    self.assertIn('compiling', err)
    self.assertEqual(out.count('LSTM'), 1)
    self.assertLessEqual(
      {
        'config.json',
        'metrics.jsonl',
        'checkpoints',
        'best.npz',
        'curves.csv',
        'summary.json',
        'learning_curves.png',
      },
      {path.name for path in workdir.iterdir()},
    )
    lines = [
      json.loads(line)
      for line in (workdir / 'metrics.jsonl').read_text().splitlines()
    ]
    self.assertEqual([line['epoch'] for line in lines], [0, 1, 2, 3, 4])
    summary = json.loads((workdir / 'summary.json').read_text())
    self.assertLen(summary['panels'], 1)
    for rows in summary['panels'].values():
      self.assertEqual(
        set(rows), {'LSTM', 'SGD', 'momentum', 'NAG', 'RMSprop', 'ADAM'}
      )
      self.assertTrue(np.isfinite(rows['NAG']['final_mean']))
    self.assertEqual(
      len((workdir / 'curves.csv').read_text().splitlines()), 1 + 6 * 5
    )

  def test_learning_to_optimize(self):
    """A whole run; then the last epoch once more, from its checkpoint."""
    workdir = self.directory / 'run'
    flags = (
      '--num_epochs=2',
      '--num_steps=3',
      '--num_functions=2',
      '--num_rollouts=2',
      '--num_validation=2',
      '--num_test=3',
      '--horizons=2',
      '--baselines=momentum',
      '--baselines=CG',
      f'--workdir={workdir}',
    )
    status, out, err = run('learning_to_optimize', *flags, **QUICK)
    self.assertEqual(status, 0, err)
    self.assertIn('margin of victory over', out)
    names = ('metrics.jsonl', 'curves.csv', 'summary.json')
    first = [(workdir / name).read_text() for name in names]
    self.assertLen(first[0].splitlines(), 3)
    # Three optimizers and three margins (both, each) at 7 times.
    self.assertLen(first[1].splitlines(), 1 + 6 * 7)
    summary = json.loads(first[2])
    self.assertEqual(set(summary['optimizers']), {'learned', 'momentum', 'CG'})
    self.assertEqual(
      list(summary['margin_of_victory']), ['momentum, CG', 'momentum', 'CG']
    )
    self.assertTrue((workdir / 'margin.png').exists())
    for name in names:
      (workdir / name).rename(workdir / f'{name}.old')
    (workdir / 'checkpoints/00000002.npz').unlink()
    (workdir / 'metrics.jsonl.old').rename(workdir / 'metrics.jsonl')
    status, _, err = run('learning_to_optimize', *flags, **QUICK)
    self.assertEqual(status, 0, err)
    self.assertIn('resumed at epoch 1 of 2', err)
    self.assertEqual(first, [(workdir / name).read_text() for name in names])

  def test_predicted_step_descent(self):
    """A run from the kept theta; its last epoch again, from a checkpoint."""
    workdir, kept = self.directory / 'run', self.directory / 'kept'
    kept.mkdir()
    for name in ('best.npz', 'config.json'):
      shutil.copy(
        ROOT / 'experiments/results/predicted_step_descent' / f'quick_{name}',
        kept / name,
      )
    flags = (
      '--num_steps=4',
      '--unroll_length=2',
      '--inputs=3',
      '--hidden=2',
      '--objective_size=50',
      '--num_rollouts=2',
      '--num_coordinates=2',
      '--state_depth=0',
      '--regression_steps=2',
      '--batch_size=2',
      '--num_validation=2',
      '--num_tuning=1',
      '--num_test=2',
      '--panels=same',
      '--baselines=momentum',
      '--tune_each',
      '--num_epochs=2',
      f'--theta={kept}/best.npz',
      f'--rivals={kept}',
      f'--workdir={workdir}',
    )
    status, out, err = run('predicted_step_descent', *flags, **QUICK)
    self.assertEqual(status, 0, err)
    names = ('metrics.jsonl', 'curves.csv', 'summary.json')
    first = [(workdir / name).read_text() for name in names]
    self.assertLen(first[0].splitlines(), 3)
    # It goes on from --theta: no guide is rolled out first.
    self.assertGreater(json.loads(first[0].splitlines()[0])['policy_cost'], 0)
    self.assertLen(first[1].splitlines(), 1 + 3 * 2 * 5)
    rows = json.loads(first[2])['panels']['mnist_5k, same']
    self.assertEqual(
      set(rows), {'mdgps, changes (this run)', 'mdgps, changes', 'momentum'}
    )
    self.assertTrue((workdir / 'learning_curves.png').exists())
    (workdir / 'checkpoints/00000002.npz').unlink()
    status, _, err = run('predicted_step_descent', *flags, **QUICK)
    self.assertEqual(status, 0, err)
    self.assertIn('resumed at epoch 1 of 2', err)
    self.assertEqual(first, [(workdir / name).read_text() for name in names])

  def test_random_search_of_the_meta_learning_rate(self):
    workdir = self.directory / 'run'
    status, _, err = run(
      'quadratics',
      *TINY_QUADRATICS,
      '--search_trials=2',
      '--search_epochs=2',
      f'--workdir={workdir}',
      **QUICK,
    )
    self.assertEqual(status, 0, err)
    rate = json.loads((workdir / 'summary.json').read_text())[
      'meta_learning_rate'
    ]
    tried = [
      json.loads((workdir / 'search' / i / 'config.json').read_text())[
        'learning_rate'
      ]
      for i in ('00', '01')
    ]
    self.assertIn(rate, tried)
    self.assertTrue(all(1e-4 <= r <= 1e-2 for r in tried))

  @parameterized.parameters(
    ('quadratics', ('--num_epochs=-1',), 'num_epochs'),
    ('quadratics', ('--no_such_flag=1',), 'no_such_flag'),
    ('quadratics', ('--learning_rate=nan',), 'learning_rate'),
    ('quadratics', ('--num_steps=30',), '--unroll_length=50'),
    ('quadratics', ('--resume=must',), 'there is no run'),
    ('quadratics', ('stray',), 'unexpected arguments: stray'),
    (
      'learning_to_optimize',
      ('--family=net', '--policy=joint'),
      '--cost=taylor',
    ),
    ('predicted_step_descent', ('--rivals=/nowhere',), '--rivals=/nowhere'),
    (
      'predicted_step_descent',
      ('--trainer=badmm', '--cost=sample_taylor'),
      '--trainer=mdgps',
    ),
    (
      'predicted_step_descent',
      ('--trainer=badmm', '--initial=ADAM'),
      '--trainer=mdgps',
    ),
    ('predicted_step_descent', ('--dataset=/nowhere.npz',), 'cannot be read'),
    (
      'predicted_step_descent',
      ('--trainer=bptt', '--remat=blocks'),
      'not one vector',
    ),
    ('mnist', ('--remat=blocks',), '--nosecond_derivatives'),
    ('mnist', ('--dataset=mnist', '--data_dir=/nowhere'), 'prepare mnist'),
  )
  def test_bad_flags_get_a_clear_line(self, experiment, flags, message):
    workdir = self.directory / 'run'
    started = time.monotonic()
    status, _, err = run(experiment, f'--workdir={workdir}', *flags)
    self.assertNotEqual(status, 0)
    self.assertIn(message, err)
    self.assertNotIn('Traceback', err)
    self.assertFalse(workdir.exists())
    self.assertLess(time.monotonic() - started, 30)

  def test_refuses_another_configuration(self):
    (self.directory / 'config.json').write_text('{"seed": 7}')
    status, _, err = run(
      'quadratics', *TINY_QUADRATICS, f'--workdir={self.directory}'
    )
    self.assertEqual(status, 2)
    self.assertIn('--seed=7 there, 0 here', err)

  def test_benchmark(self):
    status, out, err = run(
      'benchmark',
      '--workloads=update',
      '--coordinates=3000',
      '--runs=2',
      f'--workdir={self.directory}',
    )
    self.assertEqual(status, 0, err)
    self.assertIn('ns/param', out)
    found = json.loads((self.directory / 'benchmark.json').read_text())
    self.assertGreater(found['matrix_rate'], 1e8)
    self.assertAlmostEqual(  # 10,282 FLOP a parameter
      found['arithmetic_seconds']['update, 3,000 parameters'],
      3000 * 10_282 / found['matrix_rate'],
    )
    rows = found['workloads']['update, 3,000 parameters']
    self.assertEqual(
      set(rows),
      {
        'l2o_jax',
        'l2o_jax, chunked',
        'l2o_jax, chunked, XLA flags',
        'l2o_jax, chunked, bfloat16 state',
        'optax.adam',
      },
    )
    for row in rows.values():
      self.assertLessEqual(0, row['least'])
      self.assertLessEqual(row['least'], row['seconds'])
      self.assertGreaterEqual(row['peak_bytes'], 3000 * 4 * 4)

  def test_help_opens_with_commands(self):
    common = (
      '--num_epochs',
      '--num_steps',
      '--preset',
      '--evaluation_period',
      '--seed',
      '--workdir',
      '--resume',
    )
    bptt = (
      '--unroll_length',
      '--learning_rate',
      '--[no]second_derivatives',
      '--remat',
    )
    for experiment, own in (
      ('quadratics', bptt),
      ('mnist', bptt),
      ('predicted_step_descent', ('--trainer', '--features', '--panels')),
      ('learning_to_optimize', ('--family', '--method', '--baselines')),
    ):
      status, out, _ = run(experiment, '--help')
      self.assertIn(f'python -m experiments.{experiment}', out[:600])
      for flag in common + own:
        self.assertIn(flag, out)
    self.assertNotIn('--unroll_length', out)


class CpuOptionsTest(absltest.TestCase):
  def compiled_with(self, options, flags=''):
    lowered = mock.Mock()
    with mock.patch.dict(os.environ, XLA_FLAGS=flags):
      harness._compile(lowered, options)
    return lowered.compile.call_args.kwargs['compiler_options']

  def test_xla_flags_go_first(self):
    options = {'xla_cpu_a': 1, 'xla_cpu_b': True}
    self.assertEqual(self.compiled_with(options), options)
    self.assertEqual(
      self.compiled_with(options, '--xla_cpu_a=3'), {'xla_cpu_b': True}
    )

  def test_they_are_known(self):
    lowered = jax.jit(lambda x: x + 1).lower(1.0)
    with self.assertNoLogs(level='WARNING'):
      harness._compile(lowered, harness.COMPILE_QUICKLY)

  def test_one_that_this_xla_does_not_know(self):
    lowered = jax.jit(lambda x: x + 1).lower(1.0)
    with self.assertLogs(level='WARNING') as logs:
      program = harness._compile(lowered, {'xla_cpu_no_such': True})
    self.assertIn('xla_cpu_no_such', logs.output[0])
    self.assertEqual(program(1.0), 2)


if __name__ == '__main__':
  absltest.main()
