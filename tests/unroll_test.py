"""The inner loop: literal runs, gradients, and what `record` sees."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from l2o_jax.evaluation import learning_curves, tune_learning_rate
from l2o_jax.optimizees.quadratic import quadratic
from l2o_jax.unroll import unroll


def square(x, key):
  del key
  return jnp.sum(x**2)


def keys(number):
  return jax.random.split(jax.random.key(0), number)


class UnrollTest(parameterized.TestCase):
  def test_gradient_descent_by_hand(self):
    """f = x^2, rate 1/4: x halves at every step."""
    (x, _), trajectory = unroll(
      square,
      optax.sgd(0.25),
      jnp.array(1.0),
      optax.sgd(0.25).init(0.0),
      keys(4),
    )
    np.testing.assert_allclose(trajectory.losses, [1, 0.25, 0.0625, 0.015625])
    np.testing.assert_allclose(x, 0.125)

  def test_record(self):
    _, trajectory = unroll(
      square,
      optax.sgd(0.25),
      jnp.array(1.0),
      optax.sgd(0.25).init(0.0),
      keys(4),
      record=lambda step: step._replace(opt_state=()),
    )
    record = trajectory.record
    np.testing.assert_allclose(record.params, [1, 0.5, 0.25])
    np.testing.assert_allclose(record.loss, [1, 0.25, 0.0625])
    np.testing.assert_allclose(record.gradients, [2, 1, 0.5])
    np.testing.assert_allclose(record.updates, [-0.5, -0.25, -0.125])

  def test_the_optimizee_gradient_is_constant_unless_asked(self):
    """d f(x_2) / d rate on f = x^2, x_1 = (1-2r), by hand.

    x_2 = x_1 - 2 r x_1.  Held constant, d x_2 / d r = -2 x_0 - 2 x_1;
    kept, x_2 = (1 - 2r)^2 and d x_2 / d r = -4 (1 - 2r).
    """

    def last(rate, second):
      _, trajectory = unroll(
        square,
        optax.sgd(rate),
        jnp.array(1.0),
        optax.sgd(rate).init(0.0),
        keys(3),
        second_derivatives=second,
      )
      return trajectory.losses[-1]

    cut = jax.grad(last)(0.1, False)
    kept = jax.grad(last)(0.1, True)
    np.testing.assert_allclose(cut, 2 * 0.64 * (-2 - 1.6), rtol=1e-6)
    np.testing.assert_allclose(kept, 2 * 0.64 * (-3.2), rtol=1e-6)

  @parameterized.parameters(False, True, 'segments', 'blocks')
  def test_losses_are_not_cut(self, remat):
    """Σ a x_t^2 with x_{t+1} = x_t - r (2 a x_t), the bracket constant.

    By a, which the loss closes over, Σ x_t^2; by x_0, Σ 2 a x_t; by hand for
    a = 1.5, x_0 = 1, r = 0.1: x = 1, 0.7, 0.49.
    """

    def total(a, x):
      opt = optax.sgd(0.1)
      _, trajectory = unroll(
        lambda x, key: a * x['x'] ** 2,
        opt,
        {'x': x},
        opt.init({'x': x}),
        keys(3),
        remat=remat,
      )
      return jnp.sum(trajectory.losses)

    by_a, by_x = jax.grad(total, (0, 1))(1.5, 1.0)
    np.testing.assert_allclose(by_a, 1 + 0.49 + 0.2401, rtol=1e-6)
    np.testing.assert_allclose(by_x, 3 * (1 + 0.7 + 0.49), rtol=1e-6)

  def test_the_backward_pass_does_not_evaluate_the_optimizee(self):
    """sin and its derivative cos: once in a step, once in the last loss."""

    def total(rate, second):
      opt = optax.sgd(rate)
      _, trajectory = unroll(
        lambda x, key: jnp.sin(x),
        opt,
        jnp.array(1.0),
        opt.init(1.0),
        keys(4),
        remat=True,
        second_derivatives=second,
      )
      return jnp.sum(trajectory.losses)

    count = lambda second: str(
      jax.make_jaxpr(lambda rate: jax.grad(total)(rate, second))(0.1)
    ).count('= cos ')
    self.assertEqual(count(False), 2)
    self.assertGreater(count(True), 2)

  def test_hands_value_and_params_to_the_optimizer(self):
    def update(updates, state, params, *, value, **extra):
      return jax.tree.map(lambda x: -params * value, updates), state

    opt = optax.GradientTransformationExtraArgs(lambda params: (), update)
    (x, _), _ = unroll(square, opt, jnp.array(0.5), (), keys(2))
    np.testing.assert_allclose(x, 0.5 - 0.5 * 0.25)

  def test_learning_curves_of_the_same_keys_are_of_the_same_tasks(self):
    run = lambda opt, **options: jax.jit(
      lambda keys: learning_curves(
        quadratic(dimension=3), opt, keys, 4, **options
      )
    )(keys(5))
    one, two = run(optax.sgd(0.01)), run(optax.adam(0.1))
    self.assertEqual(one.shape, (5, 5))
    np.testing.assert_array_equal(one[:, 0], two[:, 0])
    self.assertLen(set(np.asarray(one[:, 0]).tolist()), 5)
    for batch_size in (1, 2):
      np.testing.assert_allclose(
        run(optax.sgd(0.01), batch_size=batch_size), one, rtol=1e-5
      )


def parabola():
  from jax.tree_util import Partial

  from l2o_jax.base import Optimizee

  return Optimizee(
    Partial(lambda key: (jnp.ones(()), ())), Partial(lambda x, task, key: x**2)
  )


class TuneLearningRateTest(absltest.TestCase):
  def test_finds_the_best_rate_and_widens_the_grid(self):
    """One step on x^2 is exact at rate 1/2, outside of both grids."""
    for grid in ([2.0**-5, 2.0**-4, 2.0**-3], [2.0, 4.0, 8.0]):
      best, table = tune_learning_rate(parabola(), optax.sgd, grid, keys(2), 1)
      self.assertEqual(best, 0.5)
      self.assertTrue((np.diff(table[:, 0]) > 0).all())
      self.assertTrue(table[0, 0] < best < table[-1, 0])
      np.testing.assert_allclose(
        table[:, 1], (1 - 2 * table[:, 0]) ** 2, rtol=1e-4, atol=1e-9
      )

  def test_divergence_is_never_best(self):
    best, table = tune_learning_rate(
      parabola(), optax.sgd, [1e-3, 1e2, 1e7], keys(2), 200
    )
    self.assertEqual(best, 1e-3)
    self.assertTrue(np.isinf(table[-1, 1]))

  def test_bad_grids(self):
    for grid in ([0.1, 0.2], [0.1, 0.2, 0.9], [0.3, 0.2, 0.1], [0.0, 1.0, 2.0]):
      with self.assertRaisesRegex(ValueError, 'constant ratio'):
        tune_learning_rate(parabola(), optax.sgd, grid, keys(2), 1)


if __name__ == '__main__':
  absltest.main()
