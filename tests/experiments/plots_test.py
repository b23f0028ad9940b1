"""Pictures: what is in them, whatever diverges."""

import pathlib
import tempfile
import warnings
from unittest import mock

import numpy as np
import pytest
from absl.testing import absltest
from matplotlib.figure import Figure

from experiments.common import panels, plots


def curve(values):
  values = np.asarray(values, float)
  step = np.arange(len(values), dtype=float)
  low, high = 0.8 * values, 1.2 * values
  return {'step': step, 'mean': values, 'quartile_1': low, 'quartile_3': high}


class PlotsTest(absltest.TestCase):
  def draw(self, panels, learned=('mine',)):
    """The figure that is saved."""
    directory = self.enterContext(tempfile.TemporaryDirectory())
    path = pathlib.Path(directory) / 'learning_curves.png'
    saved = []
    real = Figure.savefig

    def save(figure, *args, **kwargs):
      saved.append(figure)
      real(figure, *args, **kwargs)

    with mock.patch.object(Figure, 'savefig', save):
      with warnings.catch_warnings():
        warnings.simplefilter('error')
        plots.learning_curves(path, panels, learned)
    self.assertEqual(path.read_bytes()[:4], b'\x89PNG')
    return saved[0]

  def test_any_curves(self):
    """All that there is, in a panel for each quantity."""
    directory = self.enterContext(tempfile.TemporaryDirectory())
    path = pathlib.Path(directory) / 'panels.png'
    mine = panels.curve(range(3), [[1, 2], [1e-3, 1], [1e-6, 1]])
    other = panels.curve(range(2), [1, 0.1])
    found = {'loss': {'mine': mine, 'SGD': other}, '|step|': {'mine': mine}}
    picture = panels.Picture('title', 2, 'step', 'size', yscale='log')
    with warnings.catch_warnings():
      warnings.simplefilter('error')
      panels.draw(path, picture, found, plots.looks(['mine', 'SGD'], ['mine']))
    self.assertEqual(path.read_bytes()[:4], b'\x89PNG')

  def test_one_legend_and_letters(self):
    """Names once, outside of the panels; panels (a), (b), ..."""
    curves = {'mine': curve([2, 1, 0.3]), 'SGD': curve([2, 1.5, 1])}
    figure = self.draw(
      {'one': curves, 'two': curves, 'three': curves} | {'four': curves}
    )
    self.assertLen(figure.legends, 1)
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    self.assertEqual(names, ['mine', 'SGD'])
    shown = [axis for axis in figure.axes if axis.axison]
    titles = [axis.get_title(loc='left') for axis in shown]
    self.assertEqual(titles, ['(a) one', '(b) two', '(c) three', '(d) four'])
    for axis in shown:
      self.assertIsNone(axis.get_legend())

  @pytest.mark.slow
  def test_more_panels_than_letters(self):
    curves = {'mine': curve([2, 1, 0.3])}
    figure = self.draw({f'task {i}': curves for i in range(28)})
    titles = [axis.get_title(loc='left') for axis in figure.axes]
    self.assertEqual(
      titles[25:28], ['(z) task 25', '(aa) task 26', '(ab) task 27']
    )

  def test_plain_numbers(self):
    figure = self.draw({'one': {'mine': curve([3, 1, 0.15])}})
    labels = [t.get_text() for t in figure.axes[0].get_yticklabels()]
    self.assertIn('0.2', labels)
    self.assertFalse(any('10^' in label for label in labels))

  def test_a_rival_that_diverges_does_not_set_the_range(self):
    curves = {
      'mine': curve([2, 1, 0.3]),
      'SGD': curve([2, 1e6, np.inf]),
      'CG': curve([2, np.nan, np.nan]),
    }
    low, high = self.draw({'one': curves}).axes[0].get_ylim()
    self.assertBetween(low, 0.1, 0.3)
    self.assertBetween(high, 2, 4)

  def test_long_curves_are_means_of_stretches(self):
    """The start, then a hundred means; short curves as they are."""
    noisy = np.append(9.0, np.tile([1.0, 3.0], 500))
    for values, steps, losses in (
      (noisy, [0, *np.arange(5.5, 1000, 10)], [9, *[2] * 100]),
      (noisy[:400], np.arange(400), noisy[:400]),
    ):
      line = self.draw({'one': {'mine': curve(values)}}).axes[0].lines[0]
      np.testing.assert_allclose(line.get_xdata(), steps)
      np.testing.assert_allclose(line.get_ydata(), losses)

  def test_nothing_finite(self):
    self.draw({'one': {'mine': curve([np.nan] * 3)}})
    self.draw({'one': {'mine': curve([1, np.inf, np.inf])}})

  def test_a_rival_that_is_nowhere_finite(self):
    self.draw({'one': {'mine': curve([2, 1]), 'SGD': curve([np.nan, np.nan])}})

  def test_margins(self):
    """A linear axis around 0, as high as the first needs."""
    curves = {'all': curve([0, 0, 0.1, 0.2]), 'SGD': curve([0, 5, -90, 3])}
    axis = self.draw({'margin of victory': curves}).axes[0]
    self.assertEqual(axis.get_yscale(), 'linear')
    np.testing.assert_allclose(axis.get_ylim(), [-0.4, 1.0])

  def test_readable_in_grey(self):
    """No two curves of the same dashes and marker."""
    names = ['mine', *'abcdefgh']
    styles = plots.looks(names, ['mine'])
    looks = {(s.get('ls'), s.get('marker')) for s in styles.values()}
    self.assertLen(looks, len(names))
    self.assertGreater(styles['mine']['lw'], styles['a']['lw'])

  def test_many_learned_optimizers_look_apart(self):
    names = [f'theta {i}' for i in range(20)]
    styles = plots.looks(names, names)
    looks = {(s['color'], s['ls']) for s in styles.values()}
    self.assertLen(looks, 20)
    self.assertEqual({styles[n]['ls'] for n in names[:6]}, {'-'})


if __name__ == '__main__':
  absltest.main()
