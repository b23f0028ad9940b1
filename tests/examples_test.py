"""Each example runs, and shows what it says."""

import ast
import contextlib
import pathlib
import subprocess
import sys
import tempfile

import chex
import jax
import pytest
from absl.testing import absltest

import l2o_jax
from experiments.common import families
from experiments.examples import (
  new_cell,
  robust_in_parts,
  train_your_own,
  use_pretrained,
  your_task,
)
from tests import quick

ROOT = pathlib.Path(__file__).parents[1]


class ExamplesTest(absltest.TestCase):
  @pytest.mark.slow
  def test_use_pretrained(self):
    learned, in_bfloat16, adam = use_pretrained.main(20)
    self.assertLess(learned, 1.2 * adam)
    self.assertLess(in_bfloat16, 1.2 * adam)
    self.assertLess(learned, 1.2)  # from 2.3

  @pytest.mark.slow
  def test_train_your_own(self):
    folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
    with quick.optimized():
      learned, adam = train_your_own.main(25, folder / 'theta.npz')
    self.assertLess(learned[-1], 0.5 * learned[0])
    self.assertLess(learned[-1], 1.2 * adam[-1])

  @pytest.mark.slow
  def test_your_task(self):
    """Flax with batch norm, and Equinox: theta, figure and losses."""
    folder = self.enter_context(tempfile.TemporaryDirectory())
    with contextlib.chdir(folder):
      found = your_task.main(num_steps=20, num_epochs=2)
    self.assertEqual(list(found), ['flax', 'equinox'])
    for name, ends in found.items():
      self.assertLess(ends['fine-tuned'], 2.2)
      self.assertLess(ends['robust'], 2.2)
      self.assertGreater(
        (pathlib.Path(folder) / f'{name}.png').stat().st_size, 0
      )
      learned, _ = l2o_jax.load_learned(pathlib.Path(folder) / f'{name}.npz')
      self.assertEqual(learned.call['name'], 'robust_optimizer')

  @pytest.mark.slow
  def test_new_cell(self):
    learned, sgd = new_cell.main(20, 64)
    self.assertLess(learned, 0.8 * sgd)

  @pytest.mark.slow
  def test_robust_in_parts(self):
    nets = families.validation()
    few = [nets['quadratic'], nets['noisy, batches of 8']]
    table = robust_in_parts.main(1, (20, 40), few)
    self.assertEqual(table['at its start'], [1.0, 1.0])
    for worse in 'leaves do not adapt', 'momentum, no averaging':
      self.assertGreater(min(table[worse]), 1.05)

  def test_robust_in_parts_begins_as_robust(self):
    key, built = jax.random.key(0), robust_in_parts.build()
    robust = l2o_jax.robust_optimizer()
    chex.assert_trees_all_equal(built.init(key), robust.init(key))
    kept = l2o_jax.pretrained('robust')[1]
    chex.assert_trees_all_close(kept, robust.init(key), rtol=1e-6)
    optimizee = l2o_jax.optimizees.quadratic(3)
    curve = lambda learned: l2o_jax.learning_curves(
      optimizee, learned.transform(learned.init(key)), key[None], 5
    )
    chex.assert_trees_all_close(curve(built), curve(robust), rtol=1e-5)

  @pytest.mark.slow
  def test_sharded(self):
    """In a process of its own: the number of devices is fixed at the start."""
    code = 'from experiments.examples import sharded; print(sharded.main())'
    command = sys.executable, '-W', 'error', '-c', code
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    self.assertEqual(done.returncode, 0, done.stderr)
    results = ast.literal_eval(done.stdout.splitlines()[-1])
    (everywhere, of_step), (gap, of_meta_step) = results
    self.assertTrue(everywhere)
    self.assertEqual(of_step, {})
    self.assertLess(gap, 1e-5)
    self.assertEqual(of_meta_step, {'all-reduce': 2})  # theta's gradient, loss

  def test_cell_is_short(self):
    tree = ast.parse(pathlib.Path(new_cell.__file__).read_text())
    (cell,) = (x for x in tree.body if getattr(x, 'name', '') == 'gru_cell')
    lines = ast.unparse(cell).splitlines()
    self.assertLessEqual(sum(map(bool, lines)), 20)


if __name__ == '__main__':
  absltest.main()
