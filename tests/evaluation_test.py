"""Learning curves: of the same tasks, of objectives, at other points."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from l2o_jax.base import Optimizee
from l2o_jax.evaluation import learning_curves
from l2o_jax.learned_optimizers import lstm_raw
from l2o_jax.unroll import unroll
from tests import quick


def keys(number):
  return jax.random.split(jax.random.key(0), number)


def noisy():
  """f(x) = x^2 + noise of the key's minibatch; the objective is x^2."""
  return Optimizee(
    lambda key: (jnp.ones(()), ()),
    lambda x, task, key: x**2 + 100 + jax.random.uniform(key),
    lambda x, task: x**2,
  )


def bowls():
  return Optimizee(
    lambda key: (jax.random.uniform(key, (3,)), ()),
    lambda x, task, key: jnp.sum(x**2),
  )


class LearningCurvesTest(parameterized.TestCase):
  def test_the_same_keys_are_the_same_tasks(self):
    run = lambda opt, **options: quick.jit(
      lambda keys: learning_curves(bowls(), opt, keys, 4, **options)
    )(keys(5))
    one, two = run(optax.sgd(0.01)), run(optax.adam(0.1))
    self.assertEqual(one.shape, (5, 5))
    np.testing.assert_array_equal(one[:, 0], two[:, 0])
    self.assertLen(set(np.asarray(one[:, 0]).tolist()), 5)
    for batch_size in (1, 2):
      np.testing.assert_allclose(
        run(optax.sgd(0.01), batch_size=batch_size), one, rtol=1e-5
      )
    # Without minibatches the loss is the objective.
    for options in ({'every': 2}, {'every': 2, 'objective': True}):
      np.testing.assert_allclose(
        run(optax.sgd(0.01), **options), one[:, ::2], rtol=1e-5
      )

  def test_objective_every_k_steps(self):
    """x halves at every step; the loss seen is noisy and 100 higher."""
    run = lambda **options: quick.jit(
      lambda keys: learning_curves(noisy(), optax.sgd(0.25), keys, 4, **options)
    )(keys(3))
    want = 4.0 ** -np.arange(5)
    np.testing.assert_allclose(run(objective=True), [want] * 3, rtol=1e-5)
    np.testing.assert_allclose(
      run(objective=True, every=2), [want[::2]] * 3, rtol=1e-5
    )
    seen = run()
    self.assertTrue((seen > 100).all())
    self.assertLen(set(np.ravel(seen).tolist()), 15)

  def test_schedule_free_is_judged_at_its_average(self):
    """Its iterate is where gradients are taken, not its answer (G.6)."""
    opt = optax.contrib.schedule_free_sgd(0.3, b1=0.9)
    point = optax.contrib.schedule_free_eval_params
    f = lambda x: jnp.sum((x - 1) ** 2 * jnp.array([1.0, 3.0]))
    family = Optimizee(
      lambda key: (jax.random.normal(key, (2,)), ()), lambda x, task, key: f(x)
    )

    @quick.jit
    def run(keys):
      curves = lambda **options: learning_curves(
        family, opt, keys, 6, **options
      )
      return curves(), curves(point=point), curves(point=point, every=3)

    plain, judged, some = run(keys(2))

    def by_hand(key):
      x, _ = family.init(jax.random.split(key)[0])
      state, out = opt.init(x), []
      for _ in range(7):
        out.append(f(point(state, x)))
        updates, state = opt.update(jax.grad(f)(x), state, x)
        x = optax.apply_updates(x, updates)
      return jnp.stack(out)

    want = quick.jit(jax.vmap(by_hand))(keys(2))
    np.testing.assert_allclose(judged, want, rtol=1e-4)
    np.testing.assert_allclose(some, want[:, ::3], rtol=1e-4)
    self.assertGreater(np.abs(plain - judged)[:, 2:].min(), 1e-3)

  def test_bad_sizes(self):
    for steps, every, message in (
      (0, 1, 'num_steps must be positive, got 0'),
      (4, 0, 'every must be positive, got 0'),
      (4, 3, 'every=3 must divide num_steps=4'),
    ):
      with self.assertRaisesRegex(ValueError, f'^learning_curves: {message}'):
        learning_curves(noisy(), optax.sgd(1.0), keys(1), steps, every=every)
    one, raw = jax.random.key(0), jax.random.PRNGKey(0)
    for key in (one, raw, 7):
      with self.assertRaisesRegex(ValueError, 'keys must be several'):
        learning_curves(noisy(), optax.sgd(0.1), key, 3)
    with self.assertRaisesRegex(TypeError, 'give its transform'):
      learning_curves(noisy(), lstm_raw(), one[None], 3)
    found = [
      learning_curves(noisy(), optax.sgd(0.1), key[None], 3)
      for key in (one, raw)
    ]
    np.testing.assert_array_equal(*found)
    with self.assertRaisesRegex(ValueError, 'batch_size must be positive'):
      learning_curves(noisy(), optax.sgd(1.0), keys(1), 4, 0)

  def test_a_loss_that_was_not_summed(self):
    f = Optimizee(lambda key: (jnp.ones(4), ()), lambda x, task, key: x**2)
    message = r'^learning_curves: the loss must be a scalar, got shape \(4,\)'
    for how in ({}, {'objective': True}):
      with self.assertRaisesRegex(ValueError, message):
        learning_curves(f, optax.sgd(1.0), keys(2), 4, **how)
    pair = f._replace(loss=lambda x, task, key: (jnp.sum(x**2), {}))
    with self.assertRaisesRegex(ValueError, 'must be a scalar, got a tuple'):
      learning_curves(pair, optax.sgd(1.0), keys(2), 4)
    number = f._replace(loss=lambda x, task, key: 3.0)
    found = learning_curves(number, optax.sgd(1.0), keys(2), 4)
    np.testing.assert_array_equal(found, np.full((2, 5), 3.0))


class BatchStatisticsTest(absltest.TestCase):
  def test_objective_of_a_net_with_batch_normalisation(self):
    """Where running averages would live elsewhere: the objective takes the
    statistics of all data, so nothing has to be carried along the run."""
    x = np.random.default_rng(0).normal(3.0, 2.0, (64, 2)).astype(np.float32)
    y = np.float32(x[:, 0] > x[:, 1])
    data = jnp.asarray(x), jnp.asarray(y)

    def logits(params, inputs):
      mean, var = inputs.mean(0), inputs.var(0)
      normal = (inputs - mean) / jnp.sqrt(var + 1e-5)
      return normal * params['scale'] @ params['w']

    def cross_entropy(params, inputs, labels):
      return jnp.mean(
        optax.sigmoid_binary_cross_entropy(logits(params, inputs), labels)
      )

    def loss(params, task, key):  # statistics of the minibatch
      rows = jax.random.randint(key, (16,), 0, len(x))
      return cross_entropy(params, data[0][rows], data[1][rows])

    family = Optimizee(
      lambda key: (
        {'scale': jnp.ones(2), 'w': jax.random.normal(key, (2,))},
        (),
      ),
      loss,
      lambda params, task: cross_entropy(params, *data),
    )

    @quick.jit
    def run(keys):
      opt = optax.adam(0.3)
      curves = learning_curves(family, opt, keys, 20, objective=True, every=20)

      def last(key):  # the statistics of all data are those of the evaluation
        key_init, key_loss = jax.random.split(key)
        params, _ = family.init(key_init)
        loss_of = lambda x, key: loss(x, (), key)
        steps = jax.random.split(key_loss, (1, 21))[0]
        (params, _), _ = unroll(loss_of, opt, params, opt.init(params), steps)
        return params

      return curves, jax.vmap(last)(keys)

    curves, params = run(keys(2))
    for b in range(2):
      one = jax.tree.map(lambda p, b=b: p[b], params)
      normal = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)
      z = normal * one['scale'] @ one['w']
      want = np.mean(np.log1p(np.exp(-z * (2 * y - 1))))
      np.testing.assert_allclose(curves[b, -1], want, rtol=1e-4)
    self.assertTrue((curves[:, 1] < 0.35).all(), curves)


if __name__ == '__main__':
  absltest.main()
