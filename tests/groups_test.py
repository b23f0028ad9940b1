"""Coordinate groups as vectors."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from l2o_jax.groups import merge, sample, split
from tests.gps.problems import BY_NAME


class GroupsTest(absltest.TestCase):
  def test_split_merge_and_sample(self):
    tree = {'b': jnp.arange(3.0), 'w': jnp.arange(8.0).reshape(2, 4)}
    w, b = split(BY_NAME, tree)
    np.testing.assert_array_equal(w, np.arange(8))
    chex.assert_trees_all_equal(merge(BY_NAME, [w, b], tree), tree)
    iw, ib = sample(BY_NAME, tree, jax.random.key(0), 5)
    self.assertLen(set(np.asarray(iw).tolist()), 5)
    self.assertEqual(set(np.asarray(ib).tolist()), {0, 1, 2})

  def test_unknown_label(self):
    with self.assertRaisesRegex(ValueError, "'c'"):
      split(BY_NAME, {'w': jnp.ones(1), 'b': jnp.ones(1), 'c': jnp.ones(1)})


if __name__ == '__main__':
  absltest.main()
