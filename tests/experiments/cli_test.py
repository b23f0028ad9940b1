"""The command line: values, presets, help, and how messages arrive."""

import contextlib
import importlib
import io
import os
import pathlib
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from unittest import mock

import jax
import pytest
from absl.testing import absltest, parameterized

from experiments.common import cli, comparison, report, run, settings
from experiments.common.comparison import Comparison, Panel
from tests.experiments import comparison_test, toy

ROOT = pathlib.Path(__file__).parents[2]
OTHERS = ('benchmark', 'architectures', 'analysis', 'evaluate')
BINARIES = {
  name: importlib.import_module(f'experiments.{name}').EXPERIMENT
  for name in (*run.EXPERIMENTS, *OTHERS)
}


class ListTest(absltest.TestCase):
  def test_python_m_experiments_lists_every_binary(self):
    first = ''
    with contextlib.redirect_stdout(io.StringIO()) as seen:
      for given, status in ([], 0), (['--help'], 0), (['mnist'], 2):
        with mock.patch.object(sys, 'argv', ['experiments', *given]):
          with self.assertRaisesRegex(SystemExit, f'^{status}$'):
            runpy.run_module('experiments', run_name='__main__')
        first = first or seen.getvalue()
    self.assertEqual(seen.getvalue(), 3 * first)
    rows = [line.split() for line in first.splitlines()[2:]]
    self.assertEqual({row[0] for row in rows}, {*BINARIES, 'policy_steps'})
    self.assertIn('on random quadratics (Andrychowicz', first)


def parse(name, *flags):
  return cli.parse(BINARIES[name], ['program', *flags])[0]


class ParseTest(parameterized.TestCase):
  @parameterized.parameters(
    (name, preset)
    for name in run.EXPERIMENTS
    for preset in BINARIES[name].presets
  )
  def test_presets(self, name, preset):
    """All values are allowed ones, and come back from run.json."""
    s = parse(name, f'--preset={preset}')
    values = BINARIES[name].presets[preset]
    self.assertEqual(values, {k: settings.flat(s)[k] for k in values})
    recorded = settings.recorded(BINARIES[name], s)
    again = settings.restored(BINARIES[name], recorded)
    self.assertEqual(settings.recorded(BINARIES[name], again), recorded)
    words = settings.command(BINARIES[name], s).split()
    self.assertEqual(words[:3], ['python', '-m', f'experiments.{name}'])
    self.assertEqual(parse(name, *words[3:]), s)

  def test_flags_win_over_presets(self):
    s = parse('quadratics', '--num_epochs=7', '--nosecond_derivatives')
    self.assertEqual((s.run.num_epochs, s.bptt.second_derivatives), (7, False))
    self.assertEqual(s.bptt.unroll_length, 50)
    s = parse('mnist', '--panels=deep', '--panels=base', '--baselines=CG')
    self.assertEqual(s.images.panels, ('deep', 'base'))
    self.assertEqual(s.comparison.baselines, ('CG',))

  def test_home(self):
    """Shells expand ~ in front of a word, not after --flag=."""
    home = os.path.expanduser('~')
    s = parse('mnist', '--workdir=~/runs', '--rivals=~/a', '--rivals=robust')
    self.assertEqual(s.run.workdir, f'{home}/runs')
    self.assertEqual(s.comparison.rivals, (f'{home}/a', 'robust'))

  @parameterized.parameters(
    ('quadratics', '--num_epochs=-1', 'num_epochs'),
    ('quadratics', '--num_epochs=1.5', 'num_epochs'),
    ('quadratics', '--no_such_flag=1', 'no_such_flag'),
    ('quadratics', '--learning_rate=nan', '--learning_rate must be finite'),
    ('evaluate', '--weight_decay=nan', '--weight_decay must be finite'),
    ('evaluate', '--weight_decay=0', '--weight_decay'),
    ('quadratics', '--num_steps=30', 'a multiple of --unroll_length=50'),
    ('quadratics', '--preset=fastest', 'preset'),
    ('quadratics', '--workdir=', '--workdir must not be empty'),
    ('architectures', '--rivals=', '--rivals must not be empty'),
    ('analysis', '--theta=', '--theta must not be empty'),
    ('quadratics', '--multihost_timeout=9', 'multihost_timeout needs'),
    ('quadratics', '--remat=blocks', '--nosecond_derivatives'),
    ('quadratics', '--optimizer=ntm_bfgs', 'it needs --num_problems=1'),
    ('quadratics', '--process_id=0', '--process_id needs --multihost'),
    ('quadratics', 'stray', 'unexpected arguments: stray'),
    ('mnist', '--panels=huge', 'panels'),
    ('benchmark', '--threads=1000', '--threads'),
    ('benchmark', '--workdir=/proc/nowhere', '--workdir'),
    ('architectures', '--depths=0', 'depths'),
    ('architectures', '--activations=step', 'activations'),
    ('analysis', '--times=61', '--times=61: '),
    ('analysis', '--task=cubic', 'task'),
    ('learning_to_optimize', '--num_steps=1', '2 or more'),
    ('predicted_step_descent', '--num_steps=1', '2 or more'),
    (
      'predicted_step_descent',
      '--unroll_length=5',
      '--unroll_length is for --trainer=bptt',
    ),
    (
      'learning_to_optimize',
      '--inner_iterations=3',
      '--inner_iterations is for --trainer=badmm',
    ),
    ('predicted_step_descent', '--initial=ADAM', 'needs --imitation_epochs'),
  )
  def test_bad_flags(self, name, flag, message):
    with self.assertRaises(settings.UsageError) as error:
      parse(name, flag)
    self.assertIn(message, str(error.exception))
    self.assertLen(str(error.exception).splitlines(), 1)

  @parameterized.parameters(
    ('quadratics', '--search_trials=3 --learning_rate=1e-3', 'leave it out'),
    ('predicted_step_descent', '--sized --shared', 'a theta for each layer'),
    ('learning_to_optimize', '--family=net --policy=joint', '--cost=taylor'),
    (
      'mnist',
      '--remat=blocks --nosecond_derivatives --averaged=5',
      '--averaged=0',
    ),
    (
      'learning_to_optimize',
      '--trainer=badmm --cost=sample_taylor',
      '--trainer=mdgps',
    ),
    (
      'predicted_step_descent',
      '--trainer=badmm --cost=sample_taylor',
      '--trainer=mdgps',
    ),
    (
      'predicted_step_descent',
      '--trainer=bptt --num_rollouts=3',
      '--num_rollouts is for --trainer=mdgps or badmm',
    ),
    (
      'predicted_step_descent',
      '--trainer=badmm --imitation_epochs=1',
      '--imitation_epochs is for --trainer=mdgps',
    ),
    ('predicted_step_descent', '--trainer=bptt --remat=blocks', '--shared'),
  )
  def test_contradictions(self, name, flags, message):
    with self.assertRaisesRegex(settings.UsageError, message):
      parse(name, *flags.split())

  @parameterized.parameters(*BINARIES)
  def test_help_shows_what_a_bare_run_does(self, name):
    """By topic, each flag with its value there and a sentence (G.2)."""
    experiment = BINARIES[name]
    s, wants_help = cli.parse(experiment, ['program', '--help'])
    self.assertTrue(wants_help)
    text = cli.help_text(experiment, s)
    self.assertIn(f'python -m experiments.{name}', text[:600])
    bare = settings.flat(settings.preset(experiment))
    for flag, value in bare.items():
      if isinstance(value, int | float) and not isinstance(value, bool):
        self.assertIn(f'--{flag}={value}\n', text)
    for topic in experiment.defaults:
      self.assertEqual(set(settings.helps(type(topic))), set(topic._fields))
    self.assertLessEqual(max(map(len, text.splitlines())), 80)
    _, presets = text.split('Presets, the first by default:\n')
    first = next(iter(experiment.presets))
    self.assertRegex(presets, f'^  {first}: (--|as shown)')

  def test_values_with_spaces_stand_on_one_line(self):
    text = cli.help_text(BINARIES['evaluate'], parse('evaluate'))
    for line in text.split('Presets, the first')[1].splitlines():
      self.assertEqual(line.count("'") % 2, 0, line)
    self.assertIn("'--baselines=ADAM, cosine'", text)

  def test_a_value_for_a_flag_without_one(self):
    with self.assertRaisesRegex(settings.UsageError, 'take an argument'):
      parse('quadratics', '--nosecond_derivatives=1')

  def test_help_names_the_trainer(self):
    s = settings.preset(BINARIES['predicted_step_descent'])
    text = cli.help_text(BINARIES['predicted_step_descent'], s)
    self.assertIn('through time (--trainer=bptt)', text)


class MessagesTest(parameterized.TestCase):
  """Programs in a process of their own."""

  def setUp(self):
    super().setUp()
    directory = self.enterContext(tempfile.TemporaryDirectory())
    self.path = pathlib.Path(directory) / 'run'
    self.environment = {**os.environ, 'JAX_PLATFORMS': 'cpu'}

  def start(self, *words, **how):
    command = [sys.executable, *words]
    pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True}
    how = {'env': self.environment, 'cwd': ROOT, **pipes, **how}
    return subprocess.Popen(command, **how)

  def finished_run(self):
    """A command whose run is finished: it only shows the results."""
    flags = {'num_epochs': 1, 'num_test': 5}
    toy.train(self.path, [(toy.trainer(), 1)], evaluation_period=100, **flags)
    s = toy.make_settings(self.path, **flags)
    problem = comparison_test.PROBLEM
    theta = toy.LEARNED.init(jax.random.key(0))
    with (
      run.opened(toy.EXPERIMENT, s) as path,
      mock.patch.object(report, 'say'),
    ):
      panels = [Panel('parabolas', problem, problem)]
      learned = {'mine': (toy.LEARNED, theta)}
      comparison.compare(path, learned, panels, Comparison(baselines=('SGD',)))
    words = [f'--{name}={value}' for name, value in flags.items()]
    workdir = f'--workdir={self.path}'
    return '-m', 'experiments.quadratics', *words, workdir

  @pytest.mark.slow
  def test_standard_streams(self):
    """Full, closed, left by its reader, ASCII only (B.5)."""
    words = self.finished_run()
    with open('/dev/full', 'w') as full:
      program = self.start(*words, stdout=full)
      _, err = program.communicate()
    self.assertEqual(program.returncode, 1)
    self.assertIn('error: ', err.splitlines()[-1])
    self.assertIn('standard output: No space left', err)
    self.assertNotIn('Traceback', err)

    program = self.start(*words)
    program.stdout.close()
    with program.stderr as stream:
      err = stream.read()
    self.assertEqual(program.wait(), 0, err)
    self.assertNotIn('Error', err)

    self.environment['PYTHONIOENCODING'] = 'ascii'
    out, err = self.start(*words).communicate()
    self.assertIn('parabolas', out)
    self.assertNotIn('Error', err)

    shell = f'{sys.executable} {" ".join(words)} >&- 2>&-'
    how = {'shell': True, 'env': self.environment, 'cwd': ROOT}
    self.assertEqual(subprocess.run(shell, check=False, **how).returncode, 0)

  def test_platform_that_is_not_there(self):
    """One line, status 2 (D.2)."""
    self.environment['JAX_PLATFORMS'] = 'nonsense'
    self.environment['MPLBACKEND'] = 'nonsense'
    flags = '-m', 'experiments.quadratics', f'--workdir={self.path}'
    program = self.start(*flags)
    _, err = program.communicate()
    self.assertEqual(program.returncode, 2, err)
    self.assertLen(err.splitlines(), 1)
    self.assertIn('nonsense', err)

  def test_interrupt_while_python_imports(self):
    """One line, status 130 (D.2)."""
    program = self.start('-m', 'experiments.quadratics', '--help')
    time.sleep(0.6)
    program.send_signal(signal.SIGINT)
    out, err = program.communicate()
    if 'Copy and paste' not in out:  # else it was quicker
      self.assertEqual(program.returncode, 130, err)
      self.assertEqual(err, 'stopped\n')

  def test_help_ends_well(self):
    program = self.start('-m', 'experiments.mnist', '--help')
    out, err = program.communicate()
    self.assertEqual((program.returncode, err), (0, ''))
    self.assertIn('--num_epochs=100\n', out)

  def test_matplotlib_is_missing(self):
    find = lambda name: None if name == 'matplotlib' else mock.DEFAULT
    with mock.patch.object(cli.importlib.util, 'find_spec', side_effect=find):
      with self.assertRaisesRegex(
        settings.UsageError, 'pip install matplotlib'
      ):
        cli._check_surroundings()


if __name__ == '__main__':
  absltest.main()
