"""The LSTM cell: a step and an average by hand."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from l2o_jax.cells.lstm import lstm_cell
from l2o_jax.coordinatewise import coordinatewise
from l2o_jax.features import gradient
from tests import quick
from tests.contracts.subjects import theta_of


class LstmTest(parameterized.TestCase):
  def test_a_step_by_hand(self):
    """One unit, all weights by hand, against values computed with math."""
    theta = {
      'lstm': [
        {
          'w': jnp.array([[0.1, 0.2, 0.3, 0.4], [0.5, 0.6, 0.7, 0.8]]),
          'b': jnp.array([0.01, 0.02, 0.03, 0.04]),
        }
      ],
      'linear': {'w': jnp.array([[2.0]]), 'b': jnp.array([0.5])},
    }
    cell = lstm_cell((1,), scale=0.1)
    state = ((jnp.array([0.3]), jnp.array([-0.7])),)
    delta, state = quick.jit(cell.step)(theta, jnp.array([1.5]), state)
    np.testing.assert_allclose(state[0][1], [-0.3243683], rtol=1e-5)
    np.testing.assert_allclose(state[0][0], [-0.2215544], rtol=1e-5)
    np.testing.assert_allclose(delta, 0.005689112, rtol=1e-5)

  def test_averaged_is_the_mean_over_all_leaves(self):
    cell = lstm_cell((2,), scale=1.0, averaged=2)
    plain = lstm_cell((2,), scale=1.0)
    learned = coordinatewise(gradient(), cell)
    theta = theta_of(learned)
    params = {'a': jnp.array([1.0, -2.0]), 'b': jnp.array([[0.5]])}

    @quick.jit
    def run(theta):
      opt = learned.transform(theta)
      updates, state = opt.update(params, opt.init(params), params)
      x = jnp.array([[1.0, -2.0, 0.5]])
      _, apart = plain.step(theta, x, plain.initial_state(3))
      return updates, state, apart

    updates, state, apart = run(theta)
    mean = np.mean(apart[0][0], 1)
    want = mean @ theta['linear']['w'][:, 0] + theta['linear']['b'][0]
    np.testing.assert_allclose(updates['a'], [want, want], rtol=1e-5)
    np.testing.assert_allclose(updates['b'], [[want]], rtol=1e-5)
    h, c = state.cell[0][0]  # the average goes into the recurrence, not c
    np.testing.assert_allclose(h, np.tile(mean[:, None], 3), rtol=1e-5)
    np.testing.assert_allclose(c, apart[0][1], rtol=1e-5)

  def test_average_of_some_rows(self):
    """The first of two outputs is averaged, the second is its own."""
    one, plain = (lstm_cell((2,), 1.0, averaged) for averaged in (1, 0))
    theta = theta_of(coordinatewise(gradient(), plain))
    x = jnp.array([[1.0, -2.0, 0.5]])
    step = lambda cell: cell.step(theta, x, cell.initial_state(3))[1][0][0]
    got, want = quick.jit(lambda: (step(one), step(plain)))()
    np.testing.assert_allclose(got[0], np.full(3, want[0].mean()), rtol=1e-5)
    np.testing.assert_array_equal(got[1], want[1])

  def test_initial_weights(self):
    """Truncated normal of std 1/sqrt(fan in), cut at two (0.88 remains)."""
    theta = quick.jit(lambda key: lstm_cell((100, 60)).init(key, 2))(
      jax.random.key(0)
    )
    for layer, (inputs, hidden) in zip(theta['lstm'], ((2, 100), (100, 60))):
      bound = (inputs + hidden) ** -0.5
      self.assertEqual(layer['w'].shape, (inputs + hidden, 4 * hidden))
      self.assertLessEqual(float(jnp.abs(layer['w']).max()), 2 * bound)
      np.testing.assert_allclose(layer['w'].std(), 0.8796 * bound, rtol=0.02)
      np.testing.assert_allclose(layer['b'].std(), 0.8796 * bound, rtol=0.15)
    self.assertEqual(theta['linear']['w'].shape, (60, 1))
    np.testing.assert_array_equal(theta['linear']['b'], [0])

  @parameterized.parameters(
    (lambda: lstm_cell((20, 0)), 'hidden must be positive, got 0'),
    (lambda: lstm_cell(averaged=21), 'averaged must .* got 21'),
    (lambda: lstm_cell((), averaged=1), 'got 1'),
    (lambda: lstm_cell((2.5,)), 'hidden must be a whole number, got 2.5'),
    (lambda: lstm_cell((2, 2.5)), 'hidden must be a whole number, got 2.5'),
    (lambda: lstm_cell(projection=0), 'projection must be positive, got 0'),
  )
  def test_bad_arguments(self, make, message):
    with self.assertRaisesRegex(
      ValueError, message.replace('(', r'\(').replace(')', r'\)')
    ):
      make()


if __name__ == '__main__':
  absltest.main()
