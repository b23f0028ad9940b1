"""Data sets: what ships, what is prepared, what is refused."""

import contextlib
import gzip
import io
import pathlib
import sys
import tarfile
import tempfile
import time
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

from l2o_jax import datasets

MNIST = pathlib.Path(__file__).parents[2] / 'shared' / 'data' / 'mnist'


def run(*argv):
  """Exit status, stdout and stderr of the command line."""
  out, err = io.StringIO(), io.StringIO()
  with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
    status = datasets.main(list(argv))
  return status, out.getvalue(), err.getvalue()


def idx(array):
  head = (
    b'\0\0\x08'
    + bytes([array.ndim])
    + b''.join(n.to_bytes(4, 'big') for n in array.shape)
  )
  return gzip.compress(head + array.tobytes())


def cifar_archive(path, folder, files, names, labels):
  """A small archive in the official binary form; returns its images."""
  rng = np.random.default_rng(0)
  rows = {f: rng.integers(0, 10, (3, labels + 3072), np.uint8) for f in files}
  with tarfile.open(path, 'w:gz') as tar:

    def add(name, data):
      info = tarfile.TarInfo(folder + name)
      info.size = len(data)
      tar.addfile(info, io.BytesIO(data))

    for name, array in rows.items():
      add(name, array.tobytes())
    for name, count in names.items():
      add(name, '\n'.join(f'class{i}' for i in range(count)).encode())
  return rows


class DatasetsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.directory = pathlib.Path(
      self.enterContext(tempfile.TemporaryDirectory())
    )

  def test_the_packaged_set(self):
    images, labels = datasets.load('mnist_5k', 'train')
    self.assertEqual((images.shape, images.dtype), ((4000, 28, 28, 1), 'uint8'))
    self.assertEqual((labels.shape, labels.dtype), ((4000,), 'int32'))
    held_out, test_labels = datasets.load('mnist_5k', 'test')
    np.testing.assert_array_equal(
      np.bincount(labels) + np.bincount(test_labels), [500] * 10
    )
    seen = {image.tobytes() for image in images}
    self.assertFalse(any(image.tobytes() in seen for image in held_out))

  def test_missing_data_say_what_to_do_at_once(self):
    started = time.monotonic()
    with self.assertRaisesRegex(datasets.DatasetError, 'prepare mnist'):
      datasets.load('mnist', 'train', str(self.directory))
    status, _, err = run('prepare', 'mnist', '--from', str(self.directory))
    self.assertEqual(status, 2)
    self.assertIn('lacks train-images-idx3-ubyte.gz', err)
    status, _, err = run('prepare', 'imagenet')
    self.assertEqual(status, 2)
    self.assertIn("'imagenet' is not one of mnist", err)
    with mock.patch.object(
      datasets.urllib.request, 'urlopen', side_effect=OSError
    ):
      status, _, err = run(
        'prepare', 'cifar10', '--data_dir', str(self.directory)
      )
    self.assertEqual(status, 2)
    self.assertIn('--from DIR', err)
    self.assertEqual(err.count('\n'), 1)
    self.assertLess(time.monotonic() - started, 5)

  def test_refuses_archives_that_are_not_the_original(self):
    rng = np.random.default_rng(0)
    for (_, kind), file in datasets._IDX_FILES.items():
      shape = (4, 28, 28) if kind == 'images' else (4,)
      (self.directory / file).write_bytes(
        idx(rng.integers(0, 10, shape, np.uint8))
      )
    status, _, err = run(
      'prepare',
      'mnist',
      '--from',
      str(self.directory),
      '--data_dir',
      str(self.directory / 'out'),
    )
    self.assertEqual(status, 2)
    self.assertIn('SHA-256 differs', err)

  def test_damaged_idx(self):
    path = self.directory / 'a.gz'
    good = idx(np.zeros((2, 3), np.uint8))
    for bad, message in (
      (good[:-9], 'damaged'),
      (b'no gzip', 'damaged'),
      (gzip.compress(b'\0\0\x09\x01'), 'not an IDX'),
      (
        gzip.compress(gzip.decompress(idx(np.zeros((3,), np.uint8)))[:-1]),
        'damaged',
      ),
    ):
      path.write_bytes(bad)
      with self.assertRaisesRegex(datasets.DatasetError, message):
        datasets._read_idx(path, 'labels')

  @parameterized.parameters('cifar10', 'cifar100')
  def test_cifar_without_tensorflow(self, name):
    """Through the whole of tensorflow-datasets but for the download."""
    archive, folder, files, labels = datasets._CIFAR_FILES[name]
    counts = {'label': 100 if name == 'cifar100' else 10, 'coarse_label': 20}
    parts = [file for split in files.values() for file in split]
    rows = cifar_archive(
      self.directory / archive,
      folder,
      parts,
      {file: counts[label] for label, file in labels.items()},
      len(labels),
    )
    import tensorflow_datasets as tfds

    with mock.patch.object(
      tfds.download.DownloadManager,
      'download',
      lambda self, url: pathlib.Path(path),
    ):
      path = self.directory / archive
      datasets.prepare(name, str(self.directory / 'out'), str(self.directory))
    images, got = datasets.load(name, 'test', str(self.directory / 'out'))
    want = rows[files['test'][0]]
    np.testing.assert_array_equal(
      np.sort(got), np.sort(want[:, len(labels) - 1])
    )
    order = [
      next(
        i
        for i in range(3)
        if np.array_equal(
          image.transpose(2, 0, 1).ravel(), want[i, len(labels) :]
        )
      )
      for image in images
    ]
    np.testing.assert_array_equal(got, want[order, len(labels) - 1])
    again, _ = datasets.load(name, 'test', str(self.directory / 'out'))  # cache
    np.testing.assert_array_equal(again, images)
    self.assertNotIn('tensorflow', sys.modules)

  def test_real_mnist(self):
    if not MNIST.is_dir():
      self.skipTest(f'the archives are in {MNIST}, which is not here')
    status, out, err = run(
      'prepare',
      'mnist',
      '--from',
      str(MNIST),
      '--data_dir',
      str(self.directory),
    )
    self.assertEqual((status, err[-200:] if status else ''), (0, ''))
    self.assertIn('mnist', out)
    images, labels = datasets.load('mnist', 'train', str(self.directory))
    self.assertEqual(images.shape, (60000, 28, 28, 1))
    self.assertEqual(
      np.bincount(labels).tolist(),
      [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
    )
    self.assertAlmostEqual(images.mean(), 33.318, places=3)
    self.assertEqual(
      datasets.load('mnist', 'test', str(self.directory))[0].shape,
      (10000, 28, 28, 1),
    )


if __name__ == '__main__':
  absltest.main()
