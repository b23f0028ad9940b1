"""The vocabulary: what Optimizee makes of plain functions."""

import jax
import jax.numpy as jnp
from absl.testing import absltest
from jax.tree_util import Partial

from l2o_jax.base import Optimizee
from tests import quick


def init(key):
  return jax.random.normal(key, (3,)), ()


def loss(params, task, key):
  return jnp.sum(params**2)


class OptimizeeTest(absltest.TestCase):
  def test_plain_functions_may_be_jit_arguments(self):
    """They become Partials without arguments; jax alone would refuse them."""
    optimizee = Optimizee(init, loss, lambda params, task: 3.0)
    for field in optimizee:
      self.assertIsInstance(field, Partial)
    self.assertEmpty(jax.tree.leaves(optimizee))

    @quick.jit
    def run(optimizee, key):
      params, task = optimizee.init(key)
      return optimizee.loss(params, task, key), optimizee.objective(0, 0)

    value, objective = run(optimizee, jax.random.key(0))
    self.assertGreater(value, 0)
    self.assertEqual(objective, 3)

  def test_replaced_fields_are_wrapped_too(self):
    optimizee = Optimizee(init, loss)._replace(loss=lambda p, t, k: jnp.sum(p))
    self.assertIsInstance(optimizee.loss, Partial)
    self.assertIsInstance(optimizee, Optimizee)

  def test_a_function_of_other_arguments_is_refused_at_once(self):
    for fields, line in (
      ((init, lambda x, task: x), r'loss must take \(params, task, key\)'),
      ((lambda: 0, loss), r'init must take \(key\)'),
      ((init, loss, lambda x: x), r'objective must take \(params, task\)'),
    ):
      with self.assertRaisesRegex(TypeError, f'Optimizee: {line}$'):
        Optimizee(*fields)
    Optimizee(init, lambda params, task, key=None: 0.0, None)
    Optimizee(init, lambda *anything: 0.0)

  def test_data_of_a_partial_stay_leaves(self):
    scaled = lambda scale, params, task, key: scale * jnp.sum(params**2)
    optimizee = Optimizee(init, Partial(scaled, jnp.array(2.0)))
    (leaf,) = jax.tree.leaves(optimizee)
    self.assertEqual(leaf, 2)
    tripled = jax.tree.map(lambda x: 3 * x, optimizee)
    self.assertIsInstance(tripled, Optimizee)
    self.assertIsNone(tripled.objective)
    value = quick.jit(lambda o: o.loss(jnp.ones(2), (), None))(tripled)
    self.assertEqual(value, 12)

  def test_two_of_the_same_functions_share_a_trace(self):
    traces = []

    @quick.jit
    def run(optimizee):
      traces.append(1)
      return optimizee.loss(jnp.ones(2), (), None)

    run(Optimizee(init, loss))
    run(Optimizee(init, loss))
    self.assertLen(traces, 1)


if __name__ == '__main__':
  absltest.main()
