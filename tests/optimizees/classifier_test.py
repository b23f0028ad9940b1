"""Classifiers of images: by hand, slow loops, and the draw of the weights."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from l2o_jax.optimizees.classifier import classifier, mlp
from tests import quick

IMAGES = np.random.default_rng(0).integers(0, 256, (50, 4, 4, 1), np.uint8)
LABELS = np.arange(50, dtype=np.int32) % 3


class ClassifierTest(absltest.TestCase):
  def test_by_hand(self):
    """Zero weights: the loss is log(number of classes) whatever the data."""
    optimizee = classifier(IMAGES, LABELS, mlp((16, 5, 3)), 8)
    params, task = jax.eval_shape(optimizee.init, jax.random.key(0))
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), params)
    loss = quick.jit(optimizee.loss)(zero, task, jax.random.key(0))
    np.testing.assert_allclose(loss, np.log(3), rtol=1e-6)

  def test_objective_is_the_mean_over_all_images(self):
    """The mean over 20,000 minibatches of one image, and a slow loop."""
    net = mlp((16, 5, 3), 'tanh', 1.0)
    optimizee = classifier(IMAGES, LABELS, net, 1)
    draw = np.random.default_rng(1).normal
    layers = ((16, 5), (5, 3))
    params = [
      {'w': draw(size=size), 'b': draw(size=size[1])} for size in layers
    ]
    params, task = jax.tree.map(jnp.float32, params), ()
    logits = np.asarray(net[1](params, IMAGES.reshape(50, 16) / 255.0))
    each = np.log(np.exp(logits).sum(1)) - logits[np.arange(50), LABELS]
    first = classifier(IMAGES, LABELS, net, 1, objective_size=7)
    floats = classifier(np.float32(IMAGES) / 255, LABELS, net, 1)
    families = (optimizee, first, floats)
    want, of_seven, of_floats = quick.jit(
      lambda params: [f.objective(params, task) for f in families]
    )(params)
    np.testing.assert_allclose(want, each.mean(), rtol=1e-5)
    losses = quick.jit(jax.vmap(optimizee.loss, (None, None, 0)))(
      params, task, jax.random.split(jax.random.key(1), 20_000)
    )
    np.testing.assert_allclose(losses.mean(), want, rtol=0.02)
    np.testing.assert_allclose(of_seven, each[:7].mean(), rtol=1e-5)
    np.testing.assert_allclose(of_floats, want, rtol=1e-5)

  def test_parts_and_minibatches_of_their_own(self):
    """The objective of a part, by a slow loop; repeats do not change a mean."""
    net = mlp((16, 5, 3), 'tanh', 1.0)
    parts = {'smallest_part': 6, 'smallest_batch': 2}
    optimizee = classifier(IMAGES, LABELS, net, 8, **parts)
    draw = quick.jit(jax.vmap(optimizee.init))
    keys = jax.random.split(jax.random.key(0), 300)
    _, (start, n, size) = draw(keys)
    self.assertEqual((n.min(), size.min(), size.max()), (6, 2, 8))
    self.assertBetween(np.median(n), 14, 21)  # log-uniform: sqrt(6 * 50) = 17
    self.assertGreater(len(np.unique(start)), 40)

    params = jax.tree.map(lambda x: x[0], draw(keys)[0])
    logits = np.asarray(net[1](params, IMAGES.reshape(50, 16) / 255.0))
    each = np.log(np.exp(logits).sum(1)) - logits[np.arange(50), LABELS]
    part = each[[48, 49, 0, 1, 2]]
    task = tuple(map(jnp.int32, (48, 5, 1)))
    objective = quick.jit(optimizee.objective)(params, task)
    np.testing.assert_allclose(objective, part.mean(), rtol=1e-5)
    for n in 11, 35:  # no divisor of 50; at most 30 images are looked at
      few = classifier(IMAGES, LABELS, net, 8, 30, **parts).objective
      found = quick.jit(few)(params, tuple(map(jnp.int32, (48, n, 1))))
      mean = np.roll(each, 2)[: min(n, 30)].mean()
      np.testing.assert_allclose(found, mean, rtol=1e-5)
    # The net sees no image of others, which may overflow.
    alone = np.where(np.arange(50) < 11, 1.0, np.inf)[:, None]
    two = (lambda key: jnp.ones(2), lambda w, x: x * w)
    f = classifier(alone.astype(np.float32), LABELS % 2, two, 8, **parts)
    task = tuple(map(jnp.int32, (0, 11, 1)))
    slope = quick.jit(jax.grad(f.objective))(jnp.ones(2), task)
    self.assertTrue(np.isfinite(slope).all())
    task = tuple(map(jnp.int32, (48, 5, 1)))
    losses = quick.jit(jax.vmap(optimizee.loss, (None, None, 0)))
    one = losses(params, task, keys)  # minibatches of one image
    near = np.abs(one[:, None] - part).min(1)
    np.testing.assert_allclose(near, 0, atol=1e-5)

  def test_initial_net_is_drawn_by_a_key_for_each_array(self):
    net, _ = mlp((16, 5, 3), initial_std=0.1)
    key = jax.random.key(4)

    @quick.jit
    def each(key):
      keys = [jax.random.split(k) for k in jax.random.split(key)]
      draw = lambda key, *shape: 0.1 * jax.random.normal(key, shape)
      (w1, b1), (w2, b2) = keys
      first = {'w': draw(w1, 16, 5), 'b': draw(b1, 5)}
      return [first, {'w': draw(w2, 5, 3), 'b': draw(b2, 3)}]

    chex.assert_trees_all_close(quick.jit(net)(key), each(key), rtol=1e-5)

  def test_number_of_parameters(self):
    """15,910 in the paper's base net."""
    params = jax.eval_shape(mlp((784, 20, 10))[0], jax.random.key(0))
    self.assertEqual(sum(x.size for x in jax.tree.leaves(params)), 15_910)

  def test_bad_arguments(self):
    for make, message in (
      (lambda: mlp((784, 10), 'step'), "got 'step'"),
      (lambda: mlp((784,)), r'sizes must be at least two: \(784,\)'),
      (lambda: classifier(IMAGES / 255.0, LABELS, mlp((16, 3))), 'float64'),
      (lambda: classifier(IMAGES, LABELS[1:], mlp((16, 3))), r'\(49,\)'),
      (lambda: classifier(IMAGES, LABELS, mlp((16, 3)), 8, 0), 'got 0'),
      (lambda: classifier(IMAGES[:0], LABELS[:0], mlp((16, 3))), r'got \(0,\)'),
      (
        lambda: classifier(IMAGES, LABELS / 2, mlp((16, 3))),
        'must be integers',
      ),
      # They would give NaN, or count from the end.
      (lambda: classifier(IMAGES, LABELS + 1, mlp((16, 3))), r'2, got 0 .* 3'),
      (lambda: classifier(IMAGES, LABELS - 1, mlp((16, 3))), r'got -1 .* 1'),
      (lambda: classifier(IMAGES, LABELS, mlp((16, 3)), -2), 'got -2'),
      (lambda: classifier(IMAGES, LABELS, mlp((9, 3))), 'not take 16 inputs'),
    ):
      with self.assertRaisesRegex(ValueError, message):
        make()


if __name__ == '__main__':
  absltest.main()
