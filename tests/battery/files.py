"""Attacks on checkpoints: kill while saving, damage, malice."""

import io
import os
import pathlib
import pickle
import random
import stat
import struct
import time
import tracemalloc
import warnings
import zipfile

import jax
import jax.numpy as jnp
import numpy as np

from l2o_jax import checkpoint
from tests.battery.programs import CONTEXT


def _save_for_ever(path, acknowledged):
  with open(acknowledged, 'wb', buffering=0) as f:
    for step in range(10**9):
      checkpoint.save(
        path,
        {'w': np.full(5000, step), 's': np.int64(step)},
        metadata={'step': step},
      )
      f.write(struct.pack('q', step))


def kill_in_save_loop(directory, times):
  """kill -9 while saving: the file is readable and not older than promised."""
  rng = random.Random(2)
  for i in range(times):
    path, acknowledged = directory / 'a.npz', directory / f'ack{i}'
    process = CONTEXT.Process(target=_save_for_ever, args=(path, acknowledged))
    process.start()
    while not (acknowledged.exists() and acknowledged.stat().st_size):
      time.sleep(0.001)
    time.sleep(rng.uniform(0, 0.1))
    process.kill()
    process.join()
    promised = struct.unpack('q', acknowledged.read_bytes()[-8:])[0]
    got = checkpoint.load(path, {'w': np.zeros(5000, int), 's': np.int64(0)})
    assert got['s'] >= promised and (got['w'] == got['s']).all()
    checkpoint.save(path, {})  # removes what the killed process was writing
    left = [p.name for p in directory.iterdir() if 'ack' not in p.name]
    assert left == ['a.npz'], left
    path.unlink()
  return (
    f'{times} kills: 0 unreadable, none older than acknowledged, no '
    'temporary file left after the next save'
  )


def mutated(whole, rng):
  """One random damage to a file."""
  at = rng.randrange(len(whole))
  length = rng.choice((1, 2, 8, 100, 1000))
  noise = rng.randbytes(length)
  return rng.choice(
    (
      lambda: whole[:at],
      lambda: (
        whole[:at]
        + bytes([whole[at] ^ 1 << rng.randrange(8)])
        + whole[at + 1 :]
      ),
      lambda: whole[:at] + bytes(length) + whole[at + length :],
      lambda: whole[:at] + noise + whole[at:],
      lambda: whole[:at] + whole[at + length :],
      lambda: whole[:at] + noise + whole[at + length :],
      lambda: whole[:at] + whole[at : at + length] + whole[at:],
      lambda: noise + whole[length:],
      lambda: whole[:-22] + noise[:22] + whole[len(whole) - 22 + length :],
    )
  )()


def _load_or_refuse(path, like):
  """The tree, or None if refused; checks time and memory."""
  started = time.process_time()  # other programs may hold the cores
  tracemalloc.reset_peak()
  before = tracemalloc.get_traced_memory()[0]
  try:
    got = checkpoint.load(path, like)
  except checkpoint.CheckpointError as error:
    assert str(path) in str(error), error
    got = None
  took = time.process_time() - started
  used = tracemalloc.get_traced_memory()[1] - before
  assert took < 2, f'{took:.1f} s'
  assert used < 64 << 20, f'{used} bytes'
  return got


def damaged_files(directory, times):
  """Random damage: refused with one kind of error, or all values right."""
  rng = random.Random(3)
  like = {
    'theta': jnp.arange(1000.0).reshape(20, 50),
    'key': jax.random.key(5),
    'half': jnp.ones(7, jnp.bfloat16),
    'step': np.int64(3),
  }
  path = directory / 'a.npz'
  checkpoint.save(path, like, metadata={'epochs': 3})
  whole, refused = path.read_bytes(), 0
  tracemalloc.start()
  try:
    for _ in range(times):
      path.write_bytes(mutated(whole, rng))
      got = _load_or_refuse(path, like)
      if got is None:
        refused += 1
        continue
      np.testing.assert_array_equal(got['theta'], like['theta'])
      np.testing.assert_array_equal(
        jax.random.key_data(got['key']), jax.random.key_data(like['key'])
      )
      np.testing.assert_array_equal(
        got['half'].view(np.uint16), like['half'].view(np.uint16)
      )
      assert got['step'] == 3 and checkpoint.metadata(path) == {'epochs': 3}
  finally:
    tracemalloc.stop()
  return (
    f'{times} damaged files: {refused} refused, the others whole in '
    'every value; 0 tracebacks, none over 2 s'
  )


class _Bomb:
  """Would write a file if it were unpickled."""

  def __init__(self, target):
    self.target = str(target)

  def __reduce__(self):
    return (open, (self.target, 'w'))


def _npy(array, header=None):
  buffer = io.BytesIO()
  if header is None:
    np.lib.format.write_array(buffer, array, allow_pickle=True)
    return buffer.getvalue()
  text = header.encode()
  return b'\x93NUMPY\x01\x00' + struct.pack('<H', len(text) & 0xFFFF) + text


def _many(count):
  """A zip of many empty members."""
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, 'w') as z:
    for i in range(count):
      z.writestr(f'{i:08d}.npy', b'')
  return buffer.getvalue()


def special_files(directory, times):
  """Neither read without end nor waited for: refused in one line, at once."""
  like = {'w': np.arange(4.0)}
  fifo, folder, loop = (directory / name for name in ('fifo', 'folder', 'loop'))
  os.mkfifo(fifo)
  folder.mkdir()
  loop.symlink_to(loop)
  links = []
  for target in (fifo, folder, '/dev/zero', '/dev/null', '/dev/random'):
    links.append(directory / f'link{len(links)}')
    links[-1].symlink_to(target)
  many, sparse = directory / 'many.npz', directory / 'sparse.npz'
  many.write_bytes(_many(30_000))
  with open(sparse, 'wb') as f:
    f.truncate(1 << 40)
  devices = [pathlib.Path('/dev', name) for name in ('zero', 'full', 'random')]
  paths = [fifo, folder, loop, many, sparse, *links, *devices]
  tracemalloc.start()
  try:
    for path in paths * times:
      assert _load_or_refuse(path, like) is None, f'{path} was accepted'
      try:
        checkpoint.metadata(path)
      except checkpoint.CheckpointError as error:
        assert str(path) in str(error) and '\n' not in str(error), error
      else:
        raise AssertionError(f'{path} was accepted')
  finally:
    tracemalloc.stop()
  return f'{len(paths)} special, large or crowded files refused at once'


_ALPHABET = (*'abAB019', *'./\\%~ \n\0\x7f', 'é', '\u2028', '\ud800', '..', '')
_WORDS = ('file', 'manifest', 'value', 'self', 'mlp/~/linear_0', '%6Danifest')


def names(directory, times):
  """Trees with any strings as keys come back, every array in its place."""
  rng = random.Random(5)

  def key():
    letters = rng.choices(_ALPHABET, k=rng.randrange(6))
    return rng.choice((''.join(letters), ''.join(letters), rng.choice(_WORDS)))

  def grow(depth):
    if not depth or rng.random() < 0.3:
      return np.int64(rng.randrange(1 << 40))
    return {key(): grow(depth - 1) for _ in range(rng.randrange(1, 5))}

  path, count = directory / 'a.npz', 0
  for _ in range(times):
    tree = grow(4)
    checkpoint.save(path, tree)
    got = checkpoint.load(path, tree)
    assert jax.tree.structure(got) == jax.tree.structure(tree)
    leaves = jax.tree.leaves(tree)
    assert jax.tree.leaves(got) == leaves, tree
    count += len(leaves)
    assert os.listdir(directory) == ['a.npz']
  return f'{count} odd names in {times} trees: every array came back'


def malicious_files(directory, mutations):
  """Files made to harm: none is accepted, nothing in them is executed."""
  like = {'w': np.arange(4.0)}
  path, canary = directory / 'a.npz', directory / 'executed'
  checkpoint.save(path, like)
  with zipfile.ZipFile(path) as z:
    members = {name: z.read(name) for name in z.namelist()}
  good = members['w.npy']

  def pack(entries, method=zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w', method) as z:
      for name, data in entries:
        z.writestr(name, data)
    return buffer.getvalue()

  manifest = ('manifest.npy', members['manifest.npy'])
  link = zipfile.ZipInfo('w.npy')
  link.external_attr = (stat.S_IFLNK | 0o777) << 16
  bomb = pickle.dumps(_Bomb(canary))
  objects = np.empty(1, object)
  objects[0] = _Bomb(canary)
  descr = "{'descr': '<f8', 'fortran_order': False, 'shape': (%s,), }"
  attacks = {
    'pickle': bomb,
    'pickle as a member': pack([manifest, ('w.npy', bomb)]),
    'object array': pack([manifest, ('w.npy', _npy(objects))]),
    'zip bomb': pack(
      [manifest, ('w.npy', good + bytes(50 << 20))], zipfile.ZIP_DEFLATED
    ),
    'large member': pack([manifest, ('w.npy', good + bytes(1 << 16))]),
    'huge header': pack([manifest, ('w.npy', _npy(None, ' ' * 65000))]),
    'huge shape': pack(
      [manifest, ('w.npy', _npy(None, descr % 10**15) + bytes(32))]
    ),
    'code in a header': pack(
      [manifest, ('w.npy', _npy(None, f'open({str(canary)!r}, "w")'))]
    ),
    'nested header': pack(
      [manifest, ('w.npy', _npy(None, '(' * 3000 + ')' * 3000))]
    ),
    'parent directory': pack([manifest, ('../w.npy', good)]),
    'absolute name': pack([manifest, ('/w.npy', good)]),
    'symlink': pack([manifest, (link, b'/etc/passwd')]),
    'nested manifest': pack(
      [
        ('manifest.npy', _npy(np.frombuffer(b'0\n' + b'[' * 100000, np.uint8))),
        ('w.npy', good),
      ]
    ),
    'no manifest': pack([('w.npy', good)]),
    'extra member': pack([manifest, ('w.npy', good), ('v.npy', good)]),
    'not an array': pack([manifest, ('w.npy', good), ('run.py', b'1')]),
    'many members': _many(9_000),
    'empty': b'',
    'npy': _npy(np.arange(4.0)),
  }
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # zipfile's own, of a duplicate name
    attacks['duplicates'] = pack(
      [manifest, ('w.npy', good), ('w.npy', _npy(np.ones(4)))]
    )
  rng = random.Random(4)
  tracemalloc.start()
  try:
    for name, data in attacks.items():
      for i in range(1 + mutations):
        path.write_bytes(mutated(data, rng) if i and data else data)
        got = _load_or_refuse(path, like)
        assert got is None, f'{name} was accepted'
        assert not canary.exists(), f'{name} was executed'
  finally:
    tracemalloc.stop()
  return (
    f'{len(attacks)} malicious files and {mutations} mutations of each: '
    'all refused, 0 executions'
  )
