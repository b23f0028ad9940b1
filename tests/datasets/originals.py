"""Small files in the form of the original ones of MNIST and CIFAR."""

import contextlib
import gzip
import hashlib
import io
import tarfile
from unittest import mock

import numpy as np

from l2o_jax.datasets import archives


def idx(array):
  """The bytes of an unpacked IDX file."""
  sizes = b''.join(n.to_bytes(4, 'big') for n in array.shape)
  return b'\0\0\x08' + bytes([array.ndim]) + sizes + array.tobytes()


def mnist(train=20, test=10, seed=0):
  """{name of an original file: array}."""
  rng, arrays = np.random.default_rng(seed), {}
  for file in archives.IDX_FILES:
    size = train if 'train' in file else test
    shape, most = ((size, 28, 28), 256) if 'images' in file else ((size,), 10)
    arrays[file] = rng.integers(0, most, shape, np.uint8)
  return arrays


def write_mnist(directory, arrays, pack=gzip.compress, name='{}.gz'.format):
  for file, array in arrays.items():
    path = directory / name(file)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(pack(idx(array)))


@contextlib.contextmanager
def known(arrays, name='mnist'):
  """Makes these arrays the ones that a data set consists of."""
  train, _, test, _ = (len(array) for array in arrays.values())
  digests = [hashlib.sha256(idx(a)).hexdigest() for a in arrays.values()]
  sizes = {name: {'train': train, 'test': test}}
  with (
    mock.patch.dict(archives.SIZES, sizes),
    mock.patch.dict(archives.IDX_SHA256, {name: digests}),
  ):
    yield


def cifar(name, per_class=2, seed=0):
  """{name of an original file: bytes}, each class `per_class` times a split."""
  rng, own = np.random.default_rng(seed), archives.CIFAR[name]
  classes, files = max(count for _, count in own.labels.values()), {}
  for parts in own.parts.values():
    fine = rng.permutation(np.repeat(np.arange(classes), per_class))
    images = rng.integers(0, 256, (len(fine), 3072), np.uint8)
    labels = {'coarse_label': fine // 5, 'label': fine}
    labels = np.stack([labels[label] for label in own.labels], 1)
    rows = np.concatenate([labels.astype(np.uint8), images], 1)
    files |= {p: r.tobytes() for p, r in zip(parts, np.split(rows, len(parts)))}
  for file, count in own.labels.values():
    files[file] = '\n'.join(f'class{i}' for i in range(count)).encode() + b'\n'
  return files


def cifar_rows(name, files, split):
  """(labels [N, L], images [N, 32, 32, 3]) of the files of `cifar`."""
  own = archives.CIFAR[name]
  data = b''.join(files[part] for part in own.parts[split])
  rows = np.frombuffer(data, np.uint8).reshape(-1, 3072 + len(own.labels))
  images = rows[:, len(own.labels) :].reshape(-1, 3, 32, 32)
  return rows[:, : len(own.labels)], images.transpose(0, 2, 3, 1)


def tar(files, folder):
  buffer = io.BytesIO()
  with tarfile.open(fileobj=buffer, mode='w') as f:
    for name, data in files.items():
      info = tarfile.TarInfo(f'{folder}/{name}')
      info.size = len(data)
      f.addfile(info, io.BytesIO(data))
  return buffer.getvalue()


def small_cifar(name, per_class=2):
  """Expects as many images as `cifar` makes."""
  classes = max(count for _, count in archives.CIFAR[name].labels.values())
  sizes = dict.fromkeys(('train', 'test'), classes * per_class)
  return mock.patch.dict(archives.SIZES, {name: sizes})
