"""From the original files to prepared data, and the command line.

The real MNIST is tried where L2O_JAX_MNIST_DIR names a directory with its four
archives; the other tests make small ones of the same form.
"""

import contextlib
import gzip
import io
import multiprocessing
import os
import pathlib
import sys
import tempfile
import threading
import time
import urllib.error
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

from l2o_jax import datasets
from l2o_jax.datasets import archives, prepare
from l2o_jax.datasets.__main__ import main
from tests.datasets import originals


def run(*argv):
  """Exit status, stdout and stderr of the command line."""
  out, err = io.StringIO(), io.StringIO()
  with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
    status = main([str(argument) for argument in argv])
  return status, out.getvalue(), err.getvalue()


def prepare_small(source, root):
  """In a process of its own; a part of the work lasts for ever if told so."""
  with originals.known(originals.mnist()):
    if (source / 'hang').exists():
      prepare._write = lambda *args: time.sleep(1000)
    prepare.prepare('mnist', root, source)


class PrepareTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    directory = self.enterContext(tempfile.TemporaryDirectory())
    self.source = pathlib.Path(directory) / 'source'
    self.source.mkdir()
    self.root = pathlib.Path(directory) / 'some' / 'out'
    self.arrays = originals.mnist()
    self.enterContext(originals.known(self.arrays))
    originals.write_mnist(self.source, self.arrays)

  def assert_prepared(self):
    self.assertEqual([p.name for p in self.root.iterdir()], ['mnist'])
    images, labels = datasets.load('mnist', 'train', self.root)
    order = np.lexsort(images.reshape(20, -1).T)
    want = self.arrays['train-images-idx3-ubyte']
    want_order = np.lexsort(want.reshape(20, -1).T)
    np.testing.assert_array_equal(images[order, ..., 0], want[want_order])
    want_labels = self.arrays['train-labels-idx1-ubyte'][want_order]
    np.testing.assert_array_equal(labels[order], want_labels)

  def command(self, name='mnist'):
    return run('prepare', name, '--from', self.source, '--data_dir', self.root)

  def test_command_line(self):
    status, out, err = self.command()
    self.assertEqual((status, err.count('\n')), (0, 1))
    self.assertIn(f'writing 30 images to {self.root}', err)
    self.assertEqual(pathlib.Path(out.strip()).parent, self.root / 'mnist')
    self.assert_prepared()
    for path in self.source.iterdir():  # needed no more
      path.unlink()
    self.assertEqual(self.command(), (0, out, ''))
    self.assertNotIn('tensorflow', sys.modules)

  def test_help_where_the_directory_has_a_percent_sign(self):
    with mock.patch.dict(os.environ, {'TFDS_DATA_DIR': '/tmp/100%/x'}):
      out = self.enterContext(contextlib.redirect_stdout(io.StringIO()))
      with self.assertRaisesRegex(SystemExit, '^0$'):
        main(['--help'])
    self.assertIn('/tmp/100%/x', out.getvalue())

  def test_errors_are_one_line_and_leave_nothing(self):
    path = self.source / 'train-labels-idx1-ubyte.gz'
    labels = np.full(20, 77, np.uint8)
    for data, message in (
      (gzip.compress(originals.idx(labels)), 'has the label 77'),
      (b'', 'not an IDX file'),
      (path.read_bytes()[:-3], 'Compressed file ended'),
      (None, 'lacks train-labels-idx1-ubyte.gz'),
    ):
      path.unlink()
      if data is not None:
        path.write_bytes(data)
      status, out, err = self.command()
      self.assertEqual((status, out, err.count('\n')), (2, '', 1))
      self.assertRegex(err, f'^error: .*{message}')
      self.assertFalse(self.root.parent.exists())
    status, _, err = self.command('imagenet')
    self.assertEqual(status, 2)
    self.assertIn("'imagenet' is not one of mnist", err)

  def test_a_failure_while_writing_leaves_nothing(self):
    for error in (OSError('disk full'), RuntimeError('two\nlines')):
      import tensorflow_datasets as tfds

      with mock.patch.object(
        tfds.core.GeneratorBasedBuilder,
        'download_and_prepare',
        side_effect=error,
      ):
        status, _, err = self.command()
      self.assertEqual((status, err.count('\n')), (2, 2), err)
      self.assertIn('error: mnist cannot be written', err)
      self.assertFalse(self.root.parent.exists())

  def test_no_network(self):
    with mock.patch('urllib.request.urlopen', side_effect=OSError):
      status, _, err = run('prepare', 'cifar10', '--data_dir', self.root)
    self.assertEqual((status, err.count('\n')), (2, 1))
    self.assertRegex(err, 'no network to www.cs.toronto.edu;.*--from DIR')
    self.assertFalse(self.root.parent.exists())

  def test_download(self):
    def answer(url, timeout):
      return open(self.source / url.rpartition('/')[2], 'rb')

    with mock.patch('urllib.request.urlopen', side_effect=answer):
      status, _, err = run('prepare', 'mnist', '--data_dir', self.root)
    self.assertEqual(status, 0, err)
    self.assertEqual(err.count('downloading https://'), 4)
    self.assert_prepared()

  def test_a_damaged_download(self):
    error = urllib.error.HTTPError('', 404, 'Not Found', {}, io.BytesIO())
    for answer, message in (
      (lambda *args, **kw: io.BytesIO(b'<html>'), 'is not an IDX file'),
      (error, 'https://.*: .*Not Found'),
    ):
      with mock.patch('urllib.request.urlopen', side_effect=answer):
        status, _, err = run('prepare', 'mnist', '--data_dir', self.root)
      self.assertEqual(status, 2)
      self.assertRegex(err.splitlines()[-1], f'error: .*{message}')
      self.assertFalse(self.root.parent.exists())
    error.close()

  def test_what_a_killed_process_left_is_removed(self):
    (self.source / 'hang').touch()
    work, paths = self.root / '.prepare-mnist', (self.source, self.root)
    context = multiprocessing.get_context('spawn')
    process = context.Process(target=prepare_small, args=paths)
    process.start()
    while not work.exists():
      self.assertIsNone(process.exitcode)
      time.sleep(0.01)
    process.kill()
    process.join()
    (work / 'large').write_bytes(bytes(1000))
    prepare.prepare('mnist', self.root, self.source)
    self.assert_prepared()
    work.mkdir()  # killed when all was done
    (work / 'large').write_bytes(bytes(1000))
    (self.root / '.prepare-mnist.lock').touch()
    prepare.prepare('mnist', self.root, self.source)
    self.assert_prepared()

  def test_two_at_once(self):
    said, results, entered = [], [], threading.Event()
    write = prepare._write

    def slowly(*args):
      entered.set()
      while len(said) < 2:  # the first is writing, the second waits
        time.sleep(0.01)
      return write(*args)

    def work():
      results.append(
        prepare.prepare('mnist', self.root, self.source, said.append)
      )

    with mock.patch.object(prepare, '_write', side_effect=slowly) as written:
      threads = [threading.Thread(target=work) for _ in range(2)]
      threads[0].start()
      entered.wait()
      threads[1].start()
      for thread in threads:
        thread.join()
      self.assertEqual(written.call_count, 1)
    self.assertIn('waiting for another process that prepares mnist', said[1])
    self.assertEqual(results[0], results[1])
    self.assert_prepared()

  def test_where_there_are_no_locks(self):
    with mock.patch.object(prepare, 'lock', return_value=False):
      status, _, err = self.command()
    self.assertEqual(status, 2)
    self.assertIn('.prepare-mnist.lock cannot be locked', err)

  @parameterized.parameters('cifar10', 'cifar100')
  def test_cifar(self, name):
    files, own = originals.cifar(name, per_class=1), archives.CIFAR[name]
    packed = gzip.compress(originals.tar(files, own.folder))
    (self.source / own.archive).write_bytes(packed)
    self.enterContext(originals.small_cifar(name, 1))
    prepare.prepare(name, self.root, self.source)
    images, labels = datasets.load(name, 'train', self.root)
    want_labels, want = originals.cifar_rows(name, files, 'train')
    want_labels = want_labels[:, -1]  # the fine ones
    at = np.argsort(labels)  # one image of each class
    np.testing.assert_array_equal(labels[at], np.sort(want_labels))
    np.testing.assert_array_equal(images[at], want[np.argsort(want_labels)])
    names = list(self.root.glob('*/*/label.labels.txt'))[0].read_text().split()
    self.assertEqual(names[:2], ['class0', 'class1'])


if 'L2O_JAX_MNIST_DIR' in os.environ:

  class RealMnistTest(absltest.TestCase):
    def test_real_mnist(self):
      root = self.enterContext(tempfile.TemporaryDirectory())
      source = os.environ['L2O_JAX_MNIST_DIR']
      status, _, err = run(
        'prepare', 'mnist', '--from', source, '--data_dir', root
      )
      self.assertEqual(status, 0, err)
      images, labels = datasets.load('mnist', 'train', root)
      self.assertEqual(images.shape, (60000, 28, 28, 1))
      self.assertEqual(
        np.bincount(labels).tolist(),
        [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
      )
      self.assertAlmostEqual(images.mean(), 33.318, places=3)
      images, _ = datasets.load('mnist', 'test', root)
      self.assertEqual(images.shape, (10000, 28, 28, 1))


if __name__ == '__main__':
  absltest.main()
