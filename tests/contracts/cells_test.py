"""A table of cells against a list of contracts."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from l2o_jax.base import LearnedOptimizer
from l2o_jax.cells.gated import gated_cell
from l2o_jax.cells.lstm import lstm_cell
from l2o_jax.cells.mlp import mlp_cell
from l2o_jax.cells.ntm_bfgs import ntm_bfgs_cell
from l2o_jax.cells.schedule_free import schedule_free
from l2o_jax.cells.standardised import standardised
from l2o_jax.coordinatewise import each
from tests import quick
from tests.contracts.subjects import gru_cell, theta_of

F = 3
APART = {
  'linear': lstm_cell(()),
  'lstm': lstm_cell((5, 4)),
  'mlp': mlp_cell((5, 4)),
  'rnnprop': lstm_cell((5, 4), bounded=True, projection=3),
  'gated': gated_cell(4),
  'gated_without_lstm': gated_cell(0),
  'schedule_free': schedule_free(lstm_cell((5,), bounded=True), age=10.0),
  'standardised_lstm': standardised(lstm_cell((5,))),
  'standardised_mlp': standardised(mlp_cell((5,)), limit=1.0),
}
TOGETHER = {
  'averaged': lstm_cell((5, 4), averaged=2),
  'ntm_bfgs': ntm_bfgs_cell((5, 4), averaged=2),
  'ntm_bfgs_of_pairs': ntm_bfgs_cell((5,), averaged=2, pairs=3),
  'joint': mlp_cell((5,), coordinates=6),
  'standardised_joint': standardised(
    mlp_cell((5,), coordinates=6), coordinates=6
  ),
}
CELLS = {**APART, **TOGETHER, 'gru': gru_cell()}


def subjects(names):
  return parameterized.named_parameters((name, name) for name in names)


def theta(cell):
  learned = LearnedOptimizer(lambda key: cell.init(key, F), None)
  return theta_of(learned)


def some_state(cell, shape):
  """States as they may be after some steps, leaves [H, *shape]."""
  rng = np.random.default_rng(3)
  like = jax.eval_shape(lambda: cell.initial_state(shape[-1]))
  draw = lambda s: rng.normal(size=(*s.shape[:-1], *shape))
  return jax.tree.map(lambda s: jnp.asarray(draw(s), jnp.float32), like)


class CellTest(parameterized.TestCase):
  @subjects(APART)
  def test_all_at_once_is_one_by_one(self, name):
    """`step` on [F, n] and [F, 2, 3] is `jax.vmap(step)`: the same source."""
    cell = APART[name]
    self.assertTrue(cell.whole)
    self.assertFalse(cell.communicates)
    x = np.random.default_rng(4).normal(size=(F, 6)) * 2
    x, state = jnp.asarray(x, jnp.float32), some_state(cell, (6,))
    box = lambda tree: jax.tree.map(
      lambda a: a.reshape(*a.shape[:-1], 2, 3), tree
    )

    @quick.jit
    def run(theta):
      step = lambda x, state: cell.step(theta, x, state)
      return step(x, state), each(step, 1)(x, state), step(box(x), box(state))

    whole, single, boxed = run(theta(cell))
    self.assertEqual(whole[0].shape, (6,))
    chex.assert_trees_all_close(whole, single, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(boxed, box(whole), rtol=1e-5, atol=1e-6)
    if name != 'linear':
      self.assertGreater(np.std(whole[0]), 0)

  @subjects(TOGETHER)
  def test_a_coordinate_sees_the_others(self, name):
    """And the flag says so."""
    cell = TOGETHER[name]
    self.assertTrue(cell.whole and cell.communicates)
    x, state = jnp.ones((F, 6)), some_state(cell, (6,))
    step = quick.jit(lambda theta, x: cell.step(theta, x, state)[0])
    one, two = (step(theta(cell), x.at[0, 5].set(a)) for a in (1.0, 0.5))
    self.assertTrue((np.asarray(one) != np.asarray(two)).all())

  @subjects(set(TOGETHER) - {'joint', 'standardised_joint'})
  def test_permuted_coordinates_have_permuted_steps(self, name):
    """Three steps from the start, forward and backward in order."""
    cell = TOGETHER[name]
    xs = np.random.default_rng(5).normal(size=(3, F, 6)).astype(np.float32)

    @quick.jit
    def run(theta, xs):
      step = lambda state, x: cell.step(theta, x, state)[::-1]
      return jax.lax.scan(step, cell.initial_state(6), xs)[1]

    steps, turned = (run(theta(cell), x) for x in (xs, xs[:, :, ::-1]))
    np.testing.assert_allclose(turned[:, ::-1], steps, rtol=1e-4, atol=1e-6)
    self.assertGreater(np.std(steps), 0)

  @subjects(CELLS)
  def test_the_state_keeps_its_structure_shapes_and_types(self, name):
    cell = CELLS[name]
    n, shape = (6, (F, 6)) if cell.whole else (None, (F,))
    start = (lambda: cell.initial_state(n)) if n else cell.initial_state
    state = jax.eval_shape(start)
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    delta, new = jax.eval_shape(cell.step, theta(cell), x, state)
    chex.assert_trees_all_equal_shapes_and_dtypes(new, state)
    self.assertEqual((delta.shape, delta.dtype), (shape[1:], jnp.float32))
    for s in jax.tree.leaves(state) if n else []:
      self.assertEqual(s.shape[-1], n)


if __name__ == '__main__':
  absltest.main()
