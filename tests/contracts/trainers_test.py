"""A table of meta-trainers against a list of contracts."""

import collections
import functools
import tempfile

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized
from jax.tree_util import Partial

from l2o_jax import blocks, checkpoint
from l2o_jax.base import Info, MetaTrainer, Optimizee
from l2o_jax.cells.lstm import lstm_cell
from l2o_jax.coordinatewise import coordinatewise
from l2o_jax.evolution import evolution
from l2o_jax.features import gradient, log_and_sign
from l2o_jax.gps import costs
from l2o_jax.gps.badmm import badmm
from l2o_jax.gps.guided_policy_search import guided_policy_search
from l2o_jax.gps.mirror_descent import mirror_descent
from l2o_jax.gps.policy import Regression, make_policy
from l2o_jax.gps.rollouts import Rollouts
from l2o_jax.imitation import imitation
from l2o_jax.policy_features import state_features
from l2o_jax.truncated_bptt import truncated_bptt
from tests import quick

TRACES = collections.Counter()
POLICY = make_policy(gradient(), lstm_cell((), scale=1.0))
ROLLOUTS = Rollouts(4, num_rollouts=3, num_coordinates=2)
REGRESSION = Regression(5, 5, batch_size=4)


def bptt(learned=None, **options):
  learned = learned or coordinatewise(log_and_sign(), lstm_cell((3,)))
  sizes = {'unroll_length': 3, 'num_unrolls': 2, 'num_optimizees': 2}
  return truncated_bptt(learned, optax.adam(1e-2), **{**sizes, **options})


def es(**options):
  learned = coordinatewise(log_and_sign(), lstm_cell((3,)))
  sizes = {'unroll_length': 3, 'num_unrolls': 2, 'num_optimizees': 2}
  return evolution(learned, optax.adam(1e-2), **sizes, **options)


def gps(improve):
  return guided_policy_search(
    POLICY,
    state_features(1, 0),
    (0.05, 0.3),
    ROLLOUTS,
    improve=improve,
    regression=REGRESSION,
  )


# name: (trainer, shape of Info.losses, names of its summary)
BPTT = (2, 2, 4), {'gradient_norm'}
GPS = (
  (1, 3, 5),
  {
    'accepted_cost',
    'policy_cost',
    'kl',
    'policy_kl',
    'predicted',
    'rejected',
    'kl_scale',
    'regression_error',
  },
)
TRAINERS = {
  'bptt': (bptt, *BPTT),
  'bptt_clip_each': (lambda: bptt(clip_each=1.0), *BPTT),
  'bptt_second_derivatives': (lambda: bptt(second_derivatives=True), *BPTT),
  'bptt_in_blocks': (lambda: bptt(unroll=blocks.unroll), *BPTT),
  'bptt_that_communicates': (
    lambda: bptt(coordinatewise(gradient(), lstm_cell((3,), averaged=1))),
    *BPTT,
  ),
  'evolution': (es, *BPTT),
  'evolution_persistent': (lambda: es(reuse_noise=False), *BPTT),
  'imitation': (
    lambda: imitation(POLICY, optax.sgd(0.1), ROLLOUTS, regression=REGRESSION),
    (1, 3, 5),
    {'regression_error', 'policy_cost'},
  ),
  'badmm': (lambda: gps(badmm(inner_iterations=1)), *GPS),
  'mirror_descent': (lambda: gps(mirror_descent(costs.gradient_share)), *GPS),
}


def _init(key):
  return {'x': 1 + jax.random.uniform(key, (3,))}, ()


def _loss(scale, params, task, key):
  return scale * (0.1 + jnp.array([0.5, 1.0, 2.0]) @ params['x'] ** 2)


def bowls(scale=1.0):
  """A family whose scale is a leaf: NaN poisons it without a new trace."""
  return Optimizee(_init, Partial(_loss, jnp.float32(scale)))


@functools.cache
def trained(name):
  """(trainer, its jitted step, state at the start)."""
  trainer = TRAINERS[name][0]()

  def step(*args):
    TRACES[name] += 1
    return trainer.step(*args)

  init = quick.jit(trainer.init)
  step = quick.jit(step)
  return trainer, step, init(jax.random.key(0))


def copied(tree):
  """Of numbers, random keys too."""
  is_key = lambda x: jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
  numbers = lambda x: jax.random.key_data(x) if is_key(x) else x
  return jax.tree.map(lambda x: np.array(numbers(x)), tree)


class MetaTrainerTest(parameterized.TestCase):
  @parameterized.named_parameters((name, name) for name in TRAINERS)
  def test_an_epoch(self, name):
    """Pure, theta in the state, one trace, Info of one form; and resumed."""
    trainer, step, state = trained(name)
    self.assertIsInstance(trainer, MetaTrainer)
    before = copied(state)
    new, info = step(state, bowls(), jax.random.key(1))
    again, info_again = step(state, bowls(), jax.random.key(1))
    chex.assert_trees_all_equal(copied(new), copied(again))
    chex.assert_trees_all_equal(info, info_again)
    chex.assert_trees_all_equal(copied(state), before)
    # theta moves, and is what the learned optimizer's init gives.
    chex.assert_trees_all_equal_shapes_and_dtypes(new.theta, state.theta)
    moved = jax.tree.map(
      lambda a, b: np.abs(a - b).max(), new.theta, state.theta
    )
    self.assertGreater(max(jax.tree.leaves(moved)), 0)
    # Another theta, another epoch: the same program.
    other = state._replace(theta=new.theta)
    step(other, bowls(), jax.random.key(1))
    third, _ = step(new, bowls(2.0), jax.random.key(2))
    self.assertEqual(TRACES[name], 1)
    # From a file it goes on bitwise.
    with tempfile.TemporaryDirectory() as directory:
      checkpoint.save(f'{directory}/state.npz', new)
      resumed = checkpoint.load(f'{directory}/state.npz', state)
    resumed, _ = step(resumed, bowls(2.0), jax.random.key(2))
    chex.assert_trees_all_equal(copied(resumed), copied(third))
    self.assertEqual(TRACES[name], 1)

  @parameterized.named_parameters((name, name) for name in TRAINERS)
  def test_an_optimizee_without_a_task(self, name):
    """Two parameters would otherwise be taken for parameters and a task."""
    trainer, _, state = trained(name)
    good = bowls()
    for found in {'w': jnp.ones(2), 'b': jnp.ones(2)}, [jnp.ones(2)] * 2:
      bad = good._replace(init=lambda key, found=found: found)
      with self.assertRaisesRegex(TypeError, r'return a tuple \(params, task'):
        jax.eval_shape(trainer.step, state, bad, jax.random.key(0))

  @parameterized.parameters('bptt', 'evolution', 'imitation', 'badmm')
  def test_other_keys_and_types(self, name):
    """Keys of `jax.random.PRNGKey`; jax_enable_x64, where numbers are float64.

    Shapes alone: nothing is compiled.
    """
    trainer = TRAINERS[name][0]()
    for x64, key in (False, jax.random.PRNGKey), (True, jax.random.key):
      with jax.enable_x64(x64):
        state = jax.eval_shape(trainer.init, key(0))
        new, _ = jax.eval_shape(trainer.step, state, bowls(), key(1))
        chex.assert_trees_all_equal_shapes_and_dtypes(new.theta, state.theta)

  @parameterized.named_parameters((name, name) for name in TRAINERS)
  def test_what_it_reports(self, name):
    _, shape, summary = TRAINERS[name]
    _, step, state = trained(name)
    _, info = step(state, bowls(), jax.random.key(1))
    self.assertIsInstance(info, Info)
    self.assertEqual(info.losses.shape, shape)
    self.assertEqual(info.meta_loss.shape, info.skipped.shape)
    self.assertIn(info.meta_loss.shape, ((shape[0],), (1,)))
    self.assertEqual(info.skipped.dtype, bool)
    self.assertFalse(info.skipped.any())
    self.assertTrue(np.isfinite(info.losses).all())
    self.assertTrue(np.isfinite(info.meta_loss).all())
    self.assertEqual(set(info.summary), summary)
    for key, value in info.summary.items():
      self.assertEqual(value.shape, (), key)

  @parameterized.named_parameters((name, name) for name in TRAINERS)
  def test_what_is_not_finite_is_skipped(self, name):
    """theta stays bitwise, and no NaN is left in the state."""
    _, step, state = trained(name)
    for scale in (np.nan, np.inf):
      new, info = step(state, bowls(scale), jax.random.key(1))
      self.assertTrue(info.skipped.all(), scale)
      chex.assert_trees_all_equal(new.theta, state.theta)
      for leaf in jax.tree.leaves(copied(new)):
        self.assertFalse(np.isnan(leaf).any())
      after, info = step(new, bowls(), jax.random.key(2))
      self.assertFalse(info.skipped.any())
      chex.assert_tree_all_finite(after.theta)


if __name__ == '__main__':
  absltest.main()
