"""A table of optimizees against a list of contracts; each by hand."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from l2o_jax.optimizees.classifier import ACTIVATIONS, classifier, mlp
from l2o_jax.optimizees.quadratic import quadratic
from l2o_jax.optimizees.regression import (
  logistic_regression,
  robust_regression,
  small_net,
)

IMAGES = np.random.default_rng(0).integers(0, 256, (50, 4, 4, 1), np.uint8)
LABELS = np.arange(50, dtype=np.int32) % 3
OPTIMIZEES = {
  'quadratic': quadratic(),
  'quadratic_normal': quadratic(dimension=4, entries='normal'),
  'quadratic_batch': quadratic(dimension=3, batch=5),
  **{
    f'mlp_{a}': classifier(IMAGES, LABELS, mlp((16, 5, 3), a), 8)
    for a in ACTIVATIONS
  },
  'mlp_deep': classifier(IMAGES, LABELS, mlp((16, 5, 4, 3)), 8),
  'classifier_of_floats': classifier(
    np.float32(IMAGES) / 100, LABELS, mlp((16, 5, 3)), 8
  ),
  'logistic_regression': logistic_regression(),
  'robust_regression': robust_regression(dimension=2),
  'small_net': small_net(),
}


class OptimizeeTest(parameterized.TestCase):
  @parameterized.named_parameters((n, n) for n in OPTIMIZEES)
  def test_loss_and_gradient(self, name):
    optimizee = OPTIMIZEES[name]
    params, task = optimizee.init(jax.random.key(0))
    loss, grads = jax.value_and_grad(optimizee.loss)(
      params, task, jax.random.key(1)
    )
    self.assertEqual(loss.shape, ())
    chex.assert_tree_all_finite((loss, grads))
    chex.assert_trees_all_equal_shapes_and_dtypes(params, grads)
    self.assertEqual(
      float(loss), float(optimizee.loss(params, task, jax.random.key(1)))
    )
    other, _ = optimizee.init(jax.random.key(2))
    self.assertFalse(
      all(
        np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(other))
      )
    )

  @parameterized.named_parameters((n, n) for n in OPTIMIZEES)
  def test_no_data_in_the_program(self, name):
    optimizee = OPTIMIZEES[name]
    params, task = optimizee.init(jax.random.key(0))
    text = (
      jax.jit(lambda o, p, t, k: o.loss(p, t, k))
      .lower(optimizee, params, task, jax.random.key(1))
      .as_text()
    )
    self.assertLess(len(text), 60_000)
    self.assertNotIn('dense<"0x', text)

  def test_quadratic_by_hand(self):
    task = {
      'w': jnp.array([[1.0, 2.0], [3.0, 4.0]]),
      'y': jnp.array([1.0, -1.0]),
    }
    loss = lambda family, x, task: float(
      family.loss(x, task, jax.random.key(0))
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

  def test_quadratic_distributions(self):
    draw = lambda entries: jax.jit(jax.vmap(quadratic(entries=entries).init))(
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

  def test_classifier_by_hand(self):
    """Zero weights: the loss is log(number of classes) whatever the data."""
    optimizee = OPTIMIZEES['mlp_sigmoid']
    params, task = optimizee.init(jax.random.key(0))
    zero = jax.tree.map(jnp.zeros_like, params)
    np.testing.assert_allclose(
      optimizee.loss(zero, task, jax.random.key(0)), np.log(3), rtol=1e-6
    )

  def test_objective_is_the_mean_over_all_images(self):
    """The mean over 20,000 minibatches of one image, and a slow loop."""
    net = mlp((16, 5, 3), 'tanh', 1.0)
    optimizee = classifier(IMAGES, LABELS, net, 1)
    params, task = optimizee.init(jax.random.key(0))
    logits = np.asarray(net[1](params, IMAGES.reshape(50, 16) / 255.0))
    each = np.log(np.exp(logits).sum(1)) - logits[np.arange(50), LABELS]
    want = optimizee.objective(params, task)
    np.testing.assert_allclose(want, each.mean(), rtol=1e-5)
    losses = jax.jit(jax.vmap(optimizee.loss, (None, None, 0)))(
      params, task, jax.random.split(jax.random.key(1), 20_000)
    )
    np.testing.assert_allclose(losses.mean(), want, rtol=0.02)
    first = classifier(IMAGES, LABELS, net, 1, objective_size=7)
    np.testing.assert_allclose(
      first.objective(params, task), each[:7].mean(), rtol=1e-5
    )
    floats = classifier(np.float32(IMAGES) / 255, LABELS, net, 1)
    np.testing.assert_allclose(floats.objective(params, task), want, rtol=1e-5)

  def test_regression_by_hand(self):
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

  def test_regression_data(self):
    """Classes, clusters and labels as in the paper."""
    _, task = logistic_regression().init(jax.random.key(0))
    self.assertEqual(task['x'].shape, (100, 3))
    np.testing.assert_array_equal(task['y'], [1] * 50 + [-1] * 50)
    draw = lambda family: jax.jit(jax.vmap(family.init))(
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

  def test_initial_net_is_drawn_by_a_key_for_each_array(self):
    net, _ = mlp((16, 5, 3), initial_std=0.1)
    params = net(jax.random.key(4))
    for layer, key in zip(params, jax.random.split(jax.random.key(4))):
      key_w, key_b = jax.random.split(key)
      for array, one in ((layer['w'], key_w), (layer['b'], key_b)):
        np.testing.assert_allclose(
          array, 0.1 * jax.random.normal(one, array.shape), rtol=1e-5
        )

  def test_number_of_parameters(self):
    """15,910 in the paper's base net."""
    params = mlp((784, 20, 10))[0](jax.random.key(0))
    self.assertEqual(sum(x.size for x in jax.tree.leaves(params)), 15_910)

  def test_bad_arguments(self):
    for make, message in (
      (lambda: quadratic(entries='cauchy'), "got 'cauchy'"),
      (lambda: quadratic(dimension=0), 'got 0'),
      (lambda: mlp((784, 10), 'step'), "got 'step'"),
      (lambda: mlp((784,)), r'got \(784,\)'),
      (lambda: classifier(IMAGES / 255.0, LABELS, mlp((16, 3))), 'float64'),
      (lambda: classifier(IMAGES, LABELS[1:], mlp((16, 3))), r'\(49,\)'),
      (lambda: classifier(IMAGES, LABELS, mlp((16, 3)), 8, 0), 'got 0'),
      (lambda: robust_regression(scale=0.0), 'got 0.0'),
      (lambda: small_net(classes=1), 'classes must be positive, got 0'),
    ):
      with self.assertRaisesRegex(ValueError, message):
        make()


if __name__ == '__main__':
  absltest.main()
