"""Images from disk as two plain arrays.

`mnist_5k` ships inside the package, and `read_npz` reads files of one's own.
Everything else is read through tensorflow-datasets from a directory that
`python -m l2o_jax.datasets prepare` has filled; see prepare.py.
"""

import contextlib
import functools
import hashlib
import importlib.resources
import io
import os
import pathlib
import re

import numpy as np

from l2o_jax import checkpoint
from l2o_jax.checks import require
from l2o_jax.files import open_regular

PACKAGED = ('mnist_5k',)
PREPARABLE = ('mnist', 'fashion_mnist', 'cifar10', 'cifar100')
NAMES = PACKAGED + PREPARABLE


class DatasetError(ValueError):
  """Data that are missing or damaged; one line that says what to do."""


@contextlib.contextmanager
def one_line(what):
  """Makes an exception of any kind a DatasetError of one line on `what`."""
  try:
    yield
  except DatasetError:
    raise
  except Exception as error:  # of a dozen kinds, by what is damaged
    text = getattr(error, 'strerror', None) or str(error)
    text = ' '.join(text.split())[:300] or type(error).__name__
    raise DatasetError(f'{what}: {text}') from None


check = functools.partial(require, error=DatasetError)


def default_data_dir() -> str:
  """$TFDS_DATA_DIR, or ~/tensorflow_datasets as in tensorflow-datasets."""
  return os.environ.get('TFDS_DATA_DIR', '~/tensorflow_datasets')


def find_prepared(name, root):
  """The directory in root of a prepared data set, or None.

  On an unprepared one tensorflow-datasets itself goes to the network for
  minutes, or raises an error about TFRECORD.
  """
  found = [x.parent for x in root.glob(f'{name}/*/dataset_info.json')]
  numbers = lambda path: [int(n) for n in re.findall(r'\d+', path.name)]
  return max(found, key=numbers, default=None)  # the latest version


def load(name: str, split: str, data_dir: str | None = None):
  """All images and labels of a split.

  Args:
    name: 'mnist_5k' (in the package), 'mnist', 'fashion_mnist', 'cifar10' or
      'cifar100'.
    split: 'train' or 'test'.
    data_dir: where `prepare` put the data; `default_data_dir()` if None.

  Returns:
    (uint8 [N, height, width, channels], int32 [N]).  Arrays stay uint8 until
    they reach a loss.

  Raises:
    DatasetError: unknown name or split, or the data are not prepared or cannot
      be read.
  """
  check(name in NAMES, f'dataset {name!r} is not one of {", ".join(NAMES)}')
  _check_split(split)
  if name in PACKAGED:
    file = importlib.resources.files('l2o_jax') / 'datasets' / f'{name}.npz'
    return read_npz(file, split)
  root = pathlib.Path(data_dir or default_data_dir()).expanduser()
  directory = find_prepared(name, root)
  todo = f'prepare {name} --data_dir {root} [--from DIR_WITH_ARCHIVES]'
  lacking = f'{name} is not prepared in {root}; run: python -m l2o_jax.datasets'
  check(directory, f'{lacking} {todo}')
  with one_line(f'{directory} cannot be read'):
    made_of = _digest(directory, split)
  cache = directory / f'{split}_arrays.npz'
  if (arrays := _read_cache(cache, made_of)) is None:
    arrays = _read_records(directory, split)
    _write_cache(cache, made_of, *arrays)
  return arrays


def _check_split(split):
  splits = ('train', 'test')
  check(split in splits, f"split must be 'train' or 'test', got {split!r}")


def _digest(directory, split):
  """SHA-256 over the files that a prepared split consists of."""
  digest = hashlib.sha256()
  for path in sorted(directory.iterdir()):
    if f'-{split}.' in path.name or path.suffix in ('.json', '.txt'):
      with open_regular(path) as f:
        content = hashlib.file_digest(f, 'sha256').hexdigest()
      digest.update(f'{path.name} {content}\n'.encode())
  return digest.hexdigest()


def _read_cache(path, made_of):
  """The arrays of `_write_cache`, or None if they are not of these files."""
  try:
    found = checkpoint.metadata(path)
    if found['made_of'] != made_of:
      return None
    images = np.broadcast_to(np.uint8(0), found['shape'])  # takes no memory
    labels = np.broadcast_to(np.int32(0), found['shape'][:1])
    return checkpoint.load(path, (images, labels))
  except (ValueError, TypeError, KeyError):  # another checkpoint, or none
    return None


def _write_cache(path, made_of, images, labels):
  found = {'made_of': made_of, 'shape': images.shape}
  # The directory may be read-only; then nothing is cached.
  with contextlib.suppress(OSError):
    checkpoint.save(path, (images, labels), metadata=found)


def import_tfds():
  """tensorflow_datasets; a DatasetError if it or what it needs is missing."""
  try:
    # What tensorflow-datasets needs here, but in part does not declare.
    import array_record.python.array_record_module  # noqa: F401
    import importlib_resources  # noqa: F401
    import PIL.Image  # noqa: F401
    import tensorflow_datasets as tfds
  except ImportError as error:
    raise DatasetError(
      f'this data set needs {error.name or error}; run: pip install '
      '"l2o_jax[experiments]"'
    ) from None
  return tfds


def _read_records(directory, split):
  tfds = import_tfds()
  import PIL.Image
  from array_record.python import array_record_module as array_record

  to_array = lambda data: np.asarray(PIL.Image.open(io.BytesIO(data)))
  with one_line(f'{directory} is damaged; remove it and prepare it again'):
    builder = tfds.builder_from_directory(directory)
    info, features = builder.info.splits[split], builder.info.features
    readers = [array_record.ArrayRecordReader(str(p)) for p in info.filepaths]
    found = [reader.num_records() for reader in readers]
    expected = info.shard_lengths
    require(found == expected, f'{found} records, expected {expected}')
    raw = {'image': tfds.decode.SkipDecoding()}
    source = builder.as_data_source(split=split, decoders=raw)
    records = source.__getitems__(range(len(source)))
    images = np.stack([to_array(record['image']) for record in records])
    images = images.reshape(-1, *features['image'].shape)
    labels = np.array([record['label'] for record in records], np.int32)
    low, high = labels.min(), labels.max()
    classes = features['label'].num_classes
    require(0 <= low <= high < classes, f'labels from {low} to {high}')
  return images, labels


def read_npz(path, split: str = 'train'):
  """Images and labels of a file of one's own.

  The file is what `np.savez` or `np.savez_compressed` writes of
  `train_images`, uint8 [N, height, width, channels] or [N, height, width], and
  `train_labels`, integers [N] of which each class 0, 1 ... K - 1 occurs; also
  of `test_images` and `test_labels` if it has a test split.

  Args:
    path: of the file.
    split: 'train' or 'test'.

  Returns:
    (uint8 [N, height, width, channels], int32 [N]).

  Raises:
    DatasetError: the file is missing, damaged or of another form.
  """
  _check_split(split)
  with one_line(f'{path} cannot be read'), open_regular(path) as f:
    start = f.read(8)
    check(start, f'{path} is empty')
    single = start.startswith(b'\x93NUMPY')
    check(not single, f'{path} is a single array (.npy), not an .npz')
    check(start.startswith(b'PK'), f'{path} is not an .npz file')
    f.seek(0)
    with np.load(f, allow_pickle=False) as npz:

      def array(name):
        keys = ', '.join(npz.files[:5]) or 'nothing'
        check(name in npz.files, f'{path} lacks {name}; it holds {keys}')
        with one_line(f'{name} in {path} cannot be read'):
          return npz[name]

      images, labels = array(f'{split}_images'), array(f'{split}_labels')
      known = labels if split == 'train' else array('train_labels')
  _check_images(f'{split}_images in {path}', images)
  for found, of in (known, 'train_labels'), (labels, f'{split}_labels'):
    _check_labels(f'{of} in {path}', found)
  where = f'{split}_labels in {path}'
  agree = len(labels) == len(images)
  check(agree, f'{where}: {len(labels)} labels for {len(images)} images')
  classes, last = np.unique(known), known.max()
  once = f'train_labels in {path} must be 0, 1 ... K - 1, each at least once'
  found = f'{len(classes)} different numbers from {classes[0]} to {last}'
  check(len(classes) == int(last) + 1, f'{once}, but are {found}')
  check(labels.max() <= last, f'{where} has class {labels.max()}, train none')
  images = images if images.ndim == 4 else images[..., None]
  return np.ascontiguousarray(images), labels.astype(np.int32)


def _check_images(what, images):
  check(images.dtype == np.uint8, f'{what} is {images.dtype}, expected uint8')
  good = images.ndim in (3, 4) and images.size
  form = '[N, height, width, channels] or [N, height, width], N at least 1'
  check(good, f'{what} has shape {images.shape}, expected {form}')


def _check_labels(what, labels):
  integers = labels.dtype.kind in 'iu'
  check(integers, f'{what} is {labels.dtype}, expected integers')
  one_hot = ' (one-hot labels? take their argmax)' * (labels.ndim == 2)
  good = labels.ndim == 1 and labels.size
  check(good, f'{what} has shape {labels.shape}, expected [N]{one_hot}')
  check(labels.min() >= 0, f'{what} has the negative label {labels.min()}')
