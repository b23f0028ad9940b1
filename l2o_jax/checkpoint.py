"""Pytrees of arrays on disk: an uncompressed npz with a manifest, verified.

A file holds one member per array, named by its path in the tree, and first of
all a member `manifest`: two lines, the SHA-256 of the second, and JSON with the
format version, the metadata, each array's name, shape and dtype, and the
SHA-256 over the bytes of all arrays in that order.  Nothing in a file is
executed on loading, and no array is read before the zip directory, the manifest
and the array's own header agree with what the reader expects.
"""

import hashlib
import json
import os
import stat
import tempfile
import zipfile

import jax
import jax.numpy as jnp
import numpy as np

FORMAT = 2
MAX_MANIFEST = 4 << 20  # bytes
MAX_HEADER = 4 << 10  # bytes of an array's npy header
MANIFEST = 'manifest'


class CheckpointError(ValueError):
  """A file that cannot be taken for what it should be; names file and cause."""


def _names_and_leaves(tree):
  leaves, structure = jax.tree.flatten_with_path(tree)
  names = [
    jax.tree_util.keystr(path, simple=True, separator='.') or 'value'
    for path, _ in leaves
  ]
  odd = [n for n in names if n == MANIFEST or set(n) & set('/\\\0')]
  if odd or len(set(names)) < len(names):
    raise ValueError(f'checkpoint: ambiguous or odd array names in {names}')
  return names, [leaf for _, leaf in leaves], structure


def _is_key(leaf):
  return isinstance(leaf, jax.Array) and jnp.issubdtype(
    leaf.dtype, jax.dtypes.prng_key
  )


def _encode(leaf):
  """Array of any kind -> (plain numpy array, the name of its dtype)."""
  if _is_key(leaf):
    return np.asarray(jax.random.key_data(leaf)), str(leaf.dtype)
  array = np.asarray(leaf, order='C')
  if array.dtype.kind not in 'biufcV':
    raise TypeError(f'checkpoint: an array of {array.dtype} cannot be saved')
  if array.dtype == jnp.bfloat16:
    return array.view(np.uint16), 'bfloat16'
  if array.dtype.kind == 'V':
    raise TypeError(f'checkpoint: an array of {array.dtype} cannot be saved')
  return array, array.dtype.name


def _decode(array, like):
  if _is_key(like):
    return jax.random.wrap_key_data(
      jnp.asarray(array), impl=jax.random.key_impl(like)
    )
  if getattr(like, 'dtype', None) == jnp.bfloat16:
    array = array.view(jnp.bfloat16)
  return jnp.asarray(array) if isinstance(like, jax.Array) else array


def save(path, tree, *, metadata=None) -> None:
  """Writes all arrays of a tree to one file, atomically.

  The file appears whole or not at all: it is written beside its place, flushed
  to the disk and renamed.

  Args:
    path: where to; the directory must exist.
    tree: any pytree of arrays, numbers or random keys.
    metadata: anything JSON can hold: configuration, step, provenance.

  Raises:
    TypeError: a leaf is no array of numbers.
    ValueError: two arrays have the same name, or one cannot be a file's.
    OSError: the file cannot be written; an older file at `path` is intact.
  """
  path = os.fspath(path)
  names, leaves, _ = _names_and_leaves(tree)
  arrays, entries, digest = {}, [], hashlib.sha256()
  for name, leaf in zip(names, leaves, strict=True):
    array, dtype = _encode(leaf)
    arrays[name] = array
    digest.update(array.tobytes())
    entries.append({'name': name, 'shape': list(array.shape), 'dtype': dtype})
  body = json.dumps(
    {
      'format': FORMAT,
      'metadata': metadata,
      'arrays': entries,
      'sha256': digest.hexdigest(),
    }
  ).encode()
  manifest = hashlib.sha256(body).hexdigest().encode() + b'\n' + body
  if len(manifest) > MAX_MANIFEST // 2:
    raise ValueError('checkpoint: metadata of more than 2 MB')
  directory = os.path.dirname(os.path.abspath(path))
  handle, temporary = tempfile.mkstemp(dir=directory, suffix='.tmp')
  try:
    os.chmod(temporary, 0o644)  # mkstemp's own is 0600
    with os.fdopen(handle, 'wb') as f:
      np.savez(f, **{MANIFEST: np.frombuffer(manifest, np.uint8)}, **arrays)
      f.flush()
      os.fsync(f.fileno())
    os.replace(temporary, path)
  except BaseException:
    os.unlink(temporary)
    raise
  directory = os.open(directory, os.O_RDONLY)
  try:
    os.fsync(directory)
  finally:
    os.close(directory)


def _check(condition, message):
  if not condition:
    raise CheckpointError(message)


def _directory(npz, max_size):
  """{name: ZipInfo} of an npz whose every member is a plain stored array."""
  size = os.fstat(npz.fileno()).st_size
  _check(size <= max_size, f'{size} bytes, expected at most {max_size}')
  with zipfile.ZipFile(npz) as z:
    infos = z.infolist()
  members = {}
  for info in infos:
    name, suffix = info.filename[:-4], info.filename[-4:]
    kind = stat.S_IFMT(info.external_attr >> 16)
    _check(
      suffix == '.npy'
      and name
      and not set(name) & set('/\\\0')
      and info.filename == info.orig_filename,
      f'odd member name {info.orig_filename[:100]!r}',
    )
    _check(name not in members, f'member {name!r} twice')
    _check(kind in (0, stat.S_IFREG), f'member {name!r} is not a plain file')
    _check(
      info.compress_type == zipfile.ZIP_STORED
      and info.compress_size == info.file_size,
      f'member {name!r} is compressed',
    )
    _check(not info.flag_bits & 1, f'member {name!r} is encrypted')
    members[name] = info
  return members


def _read_array(z, info, name, dtype, shape):
  """One member, read only if its header says just this dtype and shape."""
  with z.open(info) as f:
    version = np.lib.format.read_magic(f)
    _check(version == (1, 0), f'{name}: npy version {version}')
    found_shape, fortran, found_dtype = np.lib.format.read_array_header_1_0(
      f, max_header_size=MAX_HEADER
    )
    _check(
      found_dtype == dtype and not found_dtype.hasobject,
      f'{name} is {found_dtype}, expected {dtype}',
    )
    _check(
      shape is None and len(found_shape) == 1 or found_shape == shape,
      f'{name} has shape {found_shape}, expected {shape}',
    )
    _check(not fortran or len(found_shape) < 2, f'{name} is in Fortran order')
    size = dtype.itemsize * int(np.prod(found_shape, dtype=object))
    _check(
      info.file_size == f.tell() + size,
      f'{name} has {info.file_size} bytes, expected {f.tell() + size}',
    )
    data = f.read()  # to the end: zipfile then compares the CRC too
    _check(len(data) == size, f'{name} ends after {len(data)} bytes')
  return np.frombuffer(data, dtype).reshape(found_shape).copy(), data


def _read_manifest(z, members):
  _check(MANIFEST in members, 'no manifest: not a checkpoint of this library')
  info = members[MANIFEST]
  _check(info.file_size <= MAX_MANIFEST, 'the manifest is too large')
  _, data = _read_array(z, info, MANIFEST, np.dtype(np.uint8), None)
  digest, _, body = data.partition(b'\n')
  _check(
    hashlib.sha256(body).hexdigest().encode() == digest,
    'the manifest is damaged (SHA-256 differs)',
  )
  manifest = json.loads(body)
  _check(
    manifest['format'] == FORMAT,
    f'format {manifest["format"]!r}, expected {FORMAT}',
  )
  return manifest


def _reading(path, read, max_size):
  """`read(open zip, members, manifest)`; every defect a CheckpointError."""
  path = os.fspath(path)
  try:
    with open(path, 'rb') as f:
      members = _directory(f, max_size)
      with zipfile.ZipFile(f) as z:
        return read(z, members, _read_manifest(z, members))
  except FileNotFoundError:
    raise CheckpointError(f'{path}: no such file') from None
  except CheckpointError as error:
    raise CheckpointError(f'{path}: {error}') from None
  except Exception as error:  # zipfile, npy and JSON raise a dozen kinds
    raise CheckpointError(
      f'{path}: not a readable checkpoint ({type(error).__name__}: '
      f'{str(error)[:200]})'
    ) from None


def metadata(path):
  """What was given to `save` as metadata.  The arrays are not read.

  Raises:
    CheckpointError: the file is missing, or its manifest damaged.
  """
  return _reading(
    path, lambda z, members, manifest: manifest['metadata'], 1 << 62
  )


def load(path, like):
  """Reads a tree back, every array verified.

  Names, dtypes, shapes and sizes are compared with `like` before any array is
  read, so a file can make it use no more memory than `like` does.

  Args:
    path: a file that `save` wrote.
    like: a tree of the structure, shapes and dtypes to expect.

  Returns:
    The tree; arrays are of jax where `like`'s are.

  Raises:
    CheckpointError: the file is missing or damaged, or holds other names,
      shapes or dtypes; the message names the file and the first difference.
  """
  names, leaves, structure = _names_and_leaves(like)
  encoded = [_encode(leaf) for leaf in leaves]

  def read(z, members, manifest):
    stored = {entry['name']: entry for entry in manifest['arrays']}
    odd = sorted(set(names) ^ set(stored)) or sorted(
      set(names) ^ (set(members) - {MANIFEST})
    )
    _check(not odd, f'holds other arrays than expected: {", ".join(odd[:5])}')
    for name, (array, dtype) in zip(names, encoded, strict=True):
      entry = stored[name]
      _check(
        entry['dtype'] == dtype, f'{name} is {entry["dtype"]}, expected {dtype}'
      )
      _check(
        entry['shape'] == list(array.shape),
        f'{name} has shape {tuple(entry["shape"])}, expected {array.shape}',
      )
      _check(
        members[name].file_size <= array.nbytes + MAX_HEADER,
        f'{name} has {members[name].file_size} bytes, expected '
        f'{array.nbytes} and a header',
      )
    decoded, digest = [], hashlib.sha256()
    for name, leaf, (array, _) in zip(names, leaves, encoded, strict=True):
      found, data = _read_array(
        z, members[name], name, array.dtype, array.shape
      )
      digest.update(data)
      decoded.append(_decode(found, leaf))
    _check(
      digest.hexdigest() == manifest['sha256'],
      'the arrays are damaged (SHA-256 differs)',
    )
    return structure.unflatten(decoded)

  size = sum(array.nbytes for array, _ in encoded)
  slack = MAX_MANIFEST + (MAX_HEADER + 1024) * (len(names) + 1)
  return _reading(path, read, size + slack)
