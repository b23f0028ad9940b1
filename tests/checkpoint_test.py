"""Round trips and refusals of files."""

import collections
import io
import os
import pathlib
import tempfile
import tracemalloc
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from l2o_jax import checkpoint


def tree():
  return {
    'w': jnp.arange(6.0).reshape(2, 3),
    'list': [jnp.ones(2, jnp.bfloat16) * 1.5, np.int64(7)],
    'key': jax.random.key(3),
    'none': None,
  }


class CheckpointTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.path = (
      pathlib.Path(self.enterContext(tempfile.TemporaryDirectory())) / 'a.npz'
    )

  def assert_refused(self, like, message, path=None):
    path = path or self.path
    with self.assertRaisesRegex(checkpoint.CheckpointError, message) as caught:
      checkpoint.load(path, like)
    self.assertIn(str(path), str(caught.exception))
    self.assertNotIn('\n', str(caught.exception))

  def test_round_trip(self):
    checkpoint.save(self.path, tree(), metadata={'step': 5})
    got = checkpoint.load(self.path, tree())
    np.testing.assert_array_equal(got['w'], [[0, 1, 2], [3, 4, 5]])
    self.assertEqual(got['list'][0].dtype, jnp.bfloat16)
    np.testing.assert_array_equal(
      got['list'][0].astype(jnp.float32), [1.5, 1.5]
    )
    self.assertEqual(int(got['list'][1]), 7)
    self.assertEqual(
      jax.random.bits(got['key']), jax.random.bits(jax.random.key(3))
    )
    self.assertEqual(checkpoint.metadata(self.path), {'step': 5})
    self.assertEqual(os.listdir(self.path.parent), ['a.npz'])

  @parameterized.parameters(
    ({'w': jnp.zeros((2, 2))}, 'w has shape'),
    ({'w': jnp.zeros((2, 3), int)}, 'w is float32, expected int32'),
    ({'v': jnp.zeros((2, 3))}, 'it lacks v; holds beside: w'),
  )
  def test_refuses_another_tree(self, like, message):
    checkpoint.save(self.path, {'w': jnp.zeros((2, 3))})
    self.assert_refused(like, message)

  def test_refuses_damage(self):
    like = {'w': jnp.arange(300.0)}
    checkpoint.save(self.path, like)
    whole = self.path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(100):
      at = int(rng.integers(len(whole)))
      for damaged in (
        whole[:at],
        whole[:at] + bytes([whole[at] ^ 64]) + whole[at + 1 :],
      ):
        self.path.write_bytes(damaged)
        try:
          got = checkpoint.load(self.path, like)
        except checkpoint.CheckpointError as error:
          self.assertIn(str(self.path), str(error))
          refused += 1
        else:  # harmless: a byte of the zip's own bookkeeping
          np.testing.assert_array_equal(got['w'], like['w'])
    self.assertGreater(refused, 150)

  def test_refuses_objects(self):
    np.savez(self.path, w=np.array([{}], object))
    self.assert_refused({'w': jnp.zeros(1)}, 'no manifest')
    missing = self.path.parent / 'missing.npz'
    self.assert_refused({'w': jnp.zeros(1)}, 'No such file', missing)
    with self.assertRaisesRegex(TypeError, 'a.w is an array of object'):
      checkpoint.save(self.path, {'a': {'w': object()}})

  def test_a_failed_save_leaves_the_old_file(self):
    checkpoint.save(self.path, {'w': jnp.zeros(3)})
    with self.assertRaises(TypeError):
      checkpoint.save(self.path, {'w': jnp.zeros(3)}, metadata=object())
    checkpoint.load(self.path, {'w': jnp.zeros(3)})
    self.assertEqual(os.listdir(self.path.parent), ['a.npz'])

  def test_refuses_what_is_no_regular_file(self):
    os.mkfifo(self.path)
    for path, message in (
      (self.path, 'a FIFO, not a regular file'),
      ('/dev/zero', 'a character device, not a regular file'),
      (self.path.parent, 'directory'),
    ):
      self.assert_refused({'w': jnp.zeros(3)}, message, path)
      with self.assertRaisesRegex(checkpoint.CheckpointError, message):
        checkpoint.metadata(path)

  def test_refuses_many_members(self):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w') as z:
      for i in range(20_000):
        z.writestr(f'{i}.npy', b'')
    self.path.write_bytes(buffer.getvalue())
    del buffer
    tracemalloc.start()
    try:
      self.assert_refused({'w': jnp.zeros(3)}, 'too many members')
      with self.assertRaisesRegex(checkpoint.CheckpointError, 'too many'):
        checkpoint.metadata(self.path)
      self.assertLess(tracemalloc.get_traced_memory()[1], 8 << 20)
    finally:
      tracemalloc.stop()

  def test_as_many_arrays_as_may_be(self):
    most = {f'{i:05d}': np.float32(i) for i in range(10_000)}
    checkpoint.save(self.path, most, metadata={'step': 5})
    self.assertEqual(checkpoint.metadata(self.path), {'step': 5})
    with self.assertRaisesRegex(ValueError, '10001 arrays, at most 10000'):
      checkpoint.save(self.path, most | {'one more': np.float32(0)})


class NamesTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    directory = self.enterContext(tempfile.TemporaryDirectory())
    self.path = pathlib.Path(directory) / 'a.npz'

  def members(self, tree):
    checkpoint.save(self.path, tree)
    got = checkpoint.load(self.path, tree)
    self.assertEqual(jax.tree.structure(got), jax.tree.structure(tree))
    jax.tree.map(np.testing.assert_array_equal, got, tree)
    with zipfile.ZipFile(self.path) as z:
      return sorted(z.namelist())[1:]

  def test_plain_names_are_those_of_older_files(self):
    theta = {'lstm': [{'w': np.ones(2)}], 'linear': {'b': np.zeros(1)}}
    checkpoint.save(self.path, theta)
    with zipfile.ZipFile(self.path) as z:
      names = z.namelist()
    want = ['manifest.npy', 'linear.b.npy', 'lstm.0.w.npy']
    self.assertEqual(names, want)
    self.assertEqual(checkpoint.FORMAT, 2)
    checkpoint.save(self.path, np.ones(2))
    with zipfile.ZipFile(self.path) as z:
      self.assertEqual(z.namelist(), ['manifest.npy', 'value.npy'])

  def test_names_of_haiku_and_others(self):
    leaf = iter(range(100))
    tree = {
      'mlp/~/linear_0': {'w': np.int64(next(leaf)), 'b': np.int64(next(leaf))},
      '../../etc/passwd': np.int64(next(leaf)),
      'a\\b\0c\n%2E': np.int64(next(leaf)),
      'lone \ud800 surrogate, é': np.int64(next(leaf)),
      **{
        name: np.int64(next(leaf))
        for name in ('file', 'manifest', 'allow_pickle', 'self', 'value', '')
      },
    }
    for name in self.members(tree):
      self.assertEmpty(set(name) & set('/\\\0\n'))

  def test_names_do_not_collide(self):
    one = lambda i: np.int64(i)
    self.members({'a': {'b': one(1)}, 'a.b': one(2), 'a%2Eb': one(3)})
    self.members({'': {'': one(1)}, '.': one(2), '%': one(3), '%.%': one(4)})
    self.members({0: one(1), 1: [one(2), {7: one(3)}]})
    ordered = collections.OrderedDict([(1, one(1)), ('1', one(2))])
    with self.assertRaisesRegex(ValueError, r"\[1\] and \['1'\] of the tree"):
      checkpoint.save(self.path, ordered)
    with self.assertRaisesRegex(ValueError, 'a name of 5000 characters'):
      checkpoint.save(self.path, {'n' * 5000: one(1)})

  def test_order_does_not_matter(self):
    pairs = [('b', np.ones(2)), ('a', np.zeros(3))]
    checkpoint.save(self.path, collections.OrderedDict(pairs))
    got = checkpoint.load(self.path, dict(pairs))
    np.testing.assert_array_equal(got['b'], [1, 1])


class LikeTest(parameterized.TestCase):
  """What `load` returns follows `like`, but for the dtype under x64."""

  def setUp(self):
    super().setUp()
    directory = self.enterContext(tempfile.TemporaryDirectory())
    self.path = pathlib.Path(directory) / 'a.npz'

  def test_structs(self):
    tree_of_jax = lambda: jax.tree.map(jnp.asarray, tree())
    checkpoint.save(self.path, tree_of_jax())
    struct = jax.eval_shape(tree_of_jax)
    got = checkpoint.load(self.path, struct)
    for leaf in jax.tree.leaves(got):
      self.assertIsInstance(leaf, jax.Array)
    self.assertEqual(jax.eval_shape(lambda: got)['w'], struct['w'])
    np.testing.assert_array_equal(got['w'], tree()['w'])
    self.assertEqual(got['list'][0].dtype, jnp.bfloat16)
    self.assertEqual(
      jax.random.bits(got['key']), jax.random.bits(jax.random.key(3))
    )
    keys = jax.random.split(jax.random.key(5, impl='rbg'), 4)
    checkpoint.save(self.path, keys)
    got = checkpoint.load(self.path, jax.eval_shape(lambda: keys))
    self.assertEqual(jax.random.key_impl(got), 'rbg')
    np.testing.assert_array_equal(
      jax.random.key_data(got), jax.random.key_data(keys)
    )
    with self.assertRaisesRegex(
      checkpoint.CheckpointError, 'key<rbg>.*key<fry'
    ):
      checkpoint.load(self.path, jax.random.split(jax.random.key(5), 4))

  def test_sharding(self):
    mesh = jax.make_mesh((1,), ('data',), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec('data'))
    like = {
      'array': jax.device_put(jnp.arange(4.0), sharding),
      'struct': jax.ShapeDtypeStruct((4,), jnp.float32, sharding=sharding),
      'free': jnp.arange(4.0),
      'numpy': np.arange(4.0),
    }
    values = {name: np.arange(4, dtype=v.dtype) for name, v in like.items()}
    checkpoint.save(self.path, values)
    got = checkpoint.load(self.path, like)
    self.assertEqual(got['array'].sharding, sharding)
    self.assertEqual(got['struct'].sharding, sharding)
    self.assertFalse(got['free'].committed)  # may still go elsewhere
    abstract = NamedSharding(mesh.abstract_mesh, PartitionSpec('data'))
    struct = jax.ShapeDtypeStruct((4,), jnp.float32, sharding=abstract)
    elsewhere = checkpoint.load(self.path, values | {'free': struct})['free']
    self.assertFalse(elsewhere.committed)
    self.assertIsInstance(got['numpy'], np.ndarray)
    for value in got.values():
      np.testing.assert_array_equal(value, np.arange(4))

  def test_float32_stays_float32_under_x64(self):
    values = np.float32([1.1, 2.2])
    checkpoint.save(self.path, {'w': jnp.asarray(values)})
    with jax.enable_x64(True):
      for like in (jnp.zeros(2), jnp.zeros(2, jnp.float32)):
        got = checkpoint.load(self.path, {'w': like})['w']
        self.assertEqual(got.dtype, jnp.float32)
        np.testing.assert_array_equal(got, values)
      checkpoint.save(self.path, {'w': jnp.zeros(2) + 0.1})
    got = checkpoint.load(self.path, {'w': jnp.zeros(2)})['w']
    self.assertEqual(got.dtype, jnp.float32)
    np.testing.assert_array_equal(got, np.float32([0.1, 0.1]))

  def test_other_dtypes_are_refused_and_say_what_to_do(self):
    with jax.enable_x64(True):
      checkpoint.save(self.path, {'w': jnp.zeros(2)})
      message = 'w is float64, expected float32; give a tree of float64'
      with self.assertRaisesRegex(checkpoint.CheckpointError, message):
        checkpoint.load(self.path, {'w': jnp.zeros(2, jnp.float32)})
      checkpoint.save(self.path, {'w': jnp.arange(2)})
    message = 'w is int64, expected int32; switch jax_enable_x64 on'
    with self.assertRaisesRegex(checkpoint.CheckpointError, message):
      checkpoint.load(self.path, {'w': jnp.arange(2)})
    message = 'w is int64, expected int32; give a tree of int64, or save'
    with self.assertRaisesRegex(checkpoint.CheckpointError, message):
      checkpoint.load(self.path, {'w': np.arange(2, dtype=np.int32)})

  def test_what_no_file_keeps(self):
    for kind in 'float8_e5m2', 'float8_e4m3fn', 'int4':
      with self.assertRaisesRegex(TypeError, f'array of {kind}, which cannot'):
        checkpoint.save(self.path, {'w': jnp.ones(3, kind)})
    self.assertFalse(self.path.exists())

  def test_numbers_of_python_have_no_width(self):
    """Flax begins to count with 0, and a jitted step makes that int32."""
    checkpoint.save(self.path, {'step': jnp.int32(3), 'x': jnp.float32(2.5)})
    got = checkpoint.load(self.path, {'step': 0, 'x': 0.0})
    self.assertEqual((int(got['step']), float(got['x'])), (3, 2.5))
    with self.assertRaisesRegex(checkpoint.CheckpointError, 'step is int32'):
      checkpoint.load(self.path, {'step': 0.0, 'x': 0.0})

  def test_byte_order(self):
    checkpoint.save(self.path, {'w': np.arange(3, dtype='>f4')})
    got = checkpoint.load(self.path, {'w': np.zeros(3, np.float32)})
    np.testing.assert_array_equal(got['w'], [0, 1, 2])


if __name__ == '__main__':
  absltest.main()
