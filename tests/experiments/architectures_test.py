"""Fig. 6: which nets, one program for all baselines, files and bad flags."""

import json
from unittest import mock

import numpy as np
import optax
import pytest
from absl.testing import absltest
from matplotlib.figure import Figure

from experiments import architectures
from experiments.common import cli, comparison, plots, problems
from experiments.common.settings import UsageError
from tests.experiments import comparison_test, toy

NAMES = ('mine', 'SGD')


def measured(path, learned, panels, s, by):
  """Losses that are known: 2 and 1 for nets of any kind, 8 tasks."""
  losses = {'mine': np.full((8, 2), 1.0), 'SGD': np.full((8, 2), 2.0)}
  titles = [panel.title for panel in panels]
  tuned = {'SGD': {'rate': 0.1}}
  of_all = lambda value: dict.fromkeys(titles, value)
  return of_all(losses), of_all(tuned), of_all(1)


class TogetherTest(absltest.TestCase):
  """One program for several optimizers does what each of them does."""

  def test_switched(self):
    x, g = np.array([1.0, -2.0]), np.array([0.5, 4.0])
    opts = optax.sgd(0.1), optax.adam(0.1), optax.sgd(0.1, momentum=0.5)
    for which, opt in enumerate(opts):
      one = problems.switched(opts, which)
      state, own = one.init(x), opt.init(x)
      for _ in range(3):
        got, state = one.update(g, state, x, value=1.0)
        want, own = opt.update(g, own, x)
        np.testing.assert_allclose(got, want, rtol=1e-6)

  def test_tunes_and_runs_as_one_by_one(self):
    """Gradient descent by hand, rates as without."""
    problem = comparison_test.PROBLEM
    names = ('SGD', 'momentum')
    run = problems.together(problem, names, 'all')
    got = run('SGD', 0.1, ())
    np.testing.assert_allclose(got, comparison_test.by_hand(0.1), rtol=1e-5)
    for name in names:
      found = problems.tune(problem, name, 'final', 'all', run)
      want = problems.tune(problem, name, 'final')
      self.assertEqual(found.keys(), want.keys())
      np.testing.assert_allclose(
        list(found.values()), list(want.values()), rtol=1e-6
      )

  def test_tunes_past_losses_near_overflow(self):
    """Two functions at 3e38 each: their mean in float32 would warn."""
    losses = lambda rate: 3e38 if rate > 0.1 else abs(np.log(rate / 0.01))
    run = lambda name, rate, choice: np.full((2, 3), losses(rate), np.float32)
    found = problems.tune(comparison_test.PROBLEM, 'SGD', 'mean', 'all', run)
    np.testing.assert_allclose(found['rate'], 0.01, rtol=1e-5)


class ArchitecturesTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    toy.quiet(self)
    self.said = self.enterContext(mock.patch.object(cli, 'say'))

  def settings(self, **flags):
    experiment = architectures.EXPERIMENT
    return toy.make_settings(self.path, experiment, **flags)

  def text(self):
    return '\n'.join(call.args[0] for call in self.said.call_args_list)

  def test_nets(self):
    """All of the paper's figure, and the base net once."""
    found = architectures.nets(self.settings().run)
    self.assertLen(found, 3 * 6 + 3)
    self.assertEqual(found['3 x 80, sigmoid'], (3, 80, 'sigmoid'))
    s = self.settings(units=(5,), depths=(2,), activations=())
    self.assertEqual(list(architectures.nets(s.run)), ['2 x 5, sigmoid'])

  @pytest.mark.slow
  def test_a_whole_run(self):
    """On a tiny net, twice; the second time nothing is run."""
    tiny = {'units': (3,), 'depths': (1,), 'activations': ()}
    sizes = {'num_steps': 4, 'num_test': 2, 'num_tuning': 1, 'batch_size': 4}
    s = self.settings(baselines=('SGD',), rivals=('robust',), **tiny, **sizes)
    architectures.main(s)
    summary = json.loads((self.path / 'summary.json').read_text())
    (rows,) = summary['panels'].values()
    self.assertEqual(list(rows), ['robust', 'SGD'])
    self.assertBetween(rows['SGD']['final'], 0.5, 3.0)
    self.assertIn('robust / best tuned', self.text())
    before = (self.path / 'architectures.png').read_bytes()
    (self.path / 'architectures.png').unlink()
    with mock.patch.object(comparison, 'compare', side_effect=AssertionError):
      architectures.main(s)
    self.assertEqual((self.path / 'architectures.png').read_bytes(), before)

  def test_figure(self):
    """A panel for each depth and one for activations; lines at the base net."""
    nets = {'units': (10, 20), 'depths': (1, 2), 'activations': ('relu',)}
    s = self.settings(**nets, baselines=('SGD',))
    saved = []
    with (
      mock.patch.object(comparison, '_run_all', measured),
      mock.patch.object(comparison, 'rivals', lambda *_: {'mine': None}),
      mock.patch.object(plots, 'save', lambda figure, _: saved.append(figure)),
    ):
      architectures.main(s)
    (figure,) = saved
    self.assertIsInstance(figure, Figure)
    titles = [axis.get_title(loc='left') for axis in figure.axes]
    self.assertEqual(titles[0], '(a) 1 hidden layer, sigmoid')
    self.assertEqual(titles[1], '(b) 2 hidden layers, sigmoid')
    self.assertStartsWith(titles[2], '(c) other activations')
    straight = lambda axis: [
      line.get_xydata().tolist()
      for line in axis.get_lines()
      if line.get_linestyle() == '--' and line.get_color() == 'black'
    ]
    self.assertEqual(
      straight(figure.axes[0]), [[[20, 0], [20, 1]], [[0, 1.0], [1, 1.0]]]
    )
    self.assertEmpty(straight(figure.axes[1]))
    words = [t.get_text() for t in figure.axes[2].get_xticklabels()]
    self.assertEqual(words, ['sigmoid', 'relu'])
    ratios = [line for line in self.text().splitlines() if 'best tuned' in line]
    self.assertEqual(ratios[0].split()[-2:], ['0.50', '0.50'])

  def test_bad_flags(self):
    """One line, before anything is measured or written."""
    cases = {
      'nonesuch': '=nonesuch: no such file or directory',
      'predicted_step_descent': '=predicted_step_descent: is for other ',
    }
    for name, message in cases.items():
      s = self.settings(rivals=(name,), units=(3,), depths=(1, 2))
      with self.assertRaisesRegex(UsageError, message) as error:
        architectures.main(s)
      self.assertLen(str(error.exception).splitlines(), 1)
    self.assertFalse(self.path.exists())


if __name__ == '__main__':
  absltest.main()
