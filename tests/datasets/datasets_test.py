"""Images from the package, from prepared data and from files of one's own."""

import io
import json
import os
import pathlib
import pickle
import shutil
import sys
import tempfile
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

from l2o_jax import checkpoint, datasets
from l2o_jax.datasets.prepare import prepare
from tests.datasets import originals


class LoadTest(parameterized.TestCase):
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

  def test_missing_data_say_what_to_do(self):
    with self.assertRaisesRegex(datasets.DatasetError, 'prepare mnist'):
      datasets.load('mnist', 'train', str(self.directory))
    with self.assertRaisesRegex(datasets.DatasetError, "'cifar' is not one of"):
      datasets.load('cifar', 'train')
    with self.assertRaisesRegex(datasets.DatasetError, "got 'validation'"):
      datasets.load('mnist', 'validation')

  def test_the_latest_version(self):
    """10 is later than 3."""
    for version in ('10.0.0', '3.0.2', '3.0.10'):
      folder = self.directory / 'mnist' / version
      folder.mkdir(parents=True)
      (folder / 'dataset_info.json').write_text('{}')
    found = datasets.find_prepared('mnist', self.directory)
    self.assertEqual(found.name, '10.0.0')
    self.assertIsNone(datasets.find_prepared('cifar10', self.directory))

  @parameterized.parameters(
    'PIL', 'importlib_resources', 'tensorflow_datasets', 'array_record'
  )
  def test_without_the_extras(self, name):
    folder = self.directory / 'mnist' / '3.0.1'
    folder.mkdir(parents=True)
    (folder / 'dataset_info.json').write_text('{}')
    missing = {m: None for m in sys.modules if m.split('.')[0] == name}
    with mock.patch.dict(sys.modules, missing | {name: None}):
      with self.assertRaisesRegex(
        datasets.DatasetError, rf'needs {name}.*pip install .*\[experiments\]'
      ):
        datasets.load('mnist', 'train', self.directory)


class PreparedTest(absltest.TestCase):
  """A small MNIST, prepared once."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.whole = pathlib.Path(
      cls.enterClassContext(tempfile.TemporaryDirectory())
    )
    cls.arrays = originals.mnist()
    originals.write_mnist(cls.whole, cls.arrays)
    with originals.known(cls.arrays):
      cls.version = prepare('mnist', cls.whole / 'out', cls.whole).name

  def setUp(self):
    super().setUp()
    directory = self.enterContext(tempfile.TemporaryDirectory())
    self.root = pathlib.Path(directory) / 'data'
    shutil.copytree(self.whole / 'out', self.root)
    self.folder = self.root / 'mnist' / self.version
    self.cache = self.folder / 'train_arrays.npz'

  def assert_right(self, split='train'):
    images, labels = datasets.load('mnist', split, self.root)
    at = 0 if split == 'train' else 2
    want, want_labels = list(self.arrays.values())[at : at + 2]
    self.assertEqual((images.dtype, labels.dtype), ('uint8', 'int32'))
    # tensorflow-datasets shuffles.
    pairs = lambda x, y: sorted((int(b), a.tobytes()) for a, b in zip(x, y))
    self.assertEqual(pairs(images[..., 0], labels), pairs(want, want_labels))

  def test_records_then_cache(self):
    self.assert_right()
    self.assert_right('test')
    with mock.patch.object(datasets, '_read_records', side_effect=KeyError):
      self.assert_right()
      self.assert_right('test')
    self.assertNotIn('tensorflow', sys.modules)
    self.assertEmpty([p for p in self.folder.iterdir() if p.suffix == '.tmp'])

  def test_a_wrong_cache_is_made_anew(self):
    self.assert_right()
    good = self.cache.read_bytes()
    images, labels = datasets.load('mnist', 'train', self.root)
    found = checkpoint.metadata(self.cache)

    def plain():  # as before there was a hash
      np.savez(self.cache, images=images, labels=labels[::-1])

    def other_records():
      wrong = found | {'made_of': '0' * 64}
      checkpoint.save(self.cache, (images, labels[::-1]), metadata=wrong)

    def other_arrays():
      checkpoint.save(self.cache, (images, images), metadata=found)

    def other_shape():
      wrong = found | {'shape': [-1, 'x']}
      checkpoint.save(self.cache, (images, labels), metadata=wrong)

    def no_metadata():
      checkpoint.save(self.cache, (images, labels))

    def special():
      self.cache.unlink()
      os.mkfifo(self.cache)

    at = good.index(images[3].tobytes())
    flipped = good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :]
    for spoil in (
      plain,
      other_records,
      other_arrays,
      other_shape,
      no_metadata,
      special,
      lambda: self.cache.write_bytes(flipped),
      lambda: self.cache.write_bytes(good[:-30]),
      lambda: self.cache.write_bytes(b''),
    ):
      spoil()
      self.assert_right()
      self.assertEqual(self.cache.read_bytes(), good)

  def test_other_records_are_read_anew(self):
    self.assert_right()
    shutil.copy(self.cache, self.folder / 'test_arrays.npz')
    self.assert_right('test')
    shutil.rmtree(self.folder)
    arrays = self.arrays
    self.arrays = originals.mnist(seed=1)
    originals.write_mnist(self.root, self.arrays)
    with originals.known(self.arrays):
      prepare('mnist', self.root, self.root)
    self.assert_right()
    self.assertFalse(
      np.array_equal(*(list(a.values())[0] for a in (arrays, self.arrays)))
    )

  def test_a_directory_that_may_only_be_read(self):
    with mock.patch.object(checkpoint, 'save', side_effect=PermissionError):
      self.assert_right()
    self.assertFalse(self.cache.exists())

  def test_damaged_records(self):
    records = next(self.folder.glob('mnist-train.*'))
    info = self.folder / 'dataset_info.json'
    data, text = records.read_bytes(), info.read_text()
    at = len(data) // 2
    fewer = json.loads(text)
    fewer['splits'][0]['shardLengths'] = ['7']

    def fifo():
      records.unlink()
      os.mkfifo(records)

    for spoil in (
      lambda: records.write_bytes(data[:at]),
      lambda: records.write_bytes(data[:at] + b'\xff' * 50 + data[at + 50 :]),
      lambda: records.write_bytes(b''),
      lambda: info.write_text('{'),
      lambda: info.write_text('[]'),
      lambda: info.write_text(json.dumps(fewer)),
      fifo,
    ):
      spoil()
      with self.assertRaises(datasets.DatasetError) as caught:
        datasets.load('mnist', 'train', self.root)
      self.assertNotIn('\n', str(caught.exception))
      self.assertIn(str(self.folder), str(caught.exception))
      records.unlink(missing_ok=True)
      records.write_bytes(data)
      info.write_text(text)
    self.assert_right()


class NpzTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    directory = self.enterContext(tempfile.TemporaryDirectory())
    self.path = pathlib.Path(directory) / 'own.npz'
    rng = np.random.default_rng(0)
    self.good = {
      'train_images': rng.integers(0, 256, (12, 5, 4, 3), np.uint8),
      'train_labels': np.arange(12) % 4,
      'test_images': rng.integers(0, 256, (3, 5, 4, 3), np.uint8),
      'test_labels': np.array([3, 3, 0]),
    }

  def refused(self, message, split='train', path=None):
    path = path or self.path
    with self.assertRaisesRegex(datasets.DatasetError, message) as caught:
      datasets.read_npz(path, split)
    self.assertIn(str(path), str(caught.exception))
    self.assertNotIn('\n', str(caught.exception))

  @parameterized.parameters(np.savez, np.savez_compressed)
  def test_what_is_accepted(self, save):
    save(self.path, **self.good)
    for split in ('train', 'test'):
      images, labels = datasets.read_npz(self.path, split)
      np.testing.assert_array_equal(images, self.good[f'{split}_images'])
      np.testing.assert_array_equal(labels, self.good[f'{split}_labels'])
      self.assertEqual((images.dtype, labels.dtype), ('uint8', 'int32'))
    gray = np.asfortranarray(self.good['train_images'][..., 0])
    labels = self.good['train_labels'].astype('>u2')
    save(self.path, train_images=gray, train_labels=labels)
    images, labels = datasets.read_npz(str(self.path))
    np.testing.assert_array_equal(images, gray[..., None])
    np.testing.assert_array_equal(labels, self.good['train_labels'])
    self.refused(
      'lacks test_images; it holds train_images, train_labels', 'test'
    )

  @parameterized.named_parameters(
    ('fewer', 'train_labels', np.arange(9) % 4, '9 labels for 12 images'),
    ('one_hot', 'train_labels', np.eye(12, dtype=int), r'\(12, 12\).*one-hot'),
    ('column', 'train_labels', np.zeros((12, 1), int), r'shape \(12, 1\), exp'),
    ('real', 'train_labels', np.arange(12) % 4 / 1, 'float64, expected integ'),
    ('bool', 'train_labels', np.arange(12) > 4, 'bool, expected integers'),
    ('strings', 'train_labels', np.array(['a'] * 12), 'expected integers'),
    ('negative', 'train_labels', np.arange(12) % 4 - 1, 'negative label -1'),
    ('from_1', 'train_labels', np.arange(12) % 4 + 1, '4 diff.* from 1 to 4'),
    ('gaps', 'train_labels', np.arange(12) % 4 * 2, '4 diff.* from 0 to 6'),
    ('huge', 'train_labels', np.array([0] * 11 + [2**63], 'u8'), 'to 9223372'),
    ('objects', 'train_labels', np.array([{}] * 12), 'Object arrays cannot'),
    ('none', 'train_images', np.zeros((0, 5, 4, 3), 'u1'), 'N at least 1'),
    ('empty', 'train_images', np.zeros((12, 0, 4, 3), 'u1'), 'has shape'),
    ('flat', 'train_images', np.zeros((12, 60), 'u1'), r'shape \(12, 60\)'),
    ('floats', 'train_images', np.zeros((12, 5, 4)), 'float64, expected uint8'),
    ('scalar', 'train_images', np.uint8(0), r'has shape \(\)'),
  )
  def test_wrong_arrays(self, name, value, message):
    np.savez(self.path, **self.good | {name: value})
    self.refused(message)

  def test_test_labels_beyond_the_classes(self):
    np.savez(self.path, **self.good | {'test_labels': np.array([0, 4, 1])})
    self.refused('test_labels.*has class 4, train none', 'test')

  def test_wrong_files(self):
    self.refused('No such file')
    for data, message in (
      (b'', 'is empty'),
      (b'PK', 'cannot be read'),
      (b'<html>404</html>', 'is not an .npz file'),
      (pickle.dumps({}), 'is not an .npz file'),
    ):
      self.path.write_bytes(data)
      self.refused(message)
    buffer = io.BytesIO()
    np.save(buffer, self.good['train_images'])
    self.path.write_bytes(buffer.getvalue())
    self.refused(r'is a single array \(.npy\)')
    np.savez(self.path, x=np.zeros(3))
    self.refused('lacks train_images; it holds x$')
    np.savez(self.path)
    self.refused('lacks train_images; it holds nothing')
    np.savez_compressed(self.path, **self.good)
    data = self.path.read_bytes()
    at = len(data) // 4
    for damaged in (
      data[:-30],
      data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :],
      data[: at * 3],
    ):
      self.path.write_bytes(damaged)
      self.refused('cannot be read')

  def test_special_files(self):
    os.mkfifo(self.path)
    self.refused('a FIFO, not a regular file')
    self.refused('a character device', path='/dev/zero')
    self.refused('directory', path=self.path.parent)


if __name__ == '__main__':
  absltest.main()
