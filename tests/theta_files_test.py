"""Files of theta: they rebuild their optimizer, and nothing else."""

import collections
import json
import pathlib
import tempfile

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from flax.core import freeze

from l2o_jax import checkpoint
from l2o_jax.cells.lstm import lstm_cell
from l2o_jax.coordinatewise import coordinatewise
from l2o_jax.features import gradient
from l2o_jax.learned_optimizers import (
  autonomous_optimizer,
  lstm_averaging,
  lstm_log_and_sign,
  lstm_policy,
  lstm_raw,
  ntm_bfgs,
  predicted_step_descent,
  robust_optimizer,
)
from l2o_jax.theta_files import load_learned, save_learned
from tests.contracts.subjects import theta_of

LABELS = [{'w': 'first', 'b': 'biases'}, {'w': 'second', 'b': 'biases'}]
NAMED = {
  'lstm_raw': lambda: lstm_raw(0.1),
  'lstm_averaging': lambda: lstm_averaging(averaged=2),
  'ntm_bfgs': lambda: ntm_bfgs(0.1, pairs=3),
  'lstm_log_and_sign': lambda: lstm_log_and_sign(5.0, scale=0.01),
  'predicted_step_descent': lambda: predicted_step_descent(LABELS, hidden=4),
  'lstm_policy': lambda: lstm_policy(p=5.0),
  'autonomous_optimizer': lambda: autonomous_optimizer(
    coordinates=3, depth=2, hidden=4
  ),
}


class FilesTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    directory = tempfile.TemporaryDirectory()
    self.addCleanup(directory.cleanup)
    self.path = pathlib.Path(directory.name) / 'theta.npz'

  @parameterized.named_parameters((n, n) for n in NAMED)
  def test_a_file_rebuilds_its_optimizer(self, name):
    """Name, arguments and weights; also after JSON, as files hold it."""
    learned = NAMED[name]()
    self.assertEqual(learned.call['name'], name)
    theta = theta_of(learned)
    save_learned(self.path, learned, theta, {'seed': 3})
    self.assertEqual(checkpoint.metadata(self.path)['seed'], 3)
    for expected in (None, NAMED[name]()):
      rebuilt, loaded = load_learned(self.path, expected)
      chex.assert_trees_all_equal(loaded, theta)
    self.assertEqual(json.dumps(rebuilt.call), json.dumps(learned.call))
    self.assertEqual(rebuilt.communicates, learned.communicates)
    x = jnp.array([1.0, -2.0, 0.5])
    params = (
      x if 'predicted' not in name else [{'w': x, 'b': x}, {'w': x, 'b': x}]
    )
    program = lambda learned: str(
      jax.make_jaxpr(lambda theta, x: update_of(learned, theta, x))(
        theta, params
      )
    )
    self.assertEqual(program(rebuilt), program(learned))

  def test_another_optimizer_is_refused_in_one_line(self):
    """Scale, p, size or kind: each ran silently and 10 times off."""
    learned = lstm_log_and_sign(5.0, scale=0.01)
    save_learned(self.path, learned, theta_of(learned))
    for other, text in (
      (lstm_log_and_sign(10.0, scale=0.01), 'p=10.0'),
      (lstm_log_and_sign(5.0, scale=1.0), 'scale=1.0'),
      (lstm_raw(0.01), 'lstm_raw(scale=0.01)'),
      (coordinatewise(gradient(), lstm_cell()), 'an optimizer of other parts'),
    ):
      with self.assertRaises(checkpoint.CheckpointError) as caught:
        load_learned(self.path, other)
      message = str(caught.exception)
      self.assertIn('lstm_log_and_sign(p=5.0, scale=0.01)', message)
      self.assertIn(text, message)
      self.assertIn(str(self.path), message)
      self.assertNotIn('\n', message)

  def test_files_that_do_not_say_what_they_are(self):
    learned = lstm_raw()
    theta = theta_of(learned)
    for metadata, text in (
      ({}, 'does not say which optimizer'),
      ([1], 'does not say which optimizer'),
      ({'optimizer': {'name': 'system', 'arguments': {}}}, 'no learned optim'),
      (
        {'optimizer': {'name': 'lstm_raw', 'arguments': {'q': 1}}},
        'no learned',
      ),
      ({'optimizer': {'name': 'lstm_raw'}}, 'no learned optimizer'),
      ({'optimizer': 'lstm_raw'}, 'no learned optimizer'),
      (
        {'optimizer': {'name': ['lstm_raw'], 'arguments': {}}},
        'no learned opt',
      ),
      (
        {'optimizer': {'name': 'lstm_log_and_sign', 'arguments': {'p': -1}}},
        'got -1',
      ),
    ):
      checkpoint.save(self.path, theta, metadata=metadata)
      with self.assertRaisesRegex(checkpoint.CheckpointError, text) as caught:
        load_learned(self.path)
      self.assertIn(str(self.path), str(caught.exception))
      self.assertNotIn('\n', str(caught.exception))

  def test_weights_of_another_architecture(self):
    learned = predicted_step_descent(hidden=4)
    other = theta_of(predicted_step_descent(hidden=5))
    checkpoint.save(self.path, other, metadata={'optimizer': learned.call})
    with self.assertRaisesRegex(checkpoint.CheckpointError, 'has shape'):
      load_learned(self.path)

  def test_a_file_that_does_not_name_the_features(self):
    """They are the paper's; so wrote versions that had no others."""
    learned = predicted_step_descent(hidden=4)
    theta = theta_of(learned)
    old = {'name': 'predicted_step_descent', 'arguments': {'labels': None}}
    old['arguments']['hidden'] = 4
    checkpoint.save(self.path, theta, metadata={'optimizer': old})
    again, same = load_learned(self.path, expected=learned)
    self.assertEqual(again.call, old)
    self.assertEqual(learned.call, old)
    chex.assert_trees_all_equal(same, theta)

  def test_a_robust_optimizer_with_a_short_memory(self):
    """Files that do not say which memory have the short one, as before."""
    learned = robust_optimizer(
      0, 0.3, long_memory=False, size=None, agreement=None, warmup=0.0
    )
    old = {'name': 'robust_optimizer', 'arguments': {}}
    old['arguments'] = {'hidden': 0, 'scale': 0.3, 'age': 100.0}
    self.assertEqual(learned.call, old)
    theta = theta_of(learned)
    checkpoint.save(self.path, theta, metadata={'optimizer': old})
    again, same = load_learned(self.path, expected=learned)
    chex.assert_trees_all_equal(same, theta)
    self.assertEqual(again.call, old)
    long = robust_optimizer().call['arguments']
    self.assertIs(long['long_memory'], True)
    self.assertEqual(long['size'], 1000.0)

  def test_layers_twice_as_wide_have_half_the_steps(self):
    learned = robust_optimizer(agreement=None)
    opt = learned.transform(learned.init(jax.random.key(0)))
    g = {n: jnp.full((n, n), 3.0) for n in (500, 1000)}
    steps, _ = opt.update(g, opt.init(g), g)
    ratio = steps[500][0, 0] / steps[1000][0, 0]
    np.testing.assert_allclose(ratio, 2, rtol=0.01)
    one = robust_optimizer(size=None, agreement=None)
    self.assertFalse(one.communicates)
    self.assertNotIn('size', one.call['arguments'])

  def test_steps_by_agreement(self):
    """Longer where gradients agree, shorter where they alternate."""
    alone = robust_optimizer(agreement=None)
    self.assertNotIn('agreement', alone.call['arguments'])
    with self.assertRaisesRegex(ValueError, 'agreement needs a size'):
      robust_optimizer(size=None)
    start = {}
    for agreement in (None, 1.0):
      learned = robust_optimizer(agreement=agreement)
      opt = learned.transform(learned.init(jax.random.key(0)))
      params = {'same': jnp.zeros((4, 4)), 'alternate': jnp.zeros((4, 4))}
      state = opt.init(params)
      for t in range(4):
        g = {
          'same': jnp.ones((4, 4)),
          'alternate': jnp.full((4, 4), (-1.0) ** t),
        }
        steps, state = opt.update(g, state, params)
      start[agreement] = jax.tree.map(lambda x: abs(float(x[0, 0])), steps)
    self.assertGreater(start[1.0]['same'], 3 * start[None]['same'])
    self.assertLess(start[1.0]['alternate'], 0.9 * start[None]['alternate'])

  def test_a_warm_up_shortens_first_steps(self):
    none = robust_optimizer(warmup=0.0)
    self.assertNotIn('warmup', none.call['arguments'])
    first = {}
    for warmup in (0.0, 9.0):
      learned = robust_optimizer(warmup=warmup)
      opt = learned.transform(learned.init(jax.random.key(0)))
      x = jnp.ones(3)
      first[warmup], _ = opt.update(x, opt.init(x), x)
    np.testing.assert_allclose(first[0.0], 10 * first[9.0], rtol=1e-5)

  def test_averaging_cells_that_came_later(self):
    """With them a coordinate's step depends on another's gradient."""
    self.assertNotIn('averaged', lstm_log_and_sign().call['arguments'])
    learned = lstm_log_and_sign(averaged=5)
    self.assertTrue(learned.communicates)
    theta = theta_of(learned)
    save_learned(self.path, learned, theta)
    again, same = load_learned(self.path, expected=learned)
    steps = []
    for other in 1.0, -3.0:
      opt = again.transform(same)
      g = jnp.array([0.5, other])
      steps.append(opt.update(g, opt.init(g), g)[0][0])
    self.assertGreater(abs(float(steps[0] - steps[1])), 1e-5)

  def test_labels_that_came_later(self):
    """Without them a file is as those of older versions."""
    self.assertNotIn('labels', robust_optimizer(3).call['arguments'])
    learned = robust_optimizer(3, labels={'a': 'one', 'b': 'two'})
    theta = theta_of(learned)
    save_learned(self.path, learned, theta)
    again, same = load_learned(self.path, expected=learned)
    chex.assert_trees_all_equal(same, theta)
    x = {'a': jnp.ones(2), 'b': jnp.ones(2)}
    same['one'] = jax.tree.map(lambda z: z - 1, same['one'])
    updates = []
    for weights in theta, same:
      opt = again.transform(weights)
      updates.append(jax.jit(opt.update)(x, opt.init(x), x)[0])
    before, after = updates
    np.testing.assert_array_equal(before['b'], after['b'])
    self.assertGreater(float(jnp.min(jnp.abs(before['a'] - after['a']))), 1e-3)

  def test_what_could_not_be_loaded_again_is_not_saved(self):
    learned = lstm_raw(scale=np.float32(0.5))
    self.assertEqual(learned.call['arguments'], {'scale': 0.5})
    theta = theta_of(learned)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), theta)
    other = lstm_log_and_sign(labels=('a', 'b'))
    frozen = lstm_log_and_sign(labels=freeze({'w': 'a', 'b': 'a'}))
    ordered = collections.OrderedDict(w='a', b='a')
    ordered = lstm_log_and_sign(labels=ordered)
    for optimizer, weights, metadata, message in (
      (learned, theta, {'optimizer': 'adam'}, "without the key 'optimizer'"),
      (learned, theta, 'text', 'metadata must be a dict'),
      (frozen, theta_of(frozen), None, 'would not keep the arguments'),
      (ordered, theta_of(ordered), None, 'would not keep the arguments'),
      (
        learned,
        half,
        None,
        r'theta is not for lstm_raw.*bfloat16\[.*float32\[',
      ),
      (learned, theta_of(lstm_log_and_sign()), None, 'theta is not for'),
      (other, theta_of(other), None, 'would not keep the arguments of'),
    ):
      with self.assertRaisesRegex(ValueError, f'^save_learned: .*{message}'):
        save_learned(self.path, optimizer, weights, metadata)
    self.assertFalse(self.path.exists())

  def test_parts_of_ones_own_cannot_be_rebuilt(self):
    learned = coordinatewise(gradient(), lstm_cell((2,)))
    self.assertIsNone(learned.call)
    with self.assertRaisesRegex(ValueError, 'use save and load'):
      save_learned(self.path, learned, {})
    self.assertFalse(self.path.exists())


def update_of(learned, theta, x):
  opt = learned.transform(theta)
  return opt.update(x, opt.init(x), x, value=1.0)


if __name__ == '__main__':
  absltest.main()
