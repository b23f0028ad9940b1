"""Round trips and refusals of files."""

import os
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

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
    ({'v': jnp.zeros((2, 3))}, 'other arrays than expected: v, w'),
  )
  def test_refuses_another_tree(self, like, message):
    checkpoint.save(self.path, {'w': jnp.zeros((2, 3))})
    with self.assertRaisesRegex(checkpoint.CheckpointError, message):
      checkpoint.load(self.path, like)

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
    with self.assertRaisesRegex(checkpoint.CheckpointError, 'no manifest'):
      checkpoint.load(self.path, {'w': jnp.zeros(1)})
    with self.assertRaises(checkpoint.CheckpointError):
      checkpoint.load(self.path.parent / 'missing.npz', {'w': jnp.zeros(1)})
    with self.assertRaises(TypeError):
      checkpoint.save(self.path, {'w': object()})

  def test_a_failed_save_leaves_the_old_file(self):
    checkpoint.save(self.path, {'w': jnp.zeros(3)})
    with self.assertRaises(TypeError):
      checkpoint.save(self.path, {'w': jnp.zeros(3)}, metadata=object())
    checkpoint.load(self.path, {'w': jnp.zeros(3)})
    self.assertEqual(os.listdir(self.path.parent), ['a.npz'])


if __name__ == '__main__':
  absltest.main()
