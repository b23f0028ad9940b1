"""Other units, the same function."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from l2o_jax.base import Optimizee
from l2o_jax.optimizees.classifier import classifier, mlp
from l2o_jax.optimizees.quadratic import quadratic
from l2o_jax.optimizees.rescaled import rescaled
from tests import quick

PARAMS = {'w': jnp.arange(12.0).reshape(4, 3) + 1, 'b': jnp.ones(3)}
TREE = Optimizee(
  lambda key: (PARAMS, ()), lambda x, task, key: jnp.sum(x['w']) + x['b'][0]
)


def scales(each, count=200):
  """s of many runs, [runs, *leaf]."""
  family = rescaled(TREE, 2.0, each)
  keys = jax.random.split(jax.random.key(0), count)
  return quick.jit(jax.vmap(family.init))(keys)[1][1]


class RescaledTest(parameterized.TestCase):
  @parameterized.parameters('coordinate', 'leaf', 'function', 'any')
  def test_is_the_same_function(self, each):
    """f'(y_0) = f(x_0), and the gradient is s times as large."""
    family = rescaled(TREE, 2.0, each)
    y, (task, s) = family.init(jax.random.key(3))
    back = jax.tree.map(jnp.multiply, y, s)
    chex.assert_trees_all_close(back, PARAMS, rtol=1e-5)
    value, g = jax.value_and_grad(family.loss)(y, (task, s), None)
    np.testing.assert_allclose(value, TREE.loss(PARAMS, (), None), rtol=1e-5)
    np.testing.assert_allclose(g['w'], s['w'], rtol=1e-6)

  def test_what_has_a_scale_of_its_own(self):
    same = lambda s: float(np.ptp(np.log(s).reshape(len(s), -1), 1).max())
    s = scales('coordinate')
    self.assertGreater(same(s['w']), 3.0)
    s = scales('leaf')
    self.assertEqual(same(s['w']), 0)
    self.assertGreater(np.abs(np.log(s['w'][:, 0, 0] / s['b'][:, 0])).max(), 2)
    s = scales('function')
    np.testing.assert_array_equal(s['w'][:, 0, 0], s['b'][:, 0])
    logs = np.log(s['b'][:, 0])
    np.testing.assert_allclose([logs.min(), logs.max()], [-2, 2], atol=0.1)
    np.testing.assert_allclose(logs.std(), 2 / 3**0.5, rtol=0.1)

  def test_any_is_all_three(self):
    s = scales('any')
    spread = np.ptp(np.log(s['w']).reshape(200, -1), 1) > 0
    apart = s['w'][:, 0, 0] != s['b'][:, 0]
    kinds = np.mean(spread), np.mean(apart & ~spread), np.mean(~apart)
    np.testing.assert_allclose(kinds, 1 / 3, atol=0.12)

  def test_zero_changes_nothing(self):
    f = quadratic(4)
    x, task = f.init(jax.random.split(jax.random.key(1))[0])
    y, (again, s) = rescaled(f, 0.0).init(jax.random.key(1))
    chex.assert_trees_all_equal((x, task), (y, again))
    np.testing.assert_array_equal(s, 1)

  def test_objective(self):
    images = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    f = classifier(images, np.arange(6) % 2, mlp((3, 2)), batch_size=2)
    family = rescaled(f, 1.0)
    y, (task, s) = family.init(jax.random.key(0))
    x = jax.tree.map(jnp.multiply, y, s)
    found = family.objective(y, (task, s))
    np.testing.assert_allclose(found, f.objective(x, ()), rtol=1e-6)
    self.assertIsNone(rescaled(TREE).objective)

  def test_bad_arguments(self):
    with self.assertRaisesRegex(ValueError, 'r must not be negative'):
      rescaled(TREE, -1.0)
    with self.assertRaisesRegex(ValueError, 'each must be one of'):
      rescaled(TREE, each='matrix')


if __name__ == '__main__':
  absltest.main()
