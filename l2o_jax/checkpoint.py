"""Pytrees of arrays on disk: an uncompressed npz with a manifest, verified.

A file holds one member per array, named by its path in the tree (keys joined by
dots, with %XX for what a name may not hold).  Before them stands the member
`manifest`, of two lines: the SHA-256 of the second line, and JSON.  The JSON
has the format version, the metadata, the name, shape and dtype of each array,
and one SHA-256 over the bytes of all arrays.  Nothing in a file is executed on
loading, and no array is read before the zip directory, the manifest
and the array's own header agree with what the reader expects.
"""

import contextlib
import functools
import hashlib
import json
import math
import os
import re
import stat
import zipfile

import jax
import jax.numpy as jnp
import numpy as np

from l2o_jax.checks import require
from l2o_jax.files import open_regular, replacing

FORMAT = 2
MAX_ARRAYS = 10_000
MAX_MANIFEST = 4 << 20  # bytes
MAX_NAME = 4 << 10  # characters
MANIFEST = 'manifest'
# What may not stand in a member's name: path separators, control characters,
# what UTF-8 lacks, the dot (it separates keys) and the sign of an escape.
_ODD = re.compile(r'[%./\\\x00-\x1f\x7f\ud800-\udfff]')


class CheckpointError(ValueError):
  """A file is not what was expected; names the file and the cause."""


def _name(path):
  """Path in a tree -> name of a member; no two paths of strings share one."""
  keys = [jax.tree_util.keystr((key,), simple=True) for key in path]
  escape = lambda character: f'%{ord(character[0]):02X}'
  name = '.'.join(_ODD.sub(escape, key) or '%' for key in keys) or 'value'
  return '%6D' + name[1:] if name == MANIFEST else name


def _names_and_leaves(tree):
  leaves, structure = jax.tree.flatten_with_path(tree)
  paths = {}  # {name: path}
  for path, _ in leaves:
    name, shown = _name(path), jax.tree_util.keystr(path)
    both = f'the arrays {paths.get(name)} and {shown} of the tree would both be'
    require(name not in paths, f'checkpoint: {both} named {name!r}')
    long = f'checkpoint: a name of {len(name)} characters'
    require(len(name) <= MAX_NAME, long)
    paths[name] = shown
  many = f'checkpoint: {len(paths)} arrays, at most {MAX_ARRAYS}'
  require(len(paths) <= MAX_ARRAYS, many)
  return list(paths), [leaf for _, leaf in leaves], structure


def _is_key(leaf):
  return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _describe(name, leaf):
  """Any leaf -> (the same as an array or struct, shape in the file, dtype)."""
  if not isinstance(leaf, (jax.Array, jax.ShapeDtypeStruct, np.ndarray)):
    leaf = np.asarray(leaf)
  if _is_key(leaf):
    data = jax.eval_shape(jax.random.key_data, leaf)
    return leaf, data.shape, str(leaf.dtype)
  of_numpy = leaf.dtype.isbuiltin < 2  # float8 and others are 2
  plain = leaf.dtype.kind in 'biufc' and of_numpy
  numbers = plain or leaf.dtype == jnp.bfloat16
  what = f'checkpoint: {name} is an array of {leaf.dtype}'
  require(numbers, f'{what}, which cannot be saved', TypeError)
  return leaf, leaf.shape, leaf.dtype.name


def _file_dtype(name):
  """Dtype in the file of an array of the named dtype."""
  plain = {'bfloat16': 'uint16'}.get(name, name)
  return np.dtype('uint32' if name.startswith('key<') else plain)


def _encode(leaf, dtype):
  """Array of any kind -> numpy array of the dtype in the file."""
  if _is_key(leaf):
    leaf = jax.random.key_data(leaf)
  if leaf.dtype == jnp.bfloat16:
    return np.asarray(leaf, order='C').view(dtype)
  return np.asarray(leaf, dtype, order='C')


def _decode(array, leaf):
  """Numpy array of a file -> array of the kind and in the place of `leaf`."""
  if leaf.dtype == jnp.bfloat16:
    array = array.view(jnp.bfloat16)
  if isinstance(leaf, np.ndarray):
    return array
  if _is_key(leaf):
    impl = []  # `key_impl` takes arrays, not structs: asked inside a trace
    jax.eval_shape(lambda key: impl.append(jax.random.key_impl(key)), leaf)
    array = jax.random.wrap_key_data(jnp.asarray(array), impl=impl[0])
  # An array that jax has placed by itself stays uncommitted.  The sharding of a
  # struct may be on an abstract mesh, which has no devices.
  mesh = getattr(leaf.sharding, 'mesh', None)
  free = isinstance(mesh, jax.sharding.AbstractMesh)
  free = free or not getattr(leaf, 'committed', True)
  return jax.device_put(array, None if free else leaf.sharding)


def save(path, tree, *, metadata=None) -> None:
  """Writes all arrays of a tree to one file, atomically.

  The file appears whole or not at all: it is written beside its place, flushed
  to the disk and renamed.  What a process that was killed has left beside it is
  removed by the next `save` to the directory.

  Args:
    path: where to; the directory must exist.
    tree: any pytree of arrays, numbers or random keys.
    metadata: anything JSON can hold: configuration, step, provenance.

  Raises:
    TypeError: a leaf is no array of numbers, or JSON cannot hold the metadata.
    ValueError: two arrays have the same name, for example under the keys 1
      and '1', or there is too much metadata.
    OSError: the file cannot be written; an older file at `path` is intact.
  """
  names, leaves, _ = _names_and_leaves(tree)
  arrays, entries, digest = {}, [], hashlib.sha256()
  for name, leaf in zip(names, leaves, strict=True):
    leaf, shape, dtype = _describe(name, leaf)
    arrays[name] = _encode(leaf, _file_dtype(dtype))
    digest.update(arrays[name].tobytes())
    entries.append({'name': name, 'shape': list(shape), 'dtype': dtype})
  manifest = {'format': FORMAT, 'metadata': metadata, 'arrays': entries}
  body = json.dumps(manifest | {'sha256': digest.hexdigest()}).encode()
  text = hashlib.sha256(body).hexdigest().encode() + b'\n' + body
  much = 'checkpoint: more than 2 MB of metadata and names'
  require(len(text) <= MAX_MANIFEST // 2, much)
  arrays = {MANIFEST: np.frombuffer(text, np.uint8)} | arrays
  with replacing(path) as f, zipfile.ZipFile(f, 'w') as z:
    for name, array in arrays.items():
      with z.open(f'{name}.npy', 'w', force_zip64=True) as member:
        np.lib.format.write_array(member, array, allow_pickle=False)


_check = functools.partial(require, error=CheckpointError)


class _Directory:
  """A file that hands zipfile no directory of too many members."""

  def __init__(self, file):
    self.seek, self.tell = file.seek, file.tell
    self.seekable, self._read = file.seekable, file.read

  def read(self, size=-1):
    # zipfile reads the whole directory at once, however long it may be.
    short = 0 <= size <= MAX_MANIFEST
    data = self._read(size if short else MAX_MANIFEST + 1)
    few = data.count(b'PK\1\2') <= MAX_ARRAYS + 1
    _check(few and len(data) <= MAX_MANIFEST, 'too many members')
    return data


def _members(infos):
  """{name: ZipInfo} of an npz whose every member is a plain stored array."""
  members = {}
  for info in infos:
    name, suffix = info.filename[:-4], info.filename[-4:]
    kind = stat.S_IFMT(info.external_attr >> 16)
    plain = name and suffix == '.npy' and not set(name) & set('/\\\0')
    plain = plain and info.filename == info.orig_filename
    _check(plain, f'odd member name {info.orig_filename[:100]!r}')
    _check(name not in members, f'member {name!r} twice')
    _check(kind in (0, stat.S_IFREG), f'member {name!r} is not a plain file')
    stored = info.compress_type == zipfile.ZIP_STORED
    stored = stored and info.compress_size == info.file_size
    _check(stored, f'member {name!r} is compressed')
    _check(not info.flag_bits & 1, f'member {name!r} is encrypted')
    members[name] = info
  return members


def _read_array(z, info, name, dtype, shape=None):
  """One member, read only if its header says just this dtype and shape.

  Returns:
    (array, its bytes); a vector of any length if shape is None.
  """
  with z.open(info) as f:
    version = np.lib.format.read_magic(f)
    _check(version == (1, 0), f'{name}: npy version {version}')
    found, fortran, found_dtype = np.lib.format.read_array_header_1_0(f)
    shape = found[:1] if shape is None else shape
    _check(found_dtype == dtype, f'{name} is {found_dtype}, expected {dtype}')
    _check(found == shape, f'{name} has shape {found}, expected {shape}')
    _check(not fortran or len(shape) < 2, f'{name} is in Fortran order')
    size = dtype.itemsize * math.prod(shape)
    held, end = info.file_size, f.tell() + size
    _check(held == end, f'{name} has {held} bytes, expected {end}')
    data = f.read()  # to the end: zipfile then compares the CRC too
    _check(len(data) == size, f'{name} ends after {len(data)} bytes')
  return np.frombuffer(data, dtype).reshape(shape).copy(), data


def _read_manifest(z, members):
  _check(MANIFEST in members, 'no manifest: not a checkpoint of this library')
  info = members[MANIFEST]
  _check(info.file_size <= MAX_MANIFEST, 'the manifest is too large')
  _, data = _read_array(z, info, MANIFEST, np.dtype(np.uint8))
  digest, _, body = data.partition(b'\n')
  same = hashlib.sha256(body).hexdigest().encode() == digest
  _check(same, 'the manifest is damaged (SHA-256 differs)')
  manifest = json.loads(body)
  found = manifest['format']
  _check(found == FORMAT, f'format {found!r}, expected {FORMAT}')
  return manifest


@contextlib.contextmanager
def _opened(path):
  """(zip, members, manifest) of a file; every defect is a CheckpointError."""
  path = os.fspath(path)
  try:
    with open_regular(path) as f:
      directory = _Directory(f)
      with zipfile.ZipFile(directory) as z:
        directory.read = f.read  # arrays may be of any size
        members = _members(z.infolist())
        yield z, members, _read_manifest(z, members)
  except CheckpointError as error:
    raise CheckpointError(f'{path}: {error}') from None
  except OSError as error:
    raise CheckpointError(f'{path}: {error.strerror or error}') from None
  except Exception as error:  # zipfile, npy and JSON raise a dozen kinds
    text = ' '.join(str(error).split())[:200]  # some have several lines
    raise CheckpointError(
      f'{path}: not a readable checkpoint ({type(error).__name__}: {text})'
    ) from None


def metadata(path):
  """What was given to `save` as metadata.  The arrays are not read.

  Raises:
    CheckpointError: the file is missing, or its manifest damaged.
  """
  with _opened(path) as (_, _, manifest):
    return manifest['metadata']


def _check_dtype(name, found, want, leaf, of_python=False):
  """Whether an array of the file may take the place of `leaf`.

  The same program has float64 with jax_enable_x64 and float32 without, so
  between these two the switch decides: with it, float32 of a file stays
  float32; without it, float64 is rounded, as everywhere in jax.  Counters that
  began as numbers of Python are int32 after a jitted step.
  """
  x64 = jax.config.jax_enable_x64
  narrow = {'int64': 'int32', 'float64': 'float32'}
  if of_python and found == narrow.get(want):
    return
  for_numpy = isinstance(leaf, np.ndarray)
  wide = found in ('int64', 'uint64', 'float64', 'complex128')
  if {found, want} == {'float32', 'float64'} and not for_numpy:
    fits = want == ('float64' if x64 else 'float32')
  else:
    fits = found == want and (for_numpy or x64 or not wide)
  todo = f'give a tree of {found}, or save the array as {want}'
  if wide and not x64 and not for_numpy:
    on = f'switch jax_enable_x64 on to load {found}'
    todo = on if found == want else f'{on}, or save the array as {want}'
  _check(fits, f'{name} is {found}, expected {want}; {todo}')


def load(path, like):
  """Reads a tree back, every array verified.

  Names, dtypes, shapes and sizes are compared with `like` before any array is
  read, so a file can make it use no more memory than `like` does.

  Args:
    path: a file that `save` wrote.
    like: a tree of the structure, shapes and dtypes to expect: of arrays,
      numbers, random keys or `jax.ShapeDtypeStruct`.

  Returns:
    The tree.  Arrays are of numpy where `like` has arrays of numpy or numbers
    of Python, else of jax, with the sharding of `like`'s where it names
    devices.  They keep the file's dtype: float32 where `like` has float64
    because of jax_enable_x64 stays float32.

  Raises:
    CheckpointError: the file is missing or damaged, or holds other names,
      shapes or dtypes; the message names the file and the first difference.
    TypeError: a leaf of `like` is no array of numbers.
  """
  names, leaves, structure = _names_and_leaves(like)
  expected = [_describe(name, leaf) for name, leaf in zip(names, leaves)]
  with _opened(path) as (z, members, manifest):
    stored = {entry['name']: entry for entry in manifest['arrays']}
    lacking = set(names) - (set(stored) & set(members))
    beside = (set(stored) | set(members)) - {MANIFEST, *names}
    some = lambda found: ', '.join(sorted(found)[:5]) or 'none'
    odd = f'lacks {some(lacking)}; holds beside: {some(beside)}'
    _check(not lacking | beside, f'holds other arrays than expected: it {odd}')
    for name, (leaf, shape, want), given in zip(names, expected, leaves):
      of_python = not hasattr(given, 'dtype')
      _check_dtype(name, stored[name]['dtype'], want, leaf, of_python)
      found = tuple(stored[name]['shape'])
      _check(found == shape, f'{name} has shape {found}, expected {shape}')
    arrays, digest = {}, hashlib.sha256()
    for name, entry in stored.items():
      dtype, shape = _file_dtype(entry['dtype']), tuple(entry['shape'])
      arrays[name], data = _read_array(z, members[name], name, dtype, shape)
      digest.update(data)
    same = digest.hexdigest() == manifest['sha256']
    _check(same, 'the arrays are damaged (SHA-256 differs)')
  found = [_decode(arrays[n], leaf) for n, (leaf, _, _) in zip(names, expected)]
  return structure.unflatten(found)
