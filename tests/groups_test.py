"""Coordinate groups: a theta each, split, merge and sample."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from l2o_jax.cells.lstm import lstm_cell
from l2o_jax.coordinatewise import coordinatewise
from l2o_jax.features import gradient
from l2o_jax.groups import (
  Groups,
  by_label,
  grouped,
  merge,
  sample,
  sized,
  split,
)
from l2o_jax.learned_optimizers import lstm_log_and_sign, lstm_raw
from tests import quick

LINEAR = coordinatewise(gradient(), lstm_cell((), scale=1.0))
LABELS = {'w': 'matrix', 'v': {'w': 'matrix', 'b': 'bias'}}


def params():
  return {
    'w': jnp.arange(6.0).reshape(2, 3),
    'v': {'w': jnp.arange(6.0, 8.0), 'b': jnp.array([9.0], jnp.bfloat16)},
  }


def factor(w):
  return {'lstm': [], 'linear': {'w': jnp.full((1, 1), w), 'b': jnp.zeros(1)}}


class GroupsTest(parameterized.TestCase):
  @parameterized.parameters(
    (LABELS,), ({'w': 'matrix', 'v': LABELS['v']},), (lambda tree: LABELS,)
  )
  def test_each_group_has_its_own_theta(self, labels):
    learned = grouped(LINEAR, Groups(labels, ('bias', 'matrix')))
    theta = jax.eval_shape(learned.init, jax.random.key(0))
    self.assertEqual(set(theta), {'bias', 'matrix'})
    x = params()
    opt = learned.transform({'matrix': factor(2.0), 'bias': factor(-1.0)})
    updates, _ = opt.update(x, opt.init(x), x)
    np.testing.assert_allclose(updates['w'], 2 * x['w'])
    np.testing.assert_allclose(updates['v']['w'], 2 * x['v']['w'])
    np.testing.assert_allclose(np.float32(updates['v']['b']), [-9.0])

  def test_shorter_steps_in_larger_leaves(self):
    """√((1 + n₀ / 1000) / (1 + n / 1000)); 1 where n = n₀ or there is no n₀."""
    groups = by_label({'w': 'matrix', 'b': 'bias'})
    learned = sized(LINEAR, groups, {'matrix': 500})
    self.assertTrue(learned.communicates)  # leaves must be kept apart
    named = sized(lstm_raw(), groups, {'matrix': 500})
    self.assertIsNone(named.call)  # or a file would lose the sizes
    opt = learned.transform(factor(2.0))
    x = {'w': jnp.ones((100, 50), jnp.bfloat16), 'b': jnp.ones(3)}
    updates, _ = opt.update(x, opt.init(x), x)
    self.assertEqual(updates['w'].dtype, jnp.bfloat16)
    np.testing.assert_allclose(np.float32(updates['w']), 1.0)  # 2 x √(1.5 / 6)
    np.testing.assert_array_equal(updates['b'], 2 * x['b'])
    same = sized(LINEAR, groups, {'matrix': 5000, 'bias': 3})
    opt = same.transform(factor(2.0))
    updates, _ = opt.update(x, opt.init(x), x)
    jax.tree.map(
      lambda u, x: np.testing.assert_array_equal(u, 2 * x), updates, x
    )
    for wrong in {'matrx': 500}, {'matrix': 0, 'bias': 3}, 5:
      with self.assertRaisesRegex(ValueError, 'of groups in .*matrix'):
        sized(LINEAR, groups, wrong)

  def test_thetas_are_drawn_apart(self):
    learned = grouped(LINEAR, Groups(LABELS, ('a', 'b')))
    theta = quick.jit(learned.init)(jax.random.key(0))
    self.assertNotEqual(theta['a']['linear']['w'], theta['b']['linear']['w'])

  def test_one_group_is_the_optimizer_itself(self):
    x = {'w': jnp.array([1.0, -2.0])}
    opt = grouped(LINEAR, by_label({'w': 'all'})).transform(
      {'all': factor(0.5)}
    )
    plain = LINEAR.transform(factor(0.5))
    got, want = (o.update(x, o.init(x), x)[0] for o in (opt, plain))
    chex.assert_trees_all_equal(got, want)

  def test_names_in_the_order_of_the_tree(self):
    self.assertEqual(by_label(LABELS).names, ('bias', 'matrix'))
    self.assertEqual(by_label(['b', ['a', 'b']]).names, ('b', 'a'))

  @parameterized.parameters('ab', ((),), (('a', 'a'),))
  def test_bad_names(self, names):
    with self.assertRaisesRegex(
      ValueError, '^grouped: groups must be distinct'
    ):
      grouped(LINEAR, Groups(lambda params: params, names))

  def test_weights_of_other_groups(self):
    learned, theta = grouped(LINEAR, by_label(LABELS)), factor(0.5)
    for other, found in (
      (theta, 'got .*'),
      ({'bias': theta}, r"got \['bias'\]"),
      ([theta] * 2, r"got \['list'\]"),
      (dict.fromkeys(('bias', 'matrix', 'more'), theta), "got .*'more'"),
    ):
      ask = r"grouped: theta must have the groups \['bias', 'matrix'\], "
      with self.assertRaisesRegex(ValueError, f'^{ask}{found}'):
        learned.transform(other)

  def test_labels_that_are_a_function(self):
    with self.assertRaisesRegex(ValueError, r'use Groups\(labels, names\)'):
      by_label(lambda params: params)

  def test_labels_for_other_parameters(self):
    """One line."""
    opt = grouped(LINEAR, by_label(LABELS)).transform(
      {name: factor(0.5) for name in by_label(LABELS).names}
    )
    with self.assertRaisesRegex(
      ValueError, '^groups: labels do not fit.*'
    ) as e:
      opt.init({'other': jnp.ones(2)})
    self.assertNotIn('\n', str(e.exception))
    self.assertIn("parameters are PyTreeDef({'other': *})", str(e.exception))

  def test_split_and_merge(self):
    """Coordinates in the order of the leaves; a prefix of the tree labels."""
    groups = Groups({'w': 'one', 'v': 'two'}, ('two', 'one'))
    two, one = split(groups, params())
    np.testing.assert_allclose(one, np.arange(6.0))
    np.testing.assert_allclose(two, [9, 6, 7])
    back = merge(groups, [two, one], params())
    chex.assert_trees_all_equal(back, params())
    chex.assert_trees_all_equal_dtypes(back, params())
    for names in (('one',), ('one', 'two', 'three')):
      with self.assertRaisesRegex(ValueError, 'labels and names differ: '):
        split(groups._replace(names=names), params())

  def test_sample(self):
    """Without replacement; a small group shows all of its coordinates."""
    groups = Groups({'w': 'one', 'v': 'two'}, ('one', 'two'))
    draw = quick.jit(lambda key: sample(groups, params(), key, 5))
    one, two = draw(jax.random.key(0))
    self.assertLen(set(one.tolist()), 5)
    self.assertTrue((0 <= one).all() and (one < 6).all())
    np.testing.assert_array_equal(two, [0, 1, 2, 0, 1])
    counts = np.zeros(6)
    for i in range(60):
      counts[draw(jax.random.key(i))[0]] += 1
    np.testing.assert_allclose(counts / 60, 5 / 6, atol=0.2)

  def test_state_is_recognised_as_of_the_parameters(self):
    """As `optax.partition` has it: no names beside it."""
    learned = lstm_log_and_sign(labels={'w': 'one', 'b': 'two'})
    opt = learned.transform(learned.init(jax.random.key(0)))
    state = opt.init({'w': jnp.ones((2, 3)), 'b': jnp.ones(3)})
    mapped = optax.tree.map_params(opt, lambda x: 'P', state)
    self.assertEqual(set(jax.tree.leaves(mapped)), {'P'})


if __name__ == '__main__':
  absltest.main()
