"""Run directories: whose they are, what is lost, what is found again."""

import contextlib
import hashlib
import inspect
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from unittest import mock

import chex
import jax
import numpy as np
from absl.testing import absltest, parameterized

from experiments.common import cli, progress, run, settings, signals, training
from l2o_jax.checkpoint import CheckpointError, metadata
from l2o_jax.pretrained import pretrained
from l2o_jax.theta_files import load_learned, save_learned
from tests.experiments import toy


class RunTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    directory = self.enterContext(tempfile.TemporaryDirectory())
    self.path = pathlib.Path(directory) / 'run'
    self.enterContext(mock.patch.object(cli, 'log'))
    self.log = self.enterContext(mock.patch.object(training, 'log'))
    self.enterContext(mock.patch.object(progress, 'log', self.log))

  def logged(self):
    return '\n'.join(call.args[0] for call in self.log.call_args_list)

  def lines(self):
    text = (self.path / 'metrics.jsonl').read_text()
    return [json.loads(line) for line in text.splitlines()]

  def test_a_whole_run(self):
    last = toy.train(self.path)
    self.assertEqual([line['epoch'] for line in self.lines()], [0, 1, 2, 3, 4])
    self.assertEqual(last.best_epoch, 4)
    self.assertEqual(self.lines()[2]['count'], 2)
    record = json.loads((self.path / 'run.json').read_text())
    self.assertEqual(record['flags']['num_epochs'], 4)
    self.assertNotIn('workdir', record['flags'])
    self.assertIn('--num_epochs=4', record['command'])
    self.assertIn('jax', record['versions'])
    self.assertGreater(record['seconds'], 0)
    learned, theta = load_learned(self.path / 'theta.npz', toy.LEARNED)
    jax.tree.map(np.testing.assert_array_equal, theta, last.best_theta)
    s, rebuilt, again = run.rebuild(self.path)
    self.assertEqual(rebuilt.call, learned.call)
    self.assertEqual(s.run.num_epochs, 4)
    jax.tree.map(np.testing.assert_array_equal, theta, again)

  @parameterized.parameters((0.3, 4, 0.9**4), (0.5, 0, 1.0))
  def test_margin(self, margin, epoch, size):
    """Validation falls by 19 % in two epochs and by 34 % in four."""
    start = training.first_keys(0)[0]
    whole = float(toy.validate(toy.LEARNED.init(start))[-1])
    last = toy.train(self.path, margin=margin * whole)
    self.assertEqual(last.best_epoch, epoch)
    self.assertAlmostEqual(float(last.best) / whole, size, places=5)

  def test_a_directory_that_cannot_be_made(self):
    self.path.write_text('a file')
    for path in (self.path, self.path / 'run', '/proc/nowhere'):
      message = f'--workdir={path} cannot be made: '
      with self.assertRaisesRegex(settings.UsageError, message):
        toy.train(path)

  def test_kept_results_can_be_rebuilt(self):
    """Every kept run that has a theta, whatever its flags were called."""
    kept = pathlib.Path(run.__file__).parents[1] / 'results'
    paths = [path.parent for path in kept.glob('*/*/theta.npz')]
    self.assertNotEmpty(paths)
    for path in paths:
      s, learned, _ = run.rebuild(path)
      self.assertIsNotNone(learned.call)
      self.assertGreater(s.run.num_steps, 0)

  def test_two_starts_at_once(self):
    """The second start ends with one line that names the first (B.1)."""
    s = toy.make_settings(self.path, num_epochs=4, evaluation_period=2)
    with run.opened(toy.EXPERIMENT, s):
      code = (
        'from tests.experiments import toy; from experiments.common import cli;'
        f'cli.run_guarded(lambda: toy.train({str(self.path)!r}))'
      )
      before = (self.path / 'run.json').read_bytes()
      env = {**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)}
      second = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, env=env
      )
      self.assertEqual(second.returncode, 2, second.stderr)
      self.assertLen(second.stderr.splitlines(), 1)
      self.assertIn(f'in use by process {os.getpid()}', second.stderr)
      self.assertEqual((self.path / 'run.json').read_bytes(), before)
      self.assertFalse((self.path / 'metrics.jsonl').exists())
    toy.train(self.path)  # the lock ends with the first

  def test_stray_files_among_checkpoints(self):
    """Other names are neither counted nor removed (B.2)."""
    toy.train(self.path)
    strays = [
      self.path / 'checkpoints' / f'{n}.npz' for n in ('best', '99-old')
    ]
    for stray in strays:
      stray.write_bytes((self.path / 'theta.npz').read_bytes())
    (self.path / 'checkpoints/00000004.npz').unlink()
    toy.train(self.path)
    self.assertIn('resumed at epoch 2', self.logged())
    for name in (
      *strays,
      'checkpoints/00000002.npz',
      'checkpoints/00000004.npz',
    ):
      self.assertTrue((self.path / name).exists(), name)

  @parameterized.parameters(
    'theta.npz', 'best.npz', 'metrics.jsonl', 'picture.png', 'config.json'
  )
  def test_somebody_elses_directory(self, name):
    """Files without a run.json are left alone (B.3)."""
    self.path.mkdir()
    (self.path / name).write_text('mine')
    with self.assertRaisesRegex(settings.UsageError, f'other files, {name}'):
      toy.train(self.path)
    self.assertEqual([f.name for f in self.path.iterdir()], [name])

  def test_a_log_in_the_directory_is_no_obstacle(self):
    self.path.mkdir()
    (self.path / 'log.txt').write_text('of the shell')
    toy.train(self.path)

  @parameterized.parameters('lost', 'damaged', 'old')
  def test_theta_comes_back(self, how):
    """theta.npz lost or damaged after its epoch (B.4)."""
    toy.train(self.path)
    theta = self.path / 'theta.npz'
    whole = theta.read_bytes()
    if how == 'lost':
      theta.unlink()
    elif how == 'damaged':
      theta.write_bytes(whole[:-100])
    else:
      other = pathlib.Path(self.path.parent, 'other')
      toy.train(other, [(toy.trainer(0.5), 4)])
      theta.write_bytes((other / 'theta.npz').read_bytes())
    toy.train(self.path)
    self.assertEqual(theta.read_bytes(), whole)
    self.assertIn('written again from the checkpoint', self.logged())

  def test_a_line_of_the_metrics_is_missing_or_twice(self):
    """Noticed; a second copy is dropped (B.4)."""
    toy.train(self.path)
    file = self.path / 'metrics.jsonl'
    lines = file.read_text().splitlines(True)
    file.write_text(''.join(lines[:2] + lines[1:]))
    toy.train(self.path)
    self.assertEqual(file.read_text(), ''.join(lines))
    file.write_text(''.join(lines[:1] + lines[2:]))
    with self.assertRaisesRegex(settings.UsageError, 'no line of epoch 1'):
      toy.train(self.path)
    file.write_text(''.join(lines[:2]) + lines[1].replace('0', '1', 3))
    with self.assertRaises(settings.UsageError):
      toy.train(self.path)
    file.unlink()
    with self.assertRaisesRegex(settings.UsageError, 'is lost'):
      toy.train(self.path)

  def test_lines_are_on_the_disk_before_their_checkpoint(self):
    """fsync of metrics.jsonl, then the checkpoint that counts on it (B.4)."""
    order = []
    real_sync, real_save = os.fsync, progress.checkpoint.save

    def sync(descriptor):
      name = os.readlink(f'/proc/self/fd/{descriptor}')
      if name.endswith('metrics.jsonl'):
        order.append(('sync', pathlib.Path(name).read_bytes().count(b'\n')))
      real_sync(descriptor)

    def save(path, *args, **kwargs):
      if pathlib.Path(path).parent.name == 'checkpoints':
        order.append(('save', int(pathlib.Path(path).stem)))
      real_save(path, *args, **kwargs)

    with (
      mock.patch.object(os, 'fsync', sync),
      mock.patch.object(progress.checkpoint, 'save', save),
    ):
      toy.train(self.path)
    for (what, lines), (then, epochs) in zip(order[::2], order[1::2]):
      self.assertEqual((what, then), ('sync', 'save'))
      self.assertGreaterEqual(lines, epochs)

  @parameterized.parameters('run.json', 'metrics.jsonl')
  def test_special_files(self, name):
    """A FIFO in place of a file is refused, not waited for (C)."""
    toy.train(self.path)
    (self.path / name).unlink()
    os.mkfifo(self.path / name)
    alarm = threading.Timer(20, os._exit, (9,))
    alarm.start()
    with self.assertRaisesRegex(settings.UsageError, 'FIFO'):
      toy.train(self.path)
    alarm.cancel()

  def test_theta_from_a_special_file(self):
    s = toy.make_settings(self.path, theta='/dev/zero')
    with self.assertRaisesRegex(CheckpointError, 'device'):
      training.given_theta(toy.LEARNED, s)

  def test_theta_that_comes_with_the_package(self):
    learned, theta = pretrained('quadratics')
    s = toy.make_settings(self.path, theta='quadratics')
    chex.assert_trees_all_equal(training.given_theta(learned, s), theta)
    with self.assertRaisesRegex(CheckpointError, 'is for lstm_raw.*, not'):
      training.given_theta(pretrained('robust')[0], s)

  def test_theta_of_another_optimizer(self):
    """Another output scale is refused in one line that names both (A.4)."""
    toy.train(self.path)
    s = toy.make_settings(self.path, theta=str(self.path / 'theta.npz'))
    other = toy.lstm_raw(0.5)
    with self.assertRaisesRegex(CheckpointError, 'scale=1.0.*scale=0.5') as e:
      training.given_theta(other, s)
    self.assertLen(str(e.exception).splitlines(), 1)

  def test_never_finite(self):
    """Status 3, valid JSON, no theta (B.6)."""
    nothing = lambda theta: np.array([np.nan, np.inf, np.nan])
    with self.assertRaisesRegex(cli.NonFinite, 'no theta has a finite'):
      toy.train(self.path, validate=nothing)
    self.assertIsNone(self.lines()[0]['validation_final'])
    self.assertFalse((self.path / 'theta.npz').exists())
    with self.assertRaises(SystemExit) as end:
      cli.run_guarded(lambda: toy.train(self.path, validate=nothing))
    self.assertEqual(end.exception.code, 3)

  def test_meta_gradients_never_finite(self):
    skipping = [(toy.trainer(skipped=True), 4)]
    with self.assertRaisesRegex(cli.NonFinite, 'last 3 meta-steps'):
      toy.train(self.path, skipping, max_nonfinite=3)
    self.assertEqual(self.lines()[-1]['skipped'], 3)

  def test_the_last_meta_gradients_were_not_finite(self):
    """Started again it ends the same way, though no epoch is left."""
    skipping = [(toy.trainer(skipped=True), 4)]
    for _ in range(2):
      with self.assertRaisesRegex(cli.NonFinite, 'at epoch 4 of 4'):
        toy.train(self.path, skipping, max_nonfinite=4)

  @parameterized.parameters(4, 0)
  def test_trained_weights_without_checkpoints(self, selected):
    """As in a kept result: nothing is overwritten."""
    worse = lambda theta: -toy.validate(theta)
    toy.train(self.path, validate=worse if selected == 0 else toy.validate)
    run.note(self.path, finished=True)
    shutil.rmtree(self.path / 'checkpoints')
    before = (self.path / 'theta.npz').read_bytes()
    self.assertEqual(metadata(self.path / 'theta.npz')['epochs'], selected)
    with self.assertRaisesRegex(settings.UsageError, 'would be overwritten'):
      toy.train(self.path)
    self.assertEqual((self.path / 'theta.npz').read_bytes(), before)

  @parameterized.parameters(1, 2, 3, 5)
  def test_two_trainers_in_a_row(self, stop):
    """Theta goes over; stopped and resumed anywhere it is the same run."""
    stages = [(toy.trainer(0.9), 2), (toy.trainer(0.5), 3)]
    flags = {'num_epochs': 5, 'evaluation_period': 1}
    toy.train(self.path, stages, **flags)
    counts = [line.get('count') for line in self.lines()]
    self.assertEqual(counts, [0, 1, 0, 1, 2, None])
    losses = [line['validation_final'] for line in self.lines()]
    ratios = np.divide(losses[1:], losses[:-1])
    np.testing.assert_allclose(ratios, [0.9, 0.9, 0.5, 0.5, 0.5], rtol=1e-5)
    other = self.path.parent / 'other'
    calls = []

    def received():
      calls.append(1)
      return signal.SIGTERM if len(calls) == stop else None

    with mock.patch.object(signals, 'received', received):
      if stop < 5:
        with self.assertRaises(signals.Stopped):
          toy.train(other, stages, **flags)
    toy.train(other, stages, **flags)
    self.assertEqual(toy.files(other), toy.files(self.path))

  def test_other_flags_are_refused(self):
    toy.train(self.path)
    with self.assertRaisesRegex(settings.UsageError, '--seed=0 there, 1 here'):
      toy.train(self.path, seed=1)
    with self.assertRaisesRegex(settings.UsageError, '--resume=never'):
      toy.train(self.path, resume='never')
    with self.assertRaisesRegex(settings.UsageError, 'there is no run'):
      toy.train(self.path.parent / 'other', resume='must')
    self.assertFalse((self.path.parent / 'other').exists())

  def test_another_file_behind_the_same_theta_flag(self):
    toy.train(self.path)
    start = self.path.parent / 'start.npz'
    start.write_bytes((self.path / 'theta.npz').read_bytes())
    other, flags = self.path.parent / 'other', {'theta': str(start)}
    toy.train(other, **flags)
    toy.train(other, **flags)
    learned, theta = load_learned(start)
    save_learned(start, learned, jax.tree.map(lambda x: x + 1, theta))
    message = f'{start} was another file'
    with self.assertRaisesRegex(settings.UsageError, message):
      toy.train(other, **flags)

  def test_what_flags_name(self):
    """Weights of the package come before files; data count as well."""
    data = self.path.parent / 'images.npz'
    data.write_bytes(b'one')
    named = {'theta': 'robust', 'dataset': 'cifar10', 'rivals': ('mnist',)}
    named |= {'test_data': (str(data), 'mnist')}
    with contextlib.chdir(self.path.parent):
      pathlib.Path('robust').mkdir()
      pathlib.Path('robust/theta.npz').write_bytes(b'other')
      with mock.patch.object(run.settings_lib, 'flat', lambda s: named):
        found = run._inputs(None)
    package = pathlib.Path(inspect.getfile(pretrained)).parent
    digest = lambda b: hashlib.sha256(b).hexdigest()[:16]
    weights = (package / 'robust.npz').read_bytes()
    want = {'robust': digest(weights), str(data): digest(b'one')}
    self.assertEqual(found, want)
    folder = self.path.parent / 'pictures'
    folder.mkdir()
    named, seen = {'contents': str(folder)}, set()
    for text in b'a', b'b':
      (folder / '1.png').write_bytes(text)
      (folder / '.DS_Store').write_bytes(b'no picture')
      with mock.patch.object(run.settings_lib, 'flat', lambda s: named):
        seen.add(run._inputs(None)[str(folder)])
    self.assertLen(seen, 2)

  def test_a_record_of_an_earlier_version(self):
    toy.train(self.path)
    record = run.read_record(self.path)
    record['thetas'] = {'lost.npz': 'digest'}
    del record['inputs']
    run.write_json(self.path / 'run.json', record)
    with self.assertRaisesRegex(settings.UsageError, 'lost.npz was another'):
      toy.train(self.path)

  def test_stale_temporaries(self):
    """What a killed save has left goes away with the next (B.7)."""
    toy.train(self.path)
    stale = self.path / 'checkpoints' / f'.x.npz.l2o-{"0" * 16}.tmp'
    stale.write_bytes(b'torn')
    (self.path / 'checkpoints/00000004.npz').unlink()
    toy.train(self.path)
    self.assertFalse(stale.exists())

  def test_what_the_log_says(self):
    """Named losses, epoch 0 explained, the end estimated (G.4)."""
    toy.train(self.path)
    first, last = self.logged().splitlines()[0], self.logged().splitlines()[-1]
    self.assertIn('before any meta-training', first)
    self.assertRegex(
      last, r'final loss [\d.]+, mean loss [\d.]+; selected: final'
    )
    middle = [line for line in self.logged().splitlines() if '2/4' in line]
    self.assertRegex(middle[0], r's/epoch, ends at about \d\d:\d\d')

  def test_search_directories_need_no_record(self):
    """Trials of the meta learning rate keep metrics and checkpoints."""
    s = toy.make_settings(self.path, num_epochs=1)
    with run.opened(toy.EXPERIMENT, s) as path:
      parts = path, toy.LEARNED, [toy.OPTIMIZEE]
      t = training.prepare(toy.EXPERIMENT, s, *parts, validate=toy.validate)
      (path / 'search').mkdir()
      (path / 'search/00').mkdir()
      stages = [training.Stage([toy.trainer()], 1)]
      training.meta_train(t._replace(path=path / 'search/00', stages=stages))
    self.assertTrue((self.path / 'search/00/theta.npz').exists())


if __name__ == '__main__':
  absltest.main()
