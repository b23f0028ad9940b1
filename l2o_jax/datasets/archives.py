"""The original files of data sets, read and verified.

What is verified is the content, not how it is packed:

- MNIST and Fashion-MNIST by the SHA-256 of each unpacked file;
- CIFAR by the SHA-256 of the archive; if it was unpacked by hand or packed
  anew, by the size of each file, the range of the labels, the number of images
  of each class and, in CIFAR-100, that no fine class lies in two coarse ones.
"""

import gzip
import hashlib
import io
import math
import tarfile
from typing import NamedTuple

import numpy as np

from l2o_jax.datasets import DatasetError, check, one_line
from l2o_jax.files import open_regular

SIZES = {  # images of a split
  'mnist': {'train': 60_000, 'test': 10_000},
  'fashion_mnist': {'train': 60_000, 'test': 10_000},
  'cifar10': {'train': 50_000, 'test': 10_000},
  'cifar100': {'train': 50_000, 'test': 10_000},
}
IDX_FILES = (  # images and labels of the training and of the test set
  'train-images-idx3-ubyte',
  'train-labels-idx1-ubyte',
  't10k-images-idx3-ubyte',
  't10k-labels-idx1-ubyte',
)
IDX_SHA256 = {  # of the unpacked files, in the order of IDX_FILES
  'mnist': (
    'ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db',
    '65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5',
    '0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7',
    'ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2',
  ),
  'fashion_mnist': (
    'c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888',
    'bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9',
    '5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b',
    '0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34',
  ),
}


class Cifar(NamedTuple):
  """Names of the files of a CIFAR data set; labels as the bytes of a record."""

  archive: str
  sha256: str  # of the archive
  folder: str  # in the archive
  parts: dict[str, tuple[str, ...]]  # of a split
  labels: dict[str, tuple[str, int]]  # label: file with class names, how many
  pickles: tuple[str, str]  # the archive and folder that most people have


CIFAR = {
  'cifar10': Cifar(
    'cifar-10-binary.tar.gz',
    'c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd',
    'cifar-10-batches-bin',
    {
      'train': tuple(f'data_batch_{i}.bin' for i in range(1, 6)),
      'test': ('test_batch.bin',),
    },
    {'label': ('batches.meta.txt', 10)},
    ('cifar-10-python.tar.gz', 'cifar-10-batches-py'),
  ),
  'cifar100': Cifar(
    'cifar-100-binary.tar.gz',
    '58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec',
    'cifar-100-binary',
    {'train': ('train.bin',), 'test': ('test.bin',)},
    {
      'coarse_label': ('coarse_label_names.txt', 20),
      'label': ('fine_label_names.txt', 100),
    },
    ('cifar-100-python.tar.gz', 'cifar-100-python'),
  ),
}
MAX_UNPACKED = 1 << 28  # bytes of an archive; CIFAR's archives have 176 MiB


class Split(NamedTuple):
  images: np.ndarray  # uint8 [N, height, width] or [N, height, width, 3]
  labels: dict[str, np.ndarray]  # uint8 [N] each


def _unpack(path, most):
  """The first `most` bytes of a file, unzipped if it is in gzip's format."""
  with one_line(f'{path} cannot be read'), open_regular(path) as f:
    packed = f.read(2) == b'\x1f\x8b'
    f.seek(0)
    # gzip compares the CRC when it reaches the end, so `most` must be larger
    # than what is accepted.
    return (gzip.open(f) if packed else f).read(most)


def _idx_path(source, file):
  """Where a file is: packed, plain, or plain under the name Kaggle gives."""
  dotted = file.replace('-idx', '.idx')
  names = (f'{file}.gz', file, dotted, f'{file}/{file}', f'{dotted}.gz')
  paths = [source / name for name in names]
  return next((p for p in paths if p.exists() and not p.is_dir()), None)


def _read_idx(path, shape, sha256):
  """An array of bytes of just this shape and content from an IDX file."""
  rank, size = len(shape), math.prod(shape)
  start = 4 + 4 * rank
  data = _unpack(path, start + size + 1)
  is_idx = data[:4] == b'\0\0\x08' + bytes([rank]) and len(data) >= start
  check(is_idx, f'{path} is not an IDX file of bytes in {rank} dimensions')
  found = tuple(int(n) for n in np.frombuffer(data[4:start], '>u4'))
  check(found == shape, f'{path} has shape {found}, expected {shape}')
  check(len(data) >= start + size, f'{path} ends early')
  check(len(data) == start + size, f'{path} has bytes after its end')
  array = np.frombuffer(data, np.uint8, offset=start).reshape(shape)
  if rank == 1:
    most = array.max()
    check(most < 10, f'{path} has the label {most}, expected at most 9')
  same = hashlib.sha256(data).hexdigest() == sha256
  check(same, f'{path}: the content is not the original (SHA-256 differs)')
  return array


def _read_idx_files(name, source):
  """{split: Split} of an MNIST-like data set, its content verified."""
  paths = {file: _idx_path(source, file) for file in IDX_FILES}
  missing = [f'{file}.gz' for file, path in paths.items() if path is None]
  check(not missing, f'{source} lacks {", ".join(missing)}')
  n, m = SIZES[name]['train'], SIZES[name]['test']
  shapes = ((n, 28, 28), (n,), (m, 28, 28), (m,))
  arrays = map(_read_idx, paths.values(), shapes, IDX_SHA256[name])
  x, y, test_x, test_y = arrays
  train, test = Split(x, {'label': y}), Split(test_x, {'label': test_y})
  return {'train': train, 'test': test}


def _cifar_files(cifar, source):
  """({file: bytes} of an archive or its folder, whether it is the original)."""
  url = 'https://www.cs.toronto.edu/~kriz/cifar.html'
  pickles = f'holds pickles, which are not read; get {cifar.archive} of {url}'
  path, folder = source / cifar.archive, source / cifar.folder
  names = [file for parts in cifar.parts.values() for file in parts]
  names += [file for file, _ in cifar.labels.values()]
  if not path.exists() and folder.is_dir():
    return {name: _unpack(folder / name, MAX_UNPACKED) for name in names}, False
  if not path.exists():
    found = [n for n in cifar.pickles if (source / n).exists()]
    why = f'; {found[0]} {pickles}' if found else ''
    raise DatasetError(f'{source} lacks {cifar.archive}{why}')
  data = _unpack(path, MAX_UNPACKED)
  check(len(data) < MAX_UNPACKED, f'{path} holds too much')
  with one_line(f'{path} cannot be read'), open_regular(path) as f:
    same = hashlib.file_digest(f, 'sha256').hexdigest() == cifar.sha256
    with tarfile.open(fileobj=io.BytesIO(data), mode='r:') as tar:
      members = {m.name.removeprefix('./'): m for m in tar if m.isfile()}
      held = any(name.startswith(cifar.pickles[1]) for name in members)
      check(not held, f'{path} {pickles}')
      paths = {name: f'{cifar.folder}/{name}' for name in names}
      missing = [p for p in paths.values() if p not in members]
      check(not missing, f'{path} lacks {", ".join(missing)}')
      read = lambda name: tar.extractfile(members[paths[name]])
      return {name: read(name).read(MAX_UNPACKED) for name in names}, same


def _read_cifar(name, source, say):
  """({split: Split}, {label: names of its classes}), verified."""
  cifar, splits, class_names = CIFAR[name], {}, {}
  files, same = _cifar_files(cifar, source)
  for label, (file, count) in cifar.labels.items():
    with one_line(f'{file} cannot be read'):
      class_names[label] = files[file].decode().split()
    found = len(set(class_names[label]))
    check(found == count, f'{file} has {found} class names, expected {count}')
  width = len(cifar.labels) + 3072  # bytes of a record
  for split, parts in cifar.parts.items():
    size = SIZES[name][split] // len(parts) * width
    for part in parts:
      found = len(files[part])
      check(found == size, f'{part} has {found} bytes, expected {size}')
    data = b''.join(files[part] for part in parts)
    rows = np.frombuffer(data, np.uint8).reshape(-1, width)
    labels, pixels = np.split(rows, [len(cifar.labels)], axis=1)
    labels = dict(zip(cifar.labels, labels.T))
    for label, (_, count) in cifar.labels.items():
      _check_classes(f'{name} {split} {label}', labels[label], count)
    pairs = np.unique(np.stack(list(labels.values())), axis=1).shape[1]
    most = max(count for _, count in cifar.labels.values())
    check(pairs == most, f'{name} {split}: fine classes in two coarse ones')
    # [N, channel, row, column] in the file
    images = pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    splits[split] = Split(np.ascontiguousarray(images), labels)
  if not same:
    say(
      f'{name} in {source} was unpacked or packed anew: sizes, labels and '
      'images of each class are right, but no SHA-256 could be compared'
    )
  return splits, class_names


def _check_classes(what, labels, count):
  """Raises unless each of `count` classes has as many images as the others."""
  most = labels.max()
  check(most < count, f'{what} {most}, expected at most {count - 1}')
  images, want = np.bincount(labels, minlength=count), len(labels) // count
  odd = int(np.argmax(images != want))
  message = f'{what} {odd} has {images[odd]} images, expected {want}'
  check((images == want).all(), message)


def read(name, source, say):
  """All that a directory of original files holds of a data set.

  Args:
    name: 'mnist', 'fashion_mnist', 'cifar10' or 'cifar100'.
    source: path of the directory: archives, or what they unpack to.
    say: called with a line for people on what could not be verified.

  Returns:
    ({'train': Split, 'test': Split}, {label: names of its classes if there}).

  Raises:
    DatasetError: a file is missing, damaged or not the original.
  """
  held = 'the directory that holds the archives'
  check(source.is_dir(), f'{source} is not {held}')
  if name in CIFAR:
    return _read_cifar(name, source, say)
  return _read_idx_files(name, source), {}
