"""Images from disk as two plain arrays.

`mnist_5k` ships inside the package.  Everything else is read through
tensorflow-datasets from a directory that `prepare` has filled, without
TensorFlow: its stock builders need TensorFlow to unpack archives, so `prepare`
runs them with an unpacking of our own; what they write is read by the stock
`tfds.data_source`.

  python -m l2o_jax.datasets prepare mnist --from DIR   # from archives on disk
  python -m l2o_jax.datasets prepare mnist              # from the network
"""

import argparse
import gzip
import importlib.resources
import io
import os
import pathlib
import sys
import tarfile
import tempfile
import threading
import urllib.request
import zipfile
import zlib

import numpy as np

PACKAGED = ('mnist_5k',)
_IDX_FILES = {
  ('train', 'images'): 'train-images-idx3-ubyte.gz',
  ('train', 'labels'): 'train-labels-idx1-ubyte.gz',
  ('test', 'images'): 't10k-images-idx3-ubyte.gz',
  ('test', 'labels'): 't10k-labels-idx1-ubyte.gz',
}
_CIFAR_FILES = {
  'cifar10': (
    'cifar-10-binary.tar.gz',
    'cifar-10-batches-bin/',
    {
      'train': tuple(f'data_batch_{i}.bin' for i in range(1, 6)),
      'test': ('test_batch.bin',),
    },
    {'label': 'batches.meta.txt'},
  ),
  'cifar100': (
    'cifar-100-binary.tar.gz',
    'cifar-100-binary/',
    {'train': ('train.bin',), 'test': ('test.bin',)},
    {'coarse_label': 'coarse_label_names.txt', 'label': 'fine_label_names.txt'},
  ),
}
_ARCHIVES = {
  'mnist': tuple(_IDX_FILES.values()),
  'fashion_mnist': tuple(_IDX_FILES.values()),
  'cifar10': _CIFAR_FILES['cifar10'][:1],
  'cifar100': _CIFAR_FILES['cifar100'][:1],
}
PREPARABLE = tuple(_ARCHIVES)
NAMES = PACKAGED + PREPARABLE


class DatasetError(ValueError):
  """Data that are missing or damaged; says what to do."""


def default_data_dir() -> str:
  """$TFDS_DATA_DIR, or ~/tensorflow_datasets as in tensorflow-datasets."""
  return os.environ.get('TFDS_DATA_DIR', '~/tensorflow_datasets')


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
    DatasetError: unknown name or split, or the data are not prepared.
  """
  if name not in NAMES:
    raise DatasetError(f'dataset {name!r} is not one of {", ".join(NAMES)}')
  if split not in ('train', 'test'):
    raise DatasetError(f"split must be 'train' or 'test', got {split!r}")
  if name in PACKAGED:
    file = importlib.resources.files('l2o_jax') / 'datasets' / f'{name}.npz'
    with file.open('rb') as f, np.load(f, allow_pickle=False) as npz:
      return (npz[f'{split}_images'], npz[f'{split}_labels'].astype(np.int32))
  root = pathlib.Path(data_dir or default_data_dir()).expanduser()
  # Looked for by hand: on an unprepared directory tensorflow-datasets goes to
  # the network for minutes, or raises an error about TFRECORD.
  prepared = sorted(root.glob(f'{name}/*/dataset_info.json'))
  if not prepared:
    raise DatasetError(
      f'{name} is not prepared in {root}; run: python -m l2o_jax.datasets '
      f'prepare {name} --data_dir {root} [--from DIR_WITH_ARCHIVES]'
    )
  cache = prepared[-1].parent / f'{split}_arrays.npz'
  if (arrays := _read_cache(cache)) is None:
    arrays = _read_records(name, split, root)
    _write_cache(cache, *arrays)
  return arrays


def _read_cache(path):
  try:
    with open(path, 'rb') as f, np.load(f, allow_pickle=False) as npz:
      return npz['images'], npz['labels']
  except (
    OSError,
    ValueError,
    KeyError,
    EOFError,
    zipfile.BadZipFile,
    zlib.error,
  ):
    return None


def _write_cache(path, images, labels):
  try:
    with tempfile.NamedTemporaryFile(
      dir=path.parent, suffix='.tmp', delete=False
    ) as f:
      np.savez(f, images=images, labels=labels)
    os.replace(f.name, path)
  except OSError:
    return  # a directory that one may only read is still a source of data


def _tfds():
  try:
    import importlib_resources  # noqa: F401, likewise
    import PIL.Image  # noqa: F401, undeclared by tensorflow-datasets
    import tensorflow_datasets as tfds
  except ImportError as error:
    raise DatasetError(
      f'this data set needs {error.name}; run: pip install '
      f'"l2o_jax[experiments]"'
    ) from None
  return tfds


def _read_records(name, split, root):
  import PIL.Image

  tfds = _tfds()
  try:
    source = tfds.data_source(
      name,
      split=split,
      data_dir=root,
      download=False,
      decoders={'image': tfds.decode.SkipDecoding()},
    )
    records = source.__getitems__(range(len(source)))
    images = np.stack(
      [np.asarray(PIL.Image.open(io.BytesIO(r['image']))) for r in records]
    )
    labels = np.array([r['label'] for r in records], np.int32)
  except Exception as error:  # of a dozen kinds, by what is damaged
    raise DatasetError(
      f'{name} in {root} is damaged ({error}); remove it and prepare it again'
    ) from None
  return images[..., None] if images.ndim == 3 else images, labels


def _read_idx(path, name):
  try:
    with gzip.open(path, 'rb') as f:
      data = f.read()
  except (OSError, EOFError, zlib.error) as error:
    raise DatasetError(f'{name} is damaged: {error}') from None
  if len(data) < 4 or data[:3] != b'\0\0\x08' or data[3] not in (1, 3):
    raise DatasetError(f'{name} is not an IDX file of unsigned bytes')
  rank = data[3]
  shape = [
    int.from_bytes(data[4 * i : 4 * i + 4], 'big') for i in range(1, rank + 1)
  ]
  if len(data) != 4 + 4 * rank + int(np.prod(shape)):
    raise DatasetError(f'{name} is damaged: {len(data)} bytes for {shape}')
  return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(shape)


class _IdxArchives:
  """Mixed into the stock builder of an MNIST-like data set."""

  def _split_generators(self, dl_manager):
    urls = {'-'.join(key): self.URL + file for key, file in _IDX_FILES.items()}
    paths = dl_manager.download(urls)
    return {
      split: self._generate_examples(
        _read_idx(paths[f'{split}-images'], f'{split} images'),
        _read_idx(paths[f'{split}-labels'], f'{split} labels'),
      )
      for split in ('train', 'test')
    }

  def _generate_examples(self, images, labels):
    import PIL.Image

    if len(images) != len(labels) or labels.max(initial=0) > 9:
      raise DatasetError(
        f'{len(images)} images do not fit {len(labels)} labels with a '
        f'maximum of {labels.max(initial=0)}'
      )
    for i, (image, label) in enumerate(zip(images, labels)):
      yield i, {'image': PIL.Image.fromarray(image), 'label': int(label)}


class _CifarArchive:
  """Mixed into the stock builder of CIFAR-10 or CIFAR-100."""

  def _split_generators(self, dl_manager):
    _, folder, files, names = _CIFAR_FILES[self.name]
    path = dl_manager.download(self._cifar_info.url)
    try:
      with tarfile.open(path) as tar:

        def read(file):
          return tar.extractfile(folder + file).read()

        for label, file in names.items():
          self.info.features[label].names = read(file).decode().split()
        data = {
          split: b''.join(map(read, parts)) for split, parts in files.items()
        }
    except (tarfile.TarError, KeyError, EOFError, OSError, zlib.error) as error:
      raise DatasetError(f'{path} is damaged: {error}') from None
    return {
      split: self._generate_examples(split, rows, tuple(names))
      for split, rows in data.items()
    }

  def _generate_examples(self, split, data, labels):
    import PIL.Image

    rows = np.frombuffer(data, np.uint8).reshape(-1, len(labels) + 3072)
    for i, row in enumerate(rows):
      image = row[len(labels) :].reshape(3, 32, 32).transpose(1, 2, 0)
      yield (
        i,
        {
          'id': f'{split}_{i:05d}',
          'image': PIL.Image.fromarray(np.ascontiguousarray(image)),
          **{label: int(v) for label, v in zip(labels, row)},
        },
      )


def _check_network(url, seconds=4.0):
  """Raises DatasetError unless the host answers; the stock wait is minutes."""
  reached = []

  def ask():
    try:
      urllib.request.urlopen(
        urllib.request.Request(url, method='HEAD'), timeout=seconds
      ).close()
      reached.append(True)
    except urllib.error.HTTPError:
      reached.append(True)
    except (OSError, ValueError):
      return

  thread = threading.Thread(target=ask, daemon=True)
  thread.start()
  thread.join(seconds)
  if not reached:
    host = urllib.request.urlparse(url).netloc
    raise DatasetError(
      f'no network to {host}; download the archives elsewhere and give their '
      'directory with --from DIR'
    )


def prepare(
  name: str, data_dir: str | None = None, source: str | None = None
) -> pathlib.Path:
  """Writes a data set to data_dir/name/version as tensorflow-datasets does.

  Args:
    name: 'mnist', 'fashion_mnist', 'cifar10' or 'cifar100'.
    data_dir: where to; `default_data_dir()` if None.
    source: directory that holds the original archives under their own names;
      None downloads them.  Their SHA-256 are checked in both cases.

  Returns:
    The directory of the prepared data.

  Raises:
    DatasetError: unknown name, missing or damaged archives, or no network.
  """
  if name not in PREPARABLE:
    raise DatasetError(
      f'prepare: {name!r} is not one of {", ".join(PREPARABLE)}'
    )
  if source is not None:
    source = pathlib.Path(source).expanduser()
    missing = [f for f in _ARCHIVES[name] if not (source / f).is_file()]
    if missing:
      raise DatasetError(f'{source} lacks {", ".join(missing)}')
  tfds = _tfds()
  from tensorflow_datasets.core import registered
  from tensorflow_datasets.core.download import download_manager

  stock = tfds.builder_cls(name)
  mixin = _CifarArchive if name in _CIFAR_FILES else _IdxArchives
  with registered.skip_registration():  # the name stays the stock builder's
    builder_cls = type(
      stock.__name__,
      (mixin, stock),
      {'__module__': stock.__module__, 'name': name},
    )
  root = pathlib.Path(data_dir or default_data_dir()).expanduser()
  builder = builder_cls(data_dir=root, file_format='array_record')
  final = pathlib.Path(builder.data_dir)
  if builder.is_prepared():
    return final
  if source is None:
    _check_network(next(iter(builder.url_infos), None) or stock.URL)
  made = [d for d in (root, *root.parents) if not d.exists()]
  root.mkdir(parents=True, exist_ok=True)
  try:
    # Beside its place, then renamed: what fails leaves nothing behind.
    with tempfile.TemporaryDirectory(dir=root, prefix='.prepare-') as beside:
      builder = builder_cls(data_dir=beside, file_format='array_record')
      builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(
          manual_dir=source, try_download_gcs=False
        )
      )
      final.parent.mkdir(exist_ok=True)
      os.replace(builder.data_dir, final)
  except BaseException as error:
    for directory in made:
      directory.rmdir()
    if isinstance(error, download_manager.NonMatchingChecksumError):
      raise DatasetError(
        f'an archive of {name} is not the original: its SHA-256 differs from '
        'the one that tensorflow-datasets has registered'
      ) from None
    raise
  return final


def main(argv=None) -> int:
  """The command line; returns the exit status."""
  parser = argparse.ArgumentParser(
    prog='python -m l2o_jax.datasets',
    description='Prepare image data sets without TensorFlow.',
  )
  commands = parser.add_subparsers(dest='command', required=True)
  command = commands.add_parser(
    'prepare', help='write a data set as tensorflow-datasets does'
  )
  command.add_argument('name', help=', '.join(PREPARABLE))
  command.add_argument(
    '--from',
    dest='source',
    metavar='DIR',
    help='directory with the original archives; default: download them',
  )
  command.add_argument(
    '--data_dir',
    metavar='DIR',
    default=None,
    help=f'where to write; default: {default_data_dir()}',
  )
  arguments = parser.parse_args(argv)
  try:
    print(prepare(arguments.name, arguments.data_dir, arguments.source))
  except (DatasetError, OSError) as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  return 0
