"""The papers' optimizers by name."""

import jax
from absl.testing import absltest, parameterized

from l2o_jax.learned_optimizers import (
  autonomous_optimizer,
  flattened,
  lstm_log_and_sign,
  lstm_raw,
  predicted_step_descent,
)
from l2o_jax.theta_files import build

LABELS = [{'w': 'first', 'b': 'biases'}, {'w': 'second', 'b': 'biases'}]


class NamedTest(parameterized.TestCase):
  def test_calls_say_all_arguments(self):
    want = {'name': 'lstm_log_and_sign', 'arguments': {'p': 5.0, 'scale': 0.1}}
    self.assertEqual(lstm_log_and_sign(5.0).call, want)
    self.assertEqual(build(want).call, want)

  def test_weights_have_the_papers_shapes(self):
    """Hidden units, features and groups."""
    shape = lambda learned: jax.tree.map(
      lambda x: x.shape, jax.eval_shape(learned.init, jax.random.key(0))
    )
    layers = [{'w': (n + 20, 80), 'b': (80,)} for n in (2, 20)]
    linear = {'w': (20, 1), 'b': (1,)}
    want = {'lstm': layers, 'linear': linear}
    self.assertEqual(shape(lstm_log_and_sign()), want)
    got = shape(predicted_step_descent(LABELS))
    self.assertEqual(set(got), {'first', 'biases', 'second'})
    self.assertEqual(got['first']['cell']['lstm'][0]['w'], (131, 512))
    got = shape(autonomous_optimizer(coordinates=3))
    self.assertEqual(got['cell']['hidden'][0]['w'], (150, 50))
    self.assertEqual(got['cell']['linear']['w'], (50, 3))
    self.assertEqual(got['mean'], (150,))

  def test_bad_arguments(self):
    for make, message in (
      (lambda: lstm_log_and_sign(p=0.0), 'got 0.0'),
      (lambda: autonomous_optimizer(LABELS, coordinates=3), 'has no labels'),
      (lambda: predicted_step_descent(hidden=0), 'got'),
      (lambda: predicted_step_descent(features='x'), "got 'x'"),
      (lambda: build({'name': 'exit', 'arguments': {}}), 'no learned optim'),
    ):
      with self.assertRaisesRegex(ValueError, message):
        make()

  def test_flattened_is_deprecated_and_changes_nothing(self):
    learned = lstm_raw()
    with self.assertWarnsRegex(DeprecationWarning, 'no longer needed'):
      self.assertIs(flattened(learned), learned)


if __name__ == '__main__':
  absltest.main()
