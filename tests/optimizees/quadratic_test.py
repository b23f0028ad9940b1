"""Random quadratic functions, by hand and by their distributions."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from l2o_jax.optimizees.quadratic import quadratic
from tests import quick


class QuadraticTest(absltest.TestCase):
  def test_by_hand(self):
    task = {
      'w': jnp.array([[1.0, 2.0], [3.0, 4.0]]),
      'y': jnp.array([1.0, -1.0]),
    }
    loss = lambda family, x, task: float(
      quick.jit(family.loss)(x, task, jax.random.key(0))
    )
    x = jnp.array([0.5, -1.0])  # residual (-2.5, -1.5)
    self.assertAlmostEqual(loss(quadratic(2), x, task), 8.5, places=5)
    double = jax.tree.map(lambda a: jnp.stack([a, a]), task)
    xs = jnp.stack([x, 0 * x])  # ||y||^2 = 2
    self.assertAlmostEqual(
      loss(quadratic(2, batch=2), xs, double), 5.25, places=5
    )
    self.assertAlmostEqual(
      loss(quadratic(2, batch=2, reduction='sum'), xs, double), 10.5, places=5
    )

  def test_distributions(self):
    draw = lambda entries: quick.jit(jax.vmap(quadratic(entries=entries).init))(
      jax.random.split(jax.random.key(0), 2000)
    )
    x, task = draw('uniform')
    np.testing.assert_allclose(x.std(), 0.01, rtol=0.03)
    np.testing.assert_allclose(
      [task['w'].min(), task['w'].max(), task['w'].mean()],
      [0, 1, 0.5],
      atol=0.01,
    )
    _, task = draw('normal')
    np.testing.assert_allclose(
      [task['w'].mean(), task['w'].std()], [0, 1], atol=0.01
    )

  def test_bad_arguments(self):
    for make, message in (
      (lambda: quadratic(entries='cauchy'), "got 'cauchy'"),
      (lambda: quadratic(dimension=0), 'got 0'),
    ):
      with self.assertRaisesRegex(ValueError, message):
        make()


if __name__ == '__main__':
  absltest.main()
