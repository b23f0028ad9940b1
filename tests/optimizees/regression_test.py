"""Small regression and classification problems: losses by hand, data drawn."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from l2o_jax.optimizees.regression import (
  logistic_regression,
  robust_regression,
  small_net,
)
from tests import quick


class RegressionTest(absltest.TestCase):
  def test_by_hand(self):
    """Two points: log(1 + e^-1) = 0.3132617, log(1 + e^3) = 3.0485873."""
    key = jax.random.key(0)
    params = {'w': jnp.array([2.0, -1.0]), 'b': jnp.array([0.5])}
    x = jnp.array([[0.25, 0.0], [1.0, -0.5]])  # w x + b: 1 and 3
    got = logistic_regression(2, decay=0.4).loss(
      params, {'x': x, 'y': jnp.array([1.0, -1.0])}, key
    )
    np.testing.assert_allclose(got, 1.6809245 + 0.2 * 5, rtol=1e-6)
    got = robust_regression(2, scale=2.0).loss(
      params, {'x': x, 'y': jnp.array([0.0, 1.0])}, key
    )
    np.testing.assert_allclose(got, (1 / 5 + 4 / 8) / 2, rtol=1e-6)
    params = {
      'w1': jnp.array([[1.0, 0.0], [0.0, 1.0]]),
      'b1': jnp.zeros(2),
      'w2': jnp.array([[1.0, 0.0], [0.0, 2.0]]),
      'b2': jnp.zeros(2),
    }
    x = jnp.array([[1.0, -5.0], [-5.0, 1.5]])  # logits: (1, 0) and (0, 3)
    got = small_net(decay=0.1).loss(
      params, {'x': x, 'y': jnp.array([0, 0])}, key
    )
    np.testing.assert_allclose(got, 1.6809245 + 0.05 * 7, rtol=1e-6)

  def test_data(self):
    """Classes, clusters and labels as in the paper."""
    _, task = jax.eval_shape(logistic_regression().init, jax.random.key(0))
    self.assertEqual(task['x'].shape, (100, 3))
    labels = quick.jit(lambda key: logistic_regression().init(key)[1]['y'])
    np.testing.assert_array_equal(
      labels(jax.random.key(0)), [1] * 50 + [-1] * 50
    )
    draw = lambda family: quick.jit(jax.vmap(family.init))(
      jax.random.split(jax.random.key(0), 500)
    )
    x, task = draw(robust_regression())
    np.testing.assert_allclose([x['w'].std(), x['b'].std()], 1, rtol=0.1)
    points = task['x'].reshape(500, 4, 25, 3)
    np.testing.assert_allclose(points.std(2, ddof=1).mean(), 1, rtol=0.03)
    np.testing.assert_allclose(points.mean(2).std(), 1.02, rtol=0.03)
    _, task = draw(small_net())
    labels = np.asarray(task['y']).reshape(500, 4, 25)
    np.testing.assert_array_equal(labels, labels[:, :, :1] + 0 * labels)
    ones = labels[:, :, 0].sum(1)
    self.assertEqual((ones.min(), ones.max()), (1, 3))
    # 14 equally likely codes: 4, 6 and 4 of them with 1, 2, 3 ones.
    np.testing.assert_allclose((ones == 2).mean(), 6 / 14, atol=0.06)

  def test_bad_arguments(self):
    for make, message in (
      (lambda: robust_regression(scale=0.0), 'got 0.0'),
      (lambda: small_net(classes=1), 'at least 2 and clusters .* got 1 and 4'),
      (lambda: small_net(points=2.5), 'points must be a whole number, got 2.5'),
    ):
      with self.assertRaisesRegex(ValueError, message):
        make()


if __name__ == '__main__':
  absltest.main()
