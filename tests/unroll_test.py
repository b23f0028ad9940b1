"""The inner loop: literal runs, gradients, and what `record` sees."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from l2o_jax import blocks
from l2o_jax.learned_optimizers import lstm_raw
from l2o_jax.unroll import unroll
from tests import quick
from tests.contracts.subjects import theta_of


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

  @parameterized.parameters(
    (unroll, False), (unroll, True), (unroll, 'segments'), (blocks.unroll, True)
  )
  def test_losses_are_not_cut(self, run, remat):
    """Σ a x_t^2 with x_{t+1} = x_t - r (2 a x_t), the bracket constant.

    By a, which the loss closes over, Σ x_t^2; by x_0, Σ 2 a x_t; by hand for
    a = 1.5, x_0 = 1, r = 0.1: x = 1, 0.7, 0.49.
    """

    def total(a, x):
      opt = optax.sgd(0.1)
      _, trajectory = run(
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

  def test_functions_side_by_side(self):
    """A loss [B]: every function has its own value, gradient and run."""
    scales = jnp.array([1.0, 0.5])
    x = {'x': jnp.array([[1.0, 2.0], [3.0, 4.0]])}

    def total(rate, x, loss, record=None):
      opt = optax.sgd(rate)
      end, run = unroll(loss, opt, x, opt.init(x), keys(3), record=record)
      return jnp.sum(run.losses), (end[0], run)

    both = lambda x, key: scales * jnp.sum(x['x'] ** 2, 1)
    differentiate = jax.value_and_grad(total, (0, 1), has_aux=True)
    (value, (end, run)), slopes = differentiate(
      0.1, x, both, record=lambda step: step.loss
    )
    self.assertEqual(run.losses.shape, (3, 2))
    self.assertEqual(run.record.shape, (2, 2))
    want = [
      differentiate(
        0.1,
        {'x': x['x'][b]},
        lambda x, key, b=b: scales[b] * jnp.sum(x['x'] ** 2),
      )
      for b in range(2)
    ]
    for b, ((_, (one_end, one)), _) in enumerate(want):
      np.testing.assert_allclose(run.losses[:, b], one.losses, rtol=1e-6)
      np.testing.assert_allclose(end['x'][b], one_end['x'], rtol=1e-6)
    np.testing.assert_allclose(value, sum(w[0][0] for w in want), rtol=1e-6)
    np.testing.assert_allclose(slopes[0], sum(w[1][0] for w in want), rtol=1e-5)
    np.testing.assert_allclose(
      slopes[1]['x'], [w[1][1]['x'] for w in want], rtol=1e-5
    )

  @parameterized.parameters(
    (lambda x, key: x**2, r'scalar, got shape \(4, 1\)', (4, 1)),
    (
      lambda x, key: jnp.zeros(5) + jnp.sum(x),
      r'scalar, got shape \(5,\)',
      (4,),
    ),
    (lambda x, key: jnp.sum(x)[None], r'scalar, got shape \(1,\)', (4,)),
  )
  def test_a_loss_that_is_not_a_scalar(self, loss, message, shape):
    """The mean over the batch forgotten."""
    with self.assertRaisesRegex(ValueError, f'^unroll: the loss .*{message}'):
      unroll(loss, optax.sgd(1.0), jnp.ones(shape), optax.EmptyState(), keys(2))

  def test_a_loss_with_more_than_one_value(self):
    keys = jax.random.split(jax.random.key(0), 3)
    run = lambda loss: unroll(loss, optax.sgd(1.0), jnp.ones(2), (), keys)
    with self.assertRaisesRegex(ValueError, '^unroll: .* got a tuple'):
      run(lambda x, key: (jnp.sum(x), {}))
    state = optax.sgd(1.0).init(jnp.ones(2))
    number = lambda x, key: 3.0
    _, seen = unroll(number, optax.sgd(1.0), jnp.ones(2), state, keys)
    np.testing.assert_array_equal(seen.losses, [3, 3, 3])

  def test_bad_arguments(self):
    start = (square, optax.sgd(0.1), jnp.ones(()), (optax.EmptyState(),) * 2)
    for remat in ('blocks', 2, None):
      with self.assertRaisesRegex(ValueError, f'remat must be .*{remat}'):
        unroll(*start, keys(2), remat=remat)
    with self.assertRaisesRegex(ValueError, 'at least one'):
      unroll(*start, keys(2)[:0])
    for key in (jax.random.key(0), jax.random.PRNGKey(0)):
      with self.assertRaisesRegex(ValueError, '^unroll: keys must be several'):
        unroll(*start, key)
    with self.assertRaisesRegex(TypeError, '^unroll: opt .* its transform'):
      unroll(square, lstm_raw(), jnp.ones(()), (), keys(2))

  def test_no_steps(self):
    opt, x = optax.sgd(1.0), jnp.array(3.0)
    (x, _), run = unroll(square, opt, x, opt.init(x), keys(1))
    np.testing.assert_array_equal(run.losses, [9])
    self.assertEqual(x, 3)


class LineSearchTest(parameterized.TestCase):
  @parameterized.parameters(
    (lambda: optax.lbfgs(),),
    (
      lambda: optax.chain(
        optax.sgd(1.0), optax.scale_by_backtracking_linesearch(15)
      ),
    ),
  )
  def test_as_in_the_loop_of_its_documentation(self, make):
    """Minimizes a quadratic, with the losses of optax's own loop."""
    matrix = jnp.array([[3.0, 1.0], [1.0, 1.0]])
    f = lambda x: 0.5 * x @ matrix @ x - x[0]
    x, opt = jnp.array([2.0, -3.0]), make()
    run = quick.jit(
      lambda x: unroll(lambda x, key: f(x), opt, x, opt.init(x), keys(41))
    )
    (end, _), trajectory = run(x)

    def step(carry, _):
      x, state = carry
      value, g = jax.value_and_grad(f)(x)
      updates, state = opt.update(g, state, x, value=value, grad=g, value_fn=f)
      return (optax.apply_updates(x, updates), state), value

    optaxs = quick.jit(lambda x: jax.lax.scan(step, (x, opt.init(x)), None, 40))
    (want, _), values = optaxs(x)
    np.testing.assert_allclose(end, want, atol=1e-5)
    np.testing.assert_allclose(trajectory.losses[:-1], values, atol=1e-5)
    # The minimum: A x = (1, 0), f = -1/2 x_1 = -1/4.
    np.testing.assert_allclose(end, [0.5, -0.5], atol=1e-2)
    np.testing.assert_allclose(trajectory.losses[-1], -0.25, atol=1e-4)

  def test_value_fn_is_of_the_steps_own_minibatch(self):
    """The key picks the minimum; a Newton step from value_fn lands on it."""
    loss = lambda x, key: (x - jax.random.uniform(key)) ** 2

    def update(updates, state, params, *, value, grad, value_fn, **extra):
      slope = jax.grad(value_fn)(params)
      return -grad / 2, (value_fn(params) - value, slope - grad)

    opt = optax.GradientTransformationExtraArgs(
      lambda params: (0.0, 0.0), update
    )
    (end, state), run = unroll(loss, opt, jnp.array(3.0), (0.0, 0.0), keys(3))
    np.testing.assert_allclose(state, (0, 0), atol=1e-6)
    np.testing.assert_allclose(end, jax.random.uniform(keys(3)[1]), rtol=1e-5)


class SeedsTest(absltest.TestCase):
  def test_vmap_over_seeds_is_a_run_for_each(self):
    """A user's own loop with `update`, three seeds at once (G.7)."""
    learned = lstm_raw(0.1)
    thetas = [theta_of(learned, seed) for seed in range(3)]
    theta = jax.tree.map(lambda *x: jnp.stack(x), *thetas)

    def train(theta, key):
      opt = learned.transform(theta)
      x = jax.random.normal(key, (3,))

      def step(carry, _):
        x, state = carry
        value, g = jax.value_and_grad(lambda x: jnp.sum(x**2))(x)
        updates, state = opt.update(g, state, x, value=value)
        return (optax.apply_updates(x, updates), state), value

      return jax.lax.scan(step, (x, opt.init(x)), None, 4)

    seeds = jax.random.split(jax.random.key(0), 3)
    ends, values = quick.jit(jax.vmap(train))(theta, seeds)
    one = quick.jit(train)
    for i in range(3):
      end, value = one(thetas[i], seeds[i])
      got = jax.tree.map(lambda x, i=i: x[i], (ends, values))
      chex.assert_trees_all_close(got, (end, value), rtol=1e-5, atol=1e-6)


if __name__ == '__main__':
  absltest.main()
