"""Data sets as tensorflow-datasets writes them, without TensorFlow.

Its stock builders need TensorFlow to unpack archives.  Here archives.py reads
the archives, and a builder of the same name gets the arrays; what it writes is
what the stock builder would have written.

  python -m l2o_jax.datasets prepare mnist --from DIR   # from files on disk
  python -m l2o_jax.datasets prepare mnist              # from the network
"""

import contextlib
import io
import os
import pathlib
import shutil
import threading
import urllib.error
import urllib.parse
import urllib.request

from l2o_jax.datasets import (
  PREPARABLE,
  archives,
  check,
  default_data_dir,
  find_prepared,
  import_tfds,
  one_line,
)
from l2o_jax.files import lock


def _check_network(url, seconds=4.0):
  """Raises DatasetError unless the host answers; the stock wait is minutes."""
  reached = threading.Event()

  def ask():
    with contextlib.suppress(OSError, ValueError):
      with contextlib.suppress(urllib.error.HTTPError):  # an answer as well
        urllib.request.urlopen(url, timeout=seconds).close()
      reached.set()

  # In a thread, because a name lookup has no time limit.
  thread = threading.Thread(target=ask, daemon=True)
  thread.start()
  thread.join(seconds)
  host = urllib.parse.urlparse(url).netloc
  todo = 'download the archives elsewhere and give their directory with --from'
  check(reached.is_set(), f'no network to {host}; {todo} DIR')


def _download(urls, directory, say):
  for url in urls:
    say(f'downloading {url}')
    path = directory / url.rpartition('/')[2]
    with one_line(url), urllib.request.urlopen(url, timeout=60) as f:
      with open(path, 'wb') as archive:
        shutil.copyfileobj(f, archive)


def _write(name, splits, class_names, data_dir):
  """Runs the stock builder on arrays; returns the directory it has filled."""
  tfds = import_tfds()
  import PIL.Image

  def examples(split):
    images, labels = splits[split]
    for i, image in enumerate(images):
      record = {label: int(values[i]) for label, values in labels.items()}
      if name in archives.CIFAR:
        record['id'] = f'{split}_{i:05d}'
      yield i, record | {'image': PIL.Image.fromarray(image)}

  def generators(self, downloads):
    return {split: examples(split) for split in splits}

  stock = tfds.builder_cls(name)
  own = {'name': name, '__module__': stock.__module__}
  own['_split_generators'] = generators
  with tfds.core.registered.skip_registration():  # the stock one keeps its name
    builder_cls = type(stock.__name__, (stock,), own)
  tfds.disable_progress_bar()
  config = tfds.download.DownloadConfig(try_download_gcs=False)
  quiet = contextlib.redirect_stdout(io.StringIO())  # "Downloading 0 bytes"
  with one_line(f'{name} cannot be written to {data_dir}'), quiet:
    builder = builder_cls(data_dir=data_dir, file_format='array_record')
    for label, names in class_names.items():
      builder.info.features[label].names = names
    builder.download_and_prepare(download_config=config)
  return pathlib.Path(builder.data_dir)


@contextlib.contextmanager
def _alone(root, name, say):
  """An empty directory in root for one process at a time; removed at the end.

  A process that is killed leaves it; the next one empties it.
  """
  made = [d for d in (root, *root.parents) if not d.exists()]
  beside, path = root / f'.prepare-{name}', root / f'.prepare-{name}.lock'
  while True:
    root.mkdir(parents=True, exist_ok=True)
    with open(path, 'ab') as f:
      if not lock(f, wait=False):
        say(f'waiting for another process that prepares {name} in {root}')
        check(lock(f), f'{path} cannot be locked')
      if not os.fstat(f.fileno()).st_nlink:  # the last owner has removed it
        continue
      try:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir()
        yield beside
        return
      finally:
        shutil.rmtree(beside, ignore_errors=True)
        path.unlink()
        with contextlib.suppress(OSError):  # not empty: prepared
          for directory in made:
            directory.rmdir()


def prepare(name, data_dir=None, source=None, say=lambda text: None):
  """Writes a data set to data_dir/name/version as tensorflow-datasets does.

  Processes that prepare the same data set at once wait for each other.

  Args:
    name: 'mnist', 'fashion_mnist', 'cifar10' or 'cifar100'.
    data_dir: where to; `default_data_dir()` if None.
    source: directory that holds the original archives, or what they unpack to,
      under their own names; None downloads them.
    say: called with a line for people on what takes long or is uncertain.

  Returns:
    The directory of the prepared data.

  Raises:
    DatasetError: unknown name, missing or damaged files, or no network.
    OSError: the data cannot be written.
  """
  known = ', '.join(PREPARABLE)
  check(name in PREPARABLE, f'prepare: {name!r} is not one of {known}')
  root = pathlib.Path(data_dir or default_data_dir()).expanduser()
  found, data, urls = find_prepared(name, root), None, ()
  if found and not (root / f'.prepare-{name}.lock').exists():
    return found
  if not found and source is not None:  # verified before anything is written
    source = pathlib.Path(source).expanduser()
    data = archives.read(name, source, say)
  elif not found:
    urls = list(import_tfds().builder_cls(name).url_infos)
    _check_network(urls[0])
  with _alone(root, name, say) as beside:
    if not find_prepared(name, root):
      _download(urls, beside, say)
      splits, class_names = data or archives.read(name, beside, say)
      total = sum(archives.SIZES[name].values())
      say(f'writing {total} images to {root / name}')
      written = _write(name, splits, class_names, beside)
      (root / name).mkdir(exist_ok=True)
      os.replace(written, root / name / written.name)
    return find_prepared(name, root)
