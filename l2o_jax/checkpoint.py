"""Pytrees of arrays on disk: an uncompressed npz with a manifest, verified.

A file holds one member per array, named by its path in the tree, and a member
`manifest`: UTF-8 JSON with the format version, the metadata, and for each array
its name, shape, dtype and SHA-256.  Nothing in it is executed on loading.
"""

import hashlib
import json
import os
import tempfile
import zipfile

import jax
import jax.numpy as jnp
import numpy as np

FORMAT = 1


class CheckpointError(ValueError):
  """A file that cannot be taken for what it should be; names file and cause."""


def _names_and_leaves(tree):
  leaves, structure = jax.tree.flatten_with_path(tree)
  names = [jax.tree_util.keystr(path, simple=True, separator='.') or 'value'
           for path, _ in leaves]
  if len(set(names)) < len(names) or 'manifest' in names:
    raise ValueError(f'checkpoint: ambiguous array names in {names}')
  return names, [leaf for _, leaf in leaves], structure


def _is_key(leaf):
  return (isinstance(leaf, jax.Array)
          and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key))


def _encode(leaf):
  """Array of any kind -> (plain numpy array, the name of its dtype)."""
  if _is_key(leaf):
    return np.asarray(jax.random.key_data(leaf)), str(leaf.dtype)
  array = np.asarray(leaf)
  if array.dtype.hasobject:
    raise TypeError('checkpoint: arrays of objects cannot be saved')
  if array.dtype == jnp.bfloat16:
    return array.view(np.uint16), 'bfloat16'
  return array, array.dtype.name


def _decode(array, like):
  if _is_key(like):
    return jax.random.wrap_key_data(
        jnp.asarray(array), impl=jax.random.key_impl(like))
  if like.dtype == jnp.bfloat16:
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
    TypeError: a leaf is no array.
    OSError: the file cannot be written; an older file at `path` is intact.
  """
  path = os.fspath(path)
  names, leaves, _ = _names_and_leaves(tree)
  arrays, entries = {}, []
  for name, leaf in zip(names, leaves, strict=True):
    array, dtype = _encode(leaf)
    arrays[name] = array
    entries.append({'name': name, 'shape': list(array.shape), 'dtype': dtype,
                    'sha256': hashlib.sha256(array.tobytes()).hexdigest()})
  manifest = json.dumps(
      {'format': FORMAT, 'metadata': metadata, 'arrays': entries})
  directory = os.path.dirname(os.path.abspath(path))
  handle, temporary = tempfile.mkstemp(dir=directory, suffix='.tmp')
  try:
    os.chmod(temporary, 0o644)  # mkstemp's own is 0600
    with os.fdopen(handle, 'wb') as f:
      np.savez(f, manifest=np.frombuffer(manifest.encode(), np.uint8), **arrays)
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


def _read(path):
  """(manifest, {name: array}) of a file, nothing checked but readability."""
  path = os.fspath(path)
  try:
    with open(path, 'rb') as f, np.load(f, allow_pickle=False) as npz:
      if not isinstance(npz, np.lib.npyio.NpzFile):
        raise CheckpointError(f'{path}: not an npz file')
      arrays = {name: npz[name] for name in npz.files}
    manifest = json.loads(arrays.pop('manifest').tobytes())
    if manifest['format'] != FORMAT:
      raise CheckpointError(
          f"{path}: format {manifest['format']!r}, expected {FORMAT}")
    return manifest, arrays
  except FileNotFoundError:
    raise CheckpointError(f'{path}: no such file') from None
  except CheckpointError:
    raise
  except (OSError, ValueError, KeyError, TypeError, EOFError, AttributeError,
          zipfile.BadZipFile, NotImplementedError) as error:
    raise CheckpointError(f'{path}: not a readable checkpoint ({error})'
                          ) from None


def metadata(path):
  """What was given to `save` as metadata.

  Raises:
    CheckpointError: the file is missing or damaged.
  """
  return _read(path)[0]['metadata']


def load(path, like):
  """Reads a tree back, every array verified.

  Args:
    path: a file that `save` wrote.
    like: a tree of the structure, shapes and dtypes to expect.

  Returns:
    The tree; arrays are of jax where `like`'s are.

  Raises:
    CheckpointError: the file is missing or damaged, or holds other names,
      shapes or dtypes; the message names the file and the first difference.
  """
  manifest, arrays = _read(path)
  names, leaves, structure = _names_and_leaves(like)
  stored = {entry['name']: entry for entry in manifest['arrays']}
  if set(stored) != set(names) or set(arrays) != set(names):
    odd = sorted(set(names) ^ (set(stored) & set(arrays))) or sorted(arrays)
    raise CheckpointError(f'{path}: holds other arrays than expected: '
                          f'{", ".join(odd[:5])}')
  decoded = []
  for name, leaf in zip(names, leaves, strict=True):
    expected, dtype = _encode(leaf)
    array, entry = arrays[name], stored[name]
    if entry['dtype'] != dtype or array.dtype != expected.dtype:
      raise CheckpointError(
          f"{path}: {name} is {entry['dtype']}, expected {dtype}")
    if array.shape != expected.shape:
      raise CheckpointError(f'{path}: {name} has shape {array.shape}, '
                            f'expected {expected.shape}')
    if hashlib.sha256(array.tobytes()).hexdigest() != entry['sha256']:
      raise CheckpointError(f'{path}: {name} is damaged (SHA-256 differs)')
    decoded.append(_decode(array, leaf))
  return structure.unflatten(decoded)
