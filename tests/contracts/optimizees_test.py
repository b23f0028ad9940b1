"""A table of optimizees against a list of contracts."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from l2o_jax.optimizees.classifier import ACTIVATIONS, classifier, mlp
from l2o_jax.optimizees.convnet import convnet
from l2o_jax.optimizees.neural_art import neural_art
from l2o_jax.optimizees.quadratic import quadratic
from l2o_jax.optimizees.regression import (
  logistic_regression,
  robust_regression,
  small_net,
)
from l2o_jax.optimizees.rescaled import rescaled
from tests import quick

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
  'classifier_of_parts': classifier(
    IMAGES, LABELS, mlp((16, 5, 3)), 8, smallest_part=6, smallest_batch=2
  ),
  'rescaled_classifier': rescaled(
    classifier(IMAGES, LABELS, mlp((16, 5, 3)), 8), each='any'
  ),
  'convnet': classifier(
    IMAGES, LABELS, convnet((4, 4), 3, channels=(2, 3), hidden=4, size=3), 8
  ),
  'neural_art': neural_art(
    IMAGES.repeat(3, -1), IMAGES[0].repeat(3, -1), lambda x: (x, [x, x**2])
  ),
  'logistic_regression': logistic_regression(),
  'robust_regression': robust_regression(dimension=2),
  'small_net': small_net(),
}


@functools.cache
def evaluated(name):
  """The program, and its result for three keys: params, loss, gradient."""

  @quick.jit
  def run(optimizee, key):
    params, task = optimizee.init(key)
    loss, gradient = jax.value_and_grad(optimizee.loss)(params, task, key)
    return params, loss, gradient

  key = jax.random.key
  lowered = run.lower(OPTIMIZEES[name], key(0)).as_text()
  return lowered, [run(OPTIMIZEES[name], key(i)) for i in (0, 0, 1)]


class OptimizeeTest(parameterized.TestCase):
  @parameterized.named_parameters((n, n) for n in OPTIMIZEES)
  def test_loss_and_gradient(self, name):
    _, (one, again, other) = evaluated(name)
    params, loss, gradient = one
    self.assertEqual((loss.shape, loss.dtype), ((), jnp.float32))
    chex.assert_tree_all_finite((loss, gradient))
    chex.assert_trees_all_equal_shapes_and_dtypes(params, gradient)
    self.assertGreater(max(abs(g).max() for g in jax.tree.leaves(gradient)), 0)
    chex.assert_trees_all_equal(one, again)
    for a, b in zip(*map(jax.tree.leaves, (params, other[0])), strict=True):
      # Offsets may all start at 0.
      self.assertFalse(np.array_equal(a, b) and np.any(a))

  @parameterized.named_parameters((n, n) for n in OPTIMIZEES)
  def test_no_data_in_the_program(self, name):
    """Data sets are arguments: leaves of the optimizee."""
    text, _ = evaluated(name)
    self.assertNotIn('dense<"0x', text)
    sizes = [x.size for x in jax.tree.leaves(OPTIMIZEES[name])]
    words = ('mlp', 'classifier', 'convnet')
    data = IMAGES.size * any(word in name for word in words)
    data = 3 * IMAGES.size if name == 'neural_art' else data
    self.assertEqual(max(sizes, default=0), data)

  def test_data_in_the_program_would_be_seen(self):
    """As constants the 800 numbers of the images are in its text."""
    optimizee = OPTIMIZEES['mlp_sigmoid']
    program = quick.jit(lambda key: optimizee.loss(*optimizee.init(key), key))
    self.assertIn('dense<"0x', program.lower(jax.random.key(0)).as_text())

  @parameterized.named_parameters((n, n) for n in OPTIMIZEES)
  def test_many_at_once(self, name):
    """Trainers map over keys; tasks and parameters get a leading axis."""
    optimizee = OPTIMIZEES[name]
    keys = jax.random.split(jax.random.key(0), 3)
    params, tasks = jax.eval_shape(jax.vmap(optimizee.init), keys)
    losses = jax.eval_shape(jax.vmap(optimizee.loss), params, tasks, keys)
    self.assertEqual(losses.shape, (3,))
    if optimizee.objective is not None:
      values = jax.eval_shape(jax.vmap(optimizee.objective), params, tasks)
      self.assertEqual(values.shape, (3,))


if __name__ == '__main__':
  absltest.main()
