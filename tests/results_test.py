"""Kept results: theta loads, its story is told, the page is up to date."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from experiments.common import report
from experiments.results import make_readme
from l2o_jax import learning_curves, load_learned, metadata
from l2o_jax.optimizees import quadratic

RESULTS = pathlib.Path(make_readme.__file__).parent
PUBLISHED = RESULTS / 'published'  # weights of others
RUNS = {
  f'{path.parts[-3]}/{path.parts[-2]}': path.parent
  for path in sorted(RESULTS.glob('*/*/run.json'))
}
TOLD = ('command', 'commit', 'versions', 'device', 'seed', 'minutes')


def story(run: str):
  return json.loads((RUNS[run] / 'run.json').read_text())


class ResultsTest(parameterized.TestCase):
  def test_every_theta_has_its_run(self):
    found = {path.parent for path in RESULTS.rglob('*.npz')} - {PUBLISHED}
    self.assertLessEqual(found, set(RUNS.values()))
    self.assertNotEmpty(found)

  @parameterized.parameters(*sorted(p.name for p in PUBLISHED.glob('*.npz')))
  def test_published_weights(self, name):
    """They say whose they are, and descend."""
    facts = metadata(PUBLISHED / name)
    self.assertEqual(facts['licence'], 'MIT')
    self.assertIn('https://github.com/', facts['repository'])
    learned, theta = load_learned(PUBLISHED / name)
    f = quadratic(3)

    @jax.jit
    def run(theta, key):
      return learning_curves(f, learned.transform(theta), key, 60)

    curves = run(theta, jax.random.split(jax.random.key(0), 4))
    self.assertLess(curves[:, -1].mean(), 0.5 * curves[:, 0].mean())

  @parameterized.parameters(*RUNS)
  def test_story(self, run):
    told = story(run)
    self.assertContainsSubset(TOLD, told)
    self.assertEqual((told['experiment'], told['run']), tuple(run.split('/')))
    for entry in told['headline']:
      self.assertContainsSubset(
        ('figure', 'ours', 'best_tuned', 'paper'), entry
      )
    self.assertTrue((RUNS[run] / 'NOTES.md').exists())
    for path in RUNS[run].glob('*.json'):
      json.loads(path.read_text(), parse_constant=self.fail)  # no NaN

  @parameterized.parameters(*RUNS)
  def test_ranks(self, run):
    """They are of the means and the final losses beside them."""
    loss = lambda x: np.inf if x is None else x  # diverged
    for path in RUNS[run].glob('summary*.json'):
      summary = json.loads(path.read_text())
      panels = summary.get('panels', {})
      for of in panels.values():
        for by in ('mean', 'final') if 'mean_rank' in summary else ():
          want = report.ranks([loss(row[by]) for row in of.values()])
          found = [row[f'rank_by_{by}'] for row in of.values()]
          self.assertEqual(found, want, path)
      if panels and 'mean_rank' in summary:
        self.assertEqual(summary['mean_rank'], report.mean_ranks(panels), path)

  @parameterized.parameters(*RUNS)
  def test_theta(self, run):
    """Loads without being told what it is, and moves parameters."""
    path = RUNS[run] / 'theta.npz'
    if not path.exists():  # a comparison of several runs
      self.assertIsNone(story(run)['optimizer'])
      return
    learned, theta = load_learned(path)
    self.assertEqual(
      json.loads(json.dumps(learned.call)), story(run)['optimizer']
    )
    self.assertEqual(metadata(path)['optimizer'], story(run)['optimizer'])
    labels = learned.call['arguments'].get('labels')
    is_name = lambda x: isinstance(x, str)
    params = jax.tree.map(
      lambda _: jnp.ones((2, 3)), labels or 'x', is_leaf=is_name
    )
    grads = jax.tree.map(lambda x: 0.1 * x, params)
    opt = learned.transform(theta)
    state = opt.init(params)
    for _ in range(2):
      updates, state = opt.update(grads, state, params, value=jnp.float32(1))
    for update in jax.tree.leaves(updates):
      self.assertTrue(np.isfinite(update).all())
      self.assertGreater(abs(update).max(), 0)

  def test_page(self):
    """`python -m experiments.results.make_readme` writes it."""
    self.assertEqual((RESULTS / 'README.md').read_text(), make_readme.readme())

  @pytest.mark.slow
  @parameterized.parameters('full', 'averaging', 'ntm_bfgs')
  def test_quadratics_as_summarised(self, run):
    """The mean final loss on fresh functions, within 4 standard errors."""
    path = RUNS[f'quadratics/{run}']
    learned, theta = load_learned(path / 'theta.npz')
    keys = jax.random.split(jax.random.key(2016), 512)
    opt = learned.transform(theta)
    curves = learning_curves(quadratic(10), opt, keys, 100)
    final = curves[:, -1]
    self.assertTrue((final < curves[:, 0]).all())  # none diverges
    summary = json.loads((path / 'summary.json').read_text())
    (panel,) = summary['panels'].values()
    kept = panel[summary['learned'][0]]
    error = np.hypot(kept['final_stderr'], final.std() / 512**0.5)
    self.assertLess(abs(final.mean() - kept['final']), 4 * error)


if __name__ == '__main__':
  absltest.main()
