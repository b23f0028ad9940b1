"""The feed-forward cell: of one coordinate and of all, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from l2o_jax.cells.mlp import mlp_cell
from l2o_jax.coordinatewise import coordinatewise
from l2o_jax.features import gradient, log_and_sign


class MlpTest(parameterized.TestCase):
  def test_by_hand(self):
    """log(1 + e) = 1.3132617, log(1 + 1/e) = 0.3132617."""
    theta = {
      'hidden': [
        {'w': jnp.array([[1.0, -1.0], [2.0, 0.0]]), 'b': jnp.array([0.0, 0.5])}
      ],
      'linear': {'w': jnp.array([[3.0], [1.0]]), 'b': jnp.array([0.25])},
    }
    x = jnp.array([-1.5, 1.25])  # before softplus: 1, 2; log(1 + e^2) 2.1269280
    delta, state = mlp_cell((2,), scale=0.1).step(theta, x, ())
    np.testing.assert_allclose(delta, 0.6316713, rtol=1e-6)
    self.assertEqual(state, ())
    theta['linear'] = {'w': jnp.eye(2), 'b': jnp.array([0.0, 1.0])}
    # One feature of two coordinates, both moved by one net.
    cell = mlp_cell((2,), coordinates=2)
    delta, _ = cell.step(theta, x[None], ())
    np.testing.assert_allclose(delta, [1.3132617, 3.1269280], rtol=1e-6)

  def test_one_net_sees_all_and_moves_all(self):
    """A linear net on the gradients of two coordinates, by hand."""
    learned = coordinatewise(gradient(), mlp_cell((), coordinates=2))
    self.assertTrue(learned.communicates)
    theta = {
      'hidden': [],
      'linear': {
        'w': jnp.array([[1.0, 100.0], [10.0, 1000.0]]),
        'b': jnp.zeros(2),
      },
    }
    opt = learned.transform(theta)
    params = {'a': jnp.array([1.0]), 'b': jnp.array([[2.0]])}
    g = {'a': jnp.array([3.0]), 'b': jnp.array([[4.0]])}
    updates, _ = opt.update(g, opt.init(params), params)
    np.testing.assert_allclose(updates['a'], [43.0])
    np.testing.assert_allclose(updates['b'], [[4300.0]])
    three = {'a': jnp.ones(3)}
    with self.assertRaisesRegex(ValueError, r'for 2 coordinates, got \(3,\)'):
      opt.update(three, opt.init(three), three)

  def test_inputs_are_feature_major(self):
    """[F, n] -> [F n]: first the first feature of all coordinates."""
    features = log_and_sign()
    cell = mlp_cell((), coordinates=3)
    theta = jax.eval_shape(
      lambda key: cell.init(key, features.size), jax.random.key(0)
    )
    self.assertEqual(theta['linear']['w'].shape, (6, 3))
    x = jnp.arange(6.0).reshape(2, 3)
    pick = {'w': jnp.eye(6)[:, [0, 1, 3]], 'b': jnp.zeros(3)}
    delta, _ = cell.step({'hidden': [], 'linear': pick}, x, ())
    np.testing.assert_array_equal(delta, [x[0, 0], x[0, 1], x[1, 0]])

  @parameterized.parameters(
    (lambda: mlp_cell((5, 0)), 'hidden must be positive, got 0'),
    (lambda: mlp_cell((2, 2.5)), 'hidden must be a whole number, got 2.5'),
    (
      lambda: mlp_cell((5,), coordinates=0),
      'coordinates must be positive, got 0',
    ),
    (
      lambda: mlp_cell((5,), coordinates=-1),
      'coordinates must be positive, got -1',
    ),
  )
  def test_bad_arguments(self, make, message):
    with self.assertRaisesRegex(ValueError, message):
      make()


if __name__ == '__main__':
  absltest.main()
