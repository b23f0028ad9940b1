"""What comes with the package can be loaded, runs, and is described."""

import pathlib
import shutil
import tempfile
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

import l2o_jax
from experiments.results import make_pretrained
from l2o_jax.pretrained import names
from tests import quick

FOLDER = pathlib.Path(l2o_jax.__file__).parent / 'pretrained'


class PretrainedTest(parameterized.TestCase):
  @parameterized.parameters(*names())
  def test_takes_a_step(self, name):
    learned, theta = l2o_jax.pretrained(name)
    layer = {'w': jnp.ones((3, 2)), 'b': jnp.zeros(2)}
    params = [layer, {'w': jnp.ones((2, 2)), 'b': jnp.zeros(2)}]
    if name.startswith('cifar10'):  # two groups
      params = dict(zip(('conv', 'fc'), params))
    opt = l2o_jax.pretrained_optimizer(name)
    self.assertIsInstance(opt, optax.GradientTransformationExtraArgs)
    grads = jax.tree.map(lambda x: 2 * x, params)

    @quick.jit
    def both(grads, params):
      step = lambda opt: opt.update(grads, opt.init(params), params, value=1.0)
      return step(opt)[0], step(learned.transform(theta))[0]

    updates, same = both(grads, params)
    jax.tree.map(np.testing.assert_array_equal, updates, same)
    moved = float(optax.tree.norm(updates))
    self.assertTrue(0 < moved < 10)

  def test_the_files_are_of_the_kept_runs(self):
    """And the page is what `make_pretrained` writes."""
    self.assertEqual(names(), tuple(sorted(make_pretrained.NAMES)))
    for name, run in make_pretrained.NAMES.items():
      kept = (make_pretrained.RESULTS / run / 'theta.npz').read_bytes()
      self.assertEqual((FOLDER / f'{name}.npz').read_bytes(), kept)
    self.assertEqual((FOLDER / 'README.md').read_text(), make_pretrained.page())
    for text in make_pretrained.page().split('\n## ')[1:]:
      fails = text.partition('**Where it fails.** ')[2]
      self.assertGreater(len(fails.strip()), 80)
      command = r'`(git checkout \w+ && )?python -m experiments\.'
      self.assertRegex(text, 'made by: ' + command)

  def test_small(self):
    size = sum(f.stat().st_size for f in FOLDER.glob('*.npz'))
    self.assertLess(size, 2_000_000)

  def test_a_factor_of_the_steps(self):
    x, g = jnp.ones(3), jnp.ones(3)

    def step(*args):
      opt = l2o_jax.pretrained_optimizer(*args)
      state = opt.init(x)
      for _ in range(2):
        updates, state = opt.update(g, state, x)
      return updates

    one = step('robust')
    np.testing.assert_allclose(step('robust', 0.25), 0.25 * one, rtol=1e-6)
    falling = lambda t: jnp.where(t < 1, 1.0, 0.0)
    np.testing.assert_array_equal(step('robust', falling), 0 * one)
    self.assertLess(float(one[0]), 0)
    kinds = [
      jax.tree.structure(l2o_jax.pretrained_optimizer('robust', rate).init(x))
      for rate in (1.0, 0.25)
    ]
    self.assertEqual(*kinds)
    bad = -1.0, float('nan'), float('inf'), np.float32(-1), jnp.array(jnp.nan)
    for rate in *bad, None, '0.1', True:
      with self.assertRaisesRegex(ValueError, '^pretrained_optimizer: learni'):
        l2o_jax.pretrained_optimizer('robust', rate)

  def test_unknown_names(self):
    with self.assertRaisesRegex(ValueError, "there is .*robust.*no 'adam'"):
      l2o_jax.pretrained('adam')
    with self.assertRaisesRegex(ValueError, 'but no'):
      l2o_jax.pretrained_optimizer('../robust')

  def test_a_damaged_file(self):
    folder = self.enter_context(tempfile.TemporaryDirectory())
    folder = pathlib.Path(folder)
    shutil.copy(FOLDER / 'robust.npz', folder)
    data = bytearray((folder / 'robust.npz').read_bytes())
    data[len(data) // 2] ^= 1
    (folder / 'robust.npz').write_bytes(data)
    with mock.patch('l2o_jax.pretrained._FILES', folder):
      with self.assertRaisesRegex(l2o_jax.CheckpointError, r'robust\.npz'):
        l2o_jax.pretrained('robust')


if __name__ == '__main__':
  absltest.main()
