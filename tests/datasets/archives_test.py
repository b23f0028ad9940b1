"""What is accepted as the original files of a data set, and what is not."""

import gzip
import hashlib
import os
import pathlib
import tarfile
import tempfile
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

from l2o_jax.datasets import DatasetError, archives
from tests.datasets import originals


class ArchivesTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.directory = pathlib.Path(
      self.enterContext(tempfile.TemporaryDirectory())
    )
    self.said = []

  def read(self, name):
    return archives.read(name, self.directory, self.said.append)

  def assert_refused(self, name, message):
    with self.assertRaisesRegex(DatasetError, message) as caught:
      self.read(name)
    self.assertNotIn('\n', str(caught.exception))
    self.assertEmpty(self.said)  # one line in all


class IdxTest(ArchivesTest):
  def setUp(self):
    super().setUp()
    self.arrays = originals.mnist()
    self.enterContext(originals.known(self.arrays))

  def path(self, file='train-images-idx3-ubyte'):
    return self.directory / f'{file}.gz'

  def write(self, **changes):
    """Writes all files but for changes {'train_labels': array or bytes}."""
    originals.write_mnist(self.directory, self.arrays)
    for name, new in changes.items():
      kind = 'idx3' if 'images' in name else 'idx1'
      path = self.path(f'{name.replace("_", "-")}-{kind}-ubyte')
      new = new if isinstance(new, bytes) else gzip.compress(originals.idx(new))
      path.write_bytes(new)

  @parameterized.parameters(
    (gzip.compress, lambda file: f'{file}.gz'),
    # another level and header, as in Debian's package
    (lambda data: gzip.compress(data, 1, mtime=5), lambda file: f'{file}.gz'),
    (bytes, lambda file: file),
    (bytes, lambda file: f'{file}.gz'),  # as browsers leave it
    (bytes, lambda file: f'{file}/{file}'),  # as Kaggle's archive unpacks
    (bytes, lambda file: file.replace('-idx', '.idx')),
    (gzip.compress, lambda file: file.replace('-idx', '.idx') + '.gz'),
  )
  def test_any_packing_of_the_original(self, pack, named):
    originals.write_mnist(self.directory, self.arrays, pack, named)
    splits, class_names = self.read('mnist')
    x, y, test_x, test_y = self.arrays.values()
    np.testing.assert_array_equal(splits['train'].images, x)
    np.testing.assert_array_equal(splits['train'].labels['label'], y)
    np.testing.assert_array_equal(splits['test'].images, test_x)
    np.testing.assert_array_equal(splits['test'].labels['label'], test_y)
    self.assertEqual(class_names, {})

  def test_other_content(self):
    other = self.arrays['train-images-idx3-ubyte'].copy()
    other[3, 4, 5] ^= 1
    self.write(train_images=other)
    self.assert_refused('mnist', 'train-images-idx3-ubyte.gz.*not the original')
    self.assertEqual(
      archives.IDX_SHA256['fashion_mnist'][3][:8], '0402a96d'
    )  # of another set, which has other files
    self.write()
    sizes = {'fashion_mnist': archives.SIZES['mnist']}
    with mock.patch.dict(archives.SIZES, sizes):
      self.assert_refused('fashion_mnist', 'not the original')

  def test_damage(self):
    x, y = list(self.arrays.values())[:2]
    packed = gzip.compress(originals.idx(x))
    data = originals.idx(x)
    flipped = packed[:-6] + bytes([packed[-6] ^ 1]) + packed[-5:]  # its CRC
    for change, message in (
      (packed[:-9], 'images.*cannot be read: Compressed file ended'),
      (flipped, 'cannot be read: CRC check failed'),
      (b'', 'not an IDX file of bytes in 3 dim'),
      (b'<html>404</html>', 'not an IDX file of bytes in 3 dim'),
      (packed[:10], 'images.*cannot be read'),
      (gzip.compress(data[:2] + b'\x0d' + data[3:]), 'not an IDX file'),
      (originals.idx(y), 'not an IDX file of bytes in 3 dimensions'),
      (data[:-1], 'ends early'),
      (data + b'\0', 'has bytes after its end'),
      (gzip.compress(data + bytes(10**6)), 'has bytes after its end'),
      (x[:, :27], r'has shape \(20, 27, 28\), expected \(20, 28, 28\)'),
      (x[:19], r'has shape \(19, 28, 28\), expected \(20, 28, 28\)'),
    ):
      self.write(train_images=change)
      self.assert_refused('mnist', message)
    for labels, message in (
      (np.where(np.arange(20) == 7, 10, y).astype(np.uint8), 'the label 10'),
      (y[:-1], r'has shape \(19,\), expected \(20,\)'),
    ):
      self.write(train_labels=labels)
      self.assert_refused('mnist', message)

  def test_missing_and_special_files(self):
    self.assert_refused('mnist', 'lacks train-images-idx3-ubyte.gz, train-lab')
    self.write()
    self.path().unlink()
    self.assert_refused('mnist', 'lacks train-images-idx3-ubyte.gz$')
    os.mkfifo(self.path())
    self.assert_refused('mnist', 'a FIFO, not a regular file')
    self.path().unlink()
    self.path().symlink_to('/dev/zero')
    self.assert_refused('mnist', 'a character device, not a regular file')
    with self.assertRaisesRegex(
      DatasetError, 'is not the directory that holds'
    ):
      archives.read('mnist', self.path('none'), print)


class CifarTest(ArchivesTest):
  def write(self, name, files, pack=gzip.compress, folder=None):
    own = archives.CIFAR[name]
    data = originals.tar(files, folder or own.folder)
    (self.directory / own.archive).write_bytes(pack(data))

  @parameterized.product(
    name=['cifar10', 'cifar100'], form=['original', 'anew', 'tar', 'unpacked']
  )
  def test_any_packing(self, name, form):
    files, own = originals.cifar(name), archives.CIFAR[name]
    if form == 'unpacked':
      folder = self.directory / own.folder
      folder.mkdir()
      for file, data in files.items():
        (folder / file).write_bytes(data)
    else:
      self.write(name, files, bytes if form == 'tar' else gzip.compress)
    if form == 'original':
      packed = (self.directory / own.archive).read_bytes()
      own = own._replace(sha256=hashlib.sha256(packed).hexdigest())
    with (
      originals.small_cifar(name),
      mock.patch.dict(archives.CIFAR, {name: own}),
    ):
      splits, class_names = self.read(name)
    self.assertEqual(
      [len(names) for names in class_names.values()],
      [20, 100] if name == 'cifar100' else [10],
    )
    for split, (images, labels) in splits.items():
      want_labels, want = originals.cifar_rows(name, files, split)
      np.testing.assert_array_equal(images, want)
      np.testing.assert_array_equal(
        np.stack(list(labels.values()), 1), want_labels
      )
    self.assertLen(self.said, 0 if form == 'original' else 1)
    if self.said:
      self.assertIn('no SHA-256 could be compared', self.said[0])

  def test_pickles(self):
    name = 'cifar-10-python.tar.gz'
    (self.directory / name).write_bytes(b'any')
    message = 'lacks cifar-10-binary.tar.gz; cifar-10-python.tar.gz holds pickl'
    self.assert_refused('cifar10', message)
    self.write(
      'cifar10', {'data_batch_1': b'any'}, folder='cifar-10-batches-py'
    )
    self.assert_refused(
      'cifar10', 'cifar-10-binary.tar.gz holds pickles.*https'
    )

  def test_damage(self):
    good = originals.cifar('cifar10')
    first, row = good['data_batch_1.bin'], 3073
    packed = gzip.compress(originals.tar(good, 'cifar-10-batches-bin'))
    change = lambda **files: (
      good | {k.replace('_bin', '.bin'): v for k, v in files.items()}
    )
    self.enterContext(originals.small_cifar('cifar10'))
    for files, message in (
      (
        change(test_batch_bin=b''),
        'test_batch.bin has 0 bytes, expected 61460',
      ),
      (change(data_batch_1_bin=first[:-1]), 'data_batch_1.bin has 12291 bytes'),
      (
        change(data_batch_1_bin=b'\x0a' + first[1:]),
        'train label 10, expected at',
      ),
      (change(data_batch_1_bin=first[:row] * 4), r'label \d has \d images'),
      (
        {k: v for k, v in good.items() if k[0] != 't'},
        'lacks .*/test_batch.bin',
      ),
      (good | {'batches.meta.txt': b'a b'}, '2 class names, expected 10'),
      (good | {'batches.meta.txt': b'\xff'}, 'batches.meta.txt cannot be read'),
    ):
      self.write('cifar10', files)
      self.assert_refused('cifar10', message)
    at = len(packed) - 6
    for data, message in (
      (packed[:at] + bytes([packed[at] ^ 1]) + packed[at + 1 :], 'CRC check'),
      (packed[:-20], 'cannot be read: Compressed file ended'),
      (packed[:5000], 'cannot be read'),
      (b'', 'cannot be read: empty file'),
      (b'<html>', 'cannot be read'),
      (gzip.compress(b'<html>'), 'cannot be read'),
    ):
      (self.directory / 'cifar-10-binary.tar.gz').write_bytes(data)
      self.assert_refused('cifar10', message)
    with mock.patch.object(archives, 'MAX_UNPACKED', 10_000):
      self.write('cifar10', good)
      self.assert_refused('cifar10', 'holds too much')

  def test_a_folder_in_the_place_of_a_file(self):
    path = self.directory / 'cifar-10-binary.tar.gz'
    info = tarfile.TarInfo('cifar-10-batches-bin/test_batch.bin')
    info.type = tarfile.DIRTYPE
    with tarfile.open(path, 'w:gz') as f:
      f.addfile(info)
    self.assert_refused('cifar10', 'lacks .*/test_batch.bin')
    path.unlink()
    path.mkdir()
    self.assert_refused('cifar10', 'cannot be read: Is a directory')

  def test_coarse_labels(self):
    files = originals.cifar('cifar100')
    rows = np.frombuffer(files['train.bin'], np.uint8).reshape(-1, 3074).copy()
    at = np.flatnonzero(rows[:, 1] == 0)[0], np.flatnonzero(rows[:, 1] == 99)[0]
    rows[at, 0] = rows[at[::-1], 0]  # as many of each, but of other classes
    self.write('cifar100', files | {'train.bin': rows.tobytes()})
    with originals.small_cifar('cifar100'):
      self.assert_refused('cifar100', 'train: fine classes in two coarse ones')


if __name__ == '__main__':
  absltest.main()
