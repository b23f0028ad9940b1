"""Tuning, statistics, tables and files of a comparison."""

import contextlib
import json
import pathlib
import tempfile
import warnings
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import absltest

from experiments.common import baselines, cli, comparison, problems, report, run
from experiments.common.comparison import Comparison, Panel
from experiments.common.problems import Problem
from l2o_jax.base import Optimizee
from l2o_jax.learned_optimizers import (
  lstm_raw,
  predicted_step_descent,
  robust_optimizer,
)
from l2o_jax.optimizees.quadratic import quadratic
from tests.experiments import toy


def parabolas():
  """f = h x² / 2 with h ~ U[1, 3), x_0 = 1."""

  def init(key):
    return jnp.ones(()), jax.random.uniform(key, minval=1.0, maxval=3.0)

  return Optimizee(init, lambda x, h, key: h * x**2 / 2)


KEYS = jax.random.split(jax.random.key(0), 5)
PROBLEM = problems.given(parabolas(), KEYS, 30)
CURVATURES = np.asarray(jax.vmap(parabolas().init)(KEYS)[1])[:, None]


def by_hand(rate, steps=30):
  """Losses of gradient descent, [5, steps + 1]."""
  return CURVATURES / 2 * (1 - rate * CURVATURES) ** (2 * np.arange(steps + 1))


class TuneTest(absltest.TestCase):
  def test_given_functions(self):
    """The very functions of the keys, for all steps."""
    got = problems.runner(PROBLEM, optax.sgd)(0.1)
    np.testing.assert_allclose(got, by_hand(0.1), rtol=1e-5)

  def test_against_all_rates_by_hand(self):
    """The best of ten a decade; those above 2 / 3 diverge on some."""
    for by, score in (('final', lambda x: x[:, -1]), ('mean', np.mean)):
      rates = 10 ** (np.arange(-10, 10) / 10)
      want = rates[np.argmin([score(by_hand(r)).mean() for r in rates])]
      found = problems.tune(PROBLEM, 'SGD', by)
      np.testing.assert_allclose(found['rate'], want, rtol=1e-6)

  def test_rates_beyond_the_grid(self):
    """A flat function needs rates above all that are tried at first."""
    flat = parabolas()._replace(loss=lambda x, h, key: 1e-4 * h * x**2)
    problem = problems.given(Optimizee(*flat), KEYS, 30)
    rate = problems.tune(problem, 'SGD', 'final')['rate']
    self.assertBetween(rate, 1e3, 2e4)

  def test_all_parameters_or_the_rate_alone(self):
    alone = problems.tune(PROBLEM, 'momentum', 'final', 'rate')
    self.assertEqual(alone['momentum'], 0.9)
    both = problems.tune(PROBLEM, 'momentum', 'final', 'all')
    losses = lambda setting: np.asarray(
      problems.runner(
        PROBLEM, lambda: problems.make_baseline('momentum', setting)
      )()
    )[:, -1].mean()
    self.assertLess(losses(both), losses(alone))

  def test_a_line_search_has_no_rate(self):
    setting = problems.tune(PROBLEM, 'CG, line search', 'mean')
    self.assertEqual(set(setting), {'rule'})
    curves = problems.runner(
      PROBLEM, lambda: problems.make_baseline('CG, line search', setting)
    )()
    self.assertLess(float(curves[:, -1].max()), 1e-4)

  def test_everything_diverges(self):
    """A setting all the same, and a line of the log."""
    bad = Optimizee(parabolas().init, lambda x, h, key: h * x**2 / 0.0)
    problem = problems.given(bad, KEYS, 3)
    with mock.patch.object(problems, 'log') as log:
      self.assertIn('rate', problems.tune(problem, 'ADAM', 'final'))
    self.assertIn('ADAM diverges', log.call_args.args[0])


class BaselinesTest(absltest.TestCase):
  def test_adagrad_as_published(self):
    """-rate g / sqrt(sum of g²), the sum from 0: a step of `rate` at first."""
    opt = problems.make_baseline('AdaGrad', {'rate': 0.5})
    state = opt.init(np.float32([0, 0]))
    first, state = opt.update(np.float32([0.01, -3]), state)
    np.testing.assert_allclose(first, [-0.5, 0.5], rtol=1e-3)
    second, _ = opt.update(np.float32([0.01, 4]), state)
    np.testing.assert_allclose(second, [-0.5 / 2**0.5, -0.4], rtol=1e-3)

  def test_adam_decaying(self):
    """A constant gradient: steps of rate / sqrt(1 + t / 10)."""
    opt = problems.make_baseline('ADAM_decaying', {'rate': 0.5})
    state, steps = opt.init(0.0), []
    for _ in range(31):
      step, state = opt.update(np.float32(3), state)
      steps.append(float(step))
    np.testing.assert_allclose([steps[0], steps[30]], [-0.5, -0.25], rtol=1e-4)

  def test_every_baseline_descends(self):
    """With its default parameters; strings, integers and floats alike."""
    for name, baseline in baselines.TABLE.items():
      values = {k: v[0] for k, v in baseline.parameters.items()}
      rate = {} if baseline.searches else {'rate': 0.05}
      make = lambda name=name, s=rate | values: problems.make_baseline(name, s)
      losses = problems.runner(PROBLEM._replace(num_steps=10), make)()
      self.assertTrue(np.all(losses[:, -1] < losses[:, 0]), name)


class ReportTest(absltest.TestCase):
  def test_ranks(self):
    """What diverged comes last."""
    curves = {
      'a': np.array([[1.0, 0.5]]),
      'b': np.array([[1.0, np.nan]]),
      'c': np.array([[1.0, 0.4]]),
      'd': np.array([[0.2, 0.6]]),
    }
    rows = report.statistics(curves, {'a': {'rate': 0.1}})
    self.assertEqual([rows[n]['rank_by_mean'] for n in 'abcd'], [3, 4, 2, 1])
    self.assertEqual([rows[n]['rank_by_final'] for n in 'abcd'], [2, 4, 1, 3])
    text = report.table('title', run.without_nan(rows), 'final')
    order = [line.split()[0] for line in text.splitlines()[3:]]
    self.assertEqual(order, ['c', 'a', 'd', 'b'])
    self.assertIn('rate 0.1', text)
    self.assertIn('diverges', text.splitlines()[-1])

  def test_standard_error_by_hand(self):
    """√(Σ (x - 7/3)² / 2) / √3 of 1, 2, 4; of one task nothing is known."""
    of = lambda *final: np.stack([np.ones(len(final)), final], 1)
    rows = report.statistics({'three': of(1.0, 2, 4), 'one': of(0.5)}, {})
    found = rows['three']['final_stderr']
    self.assertAlmostEqual(found, (7 / 3 / 3) ** 0.5, places=12)
    text = report.table('title', run.without_nan(rows), 'final')
    errors = [line.split()[3] for line in text.splitlines()[3:]]
    self.assertEqual(errors, ['–', '0.88'])

  def test_margin_by_hand(self):
    """The best competitor of each function and step; divergence is no win."""
    inf = np.inf
    losses = {
      'mine': np.array([[4.0, 1.0, 2.0], [8.0, 8.0, 8.0]]),
      'a': np.array([[4.0, 3.0, 1.0], [8.0, 9.0, inf]]),
      'b': np.array([[4.0, 2.0, 5.0], [8.0, inf, np.nan]]),
    }
    of = lambda *others: report.margin(losses, 'mine', others).mean(0)
    np.testing.assert_allclose(of('a', 'b'), [0, 0.5, -0.5])
    np.testing.assert_allclose(of('b'), [0, 0.5, 1])
    margins = report.margins(losses, 'mine', ('a', 'b'))
    self.assertEqual(list(margins), ['a, b', 'a', 'b'])
    rows = report.victory(margins, horizon=2)
    self.assertEqual(rows['a, b']['mean_2_to_horizon'], -0.5)
    self.assertIsNone(rows['a, b']['positive_after'])

  def test_ties_share_a_rank(self):
    """Nobody is ahead where several diverge."""
    found = report.ranks([2.0, 1.0, np.nan, 2.0, np.inf])
    self.assertEqual(found, [2.5, 1.0, 4.5, 2.5, 4.5])

  def test_no_nan_in_json(self):
    found = run.without_nan({'a': [1.0, np.nan], 'b': {'c': -np.inf}})
    self.assertEqual(found, {'a': [1.0, None], 'b': {'c': None}})


@pytest.mark.slow
class CompareTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    directory = self.enterContext(tempfile.TemporaryDirectory())
    self.path = pathlib.Path(directory) / 'run'
    self.enterContext(mock.patch.object(comparison, 'log'))
    self.settings = toy.make_settings(self.path)

  def compare(self, theta, **how):
    """The files that are written, and what is printed."""
    said = []
    problem = Problem(parabolas(), KEYS, 6)
    panels = [Panel('short', problem, problem)]
    panels.append(Panel('long', problem, problem._replace(num_steps=12)))
    learned = {'mine': (toy.LEARNED, theta)}
    s = Comparison(num_test=5, baselines=('SGD', 'momentum'))
    with (
      run.opened(toy.EXPERIMENT, self.settings) as path,
      mock.patch.object(report, 'say', said.append),
    ):
      comparison.compare(path, learned, panels, s, **how)
    return json.loads((self.path / 'summary.json').read_text()), said[0]

  def test_files_and_tables(self):
    theta = toy.LEARNED.init(jax.random.key(0))
    how = {'margin_over': ('SGD', 'momentum'), 'horizon': 6}
    summary, text = self.compare(theta, **how, extra={'more': 1})
    self.assertEqual(list(summary['panels']), ['short', 'long'])
    self.assertEqual(set(summary['mean_rank']), {'mine', 'SGD', 'momentum'})
    self.assertEqual(summary['more'], 1)
    self.assertIn('margin of victory over', text)
    self.assertIn('mean rank', text)
    self.assertEqual(
      list(summary['margin_of_victory']), ['SGD, momentum', 'SGD', 'momentum']
    )
    curves = report.read_curves(self.path / 'curves.csv')
    self.assertLen(curves['short']['mine']['mean'], 7)
    self.assertLen(curves['margin of victory']['SGD']['mean'], 13)
    self.assertTrue((self.path / 'learning_curves.png').exists())
    record = json.loads((self.path / 'run.json').read_text())
    self.assertTrue(record['finished'])

  def test_a_learned_optimizer_that_diverges(self):
    """Files are valid, and numpy does not warn (B.6, D.2)."""
    theta = toy.LEARNED.init(jax.random.key(0))
    theta['linear']['b'] += 1e30
    with warnings.catch_warnings():
      warnings.simplefilter('error')
      summary, text = self.compare(theta, margin_over=('SGD',), horizon=6)
    self.assertIsNone(summary['panels']['short']['mine']['final'])
    self.assertIn('diverges', text)
    self.assertIsNone(summary['margin_of_victory']['SGD']['mean_2_to_horizon'])
    self.assertTrue((self.path / 'learning_curves.png').exists())

  def test_a_killed_comparison_goes_on(self):
    """What was found is not run again, unless its file is damaged."""
    theta = toy.LEARNED.init(jax.random.key(0))
    whole, text = self.compare(theta)
    (self.path / 'run.json').unlink()
    for file in ('curves.csv', 'summary.json', 'learning_curves.png'):
      (self.path / file).unlink()
    ran, its_tune = [], problems.tune

    def tune(problem, name, *args):
      ran.append(name)
      if len(ran) == 2:
        raise KeyboardInterrupt
      return its_tune(problem, name, *args)

    with mock.patch.object(problems, 'tune', tune):
      with self.assertRaises(KeyboardInterrupt):
        self.compare(theta)
      parts = self.path / comparison.PARTS
      self.assertEqual(
        sorted(f.name for f in parts.iterdir()), ['0_0.npz', '0_1.npz']
      )
      (parts / '0_0.npz').write_bytes(b'damaged')
      again, text_again = self.compare(theta)
    self.assertEqual(ran, ['SGD', 'momentum', 'momentum'])
    self.assertEqual((again, text_again), (whole, text))
    self.assertFalse(parts.exists())
    lines = [call.args[0] for call in comparison.log.call_args_list]
    self.assertTrue(any('0_0.npz' in line for line in lines), lines)

  def test_results_are_written_before_they_are_printed(self):
    """A standard output that takes nothing loses nothing (B.5)."""
    theta = toy.LEARNED.init(jax.random.key(0))
    problem = Problem(parabolas(), KEYS, 6)
    panels = [Panel('short', problem, problem)]
    full = mock.patch.object(report, 'say', side_effect=OSError(28, 'full'))
    with run.opened(toy.EXPERIMENT, self.settings) as path:
      with full, self.assertRaises(OSError):
        comparison.compare(
          path, {'mine': (toy.LEARNED, theta)}, panels, Comparison()
        )
    for name in ('summary.json', 'curves.csv', 'learning_curves.png'):
      self.assertTrue((self.path / name).exists(), name)

  @pytest.mark.slow
  def test_a_finished_run_is_shown_again(self):
    """At once, from its files; not where one of them is lost (G.4)."""
    theta = toy.LEARNED.init(jax.random.key(0))
    _, text = self.compare(theta)
    self.assertFalse(comparison.shown(toy.EXPERIMENT, self.settings))
    from l2o_jax.theta_files import save_learned

    save_learned(self.path / 'theta.npz', toy.LEARNED, theta)
    (self.path / 'learning_curves.png').unlink()
    said = []
    with mock.patch.object(report, 'say', said.append):
      self.assertTrue(comparison.shown(toy.EXPERIMENT, self.settings))
    self.assertEqual(said, [text])
    self.assertTrue((self.path / 'learning_curves.png').exists())
    self.assertIn('finished', comparison.log.call_args.args[0])
    full = mock.Mock(side_effect=OSError('no space left'))
    with mock.patch.object(report, 'say', said.append):
      self.assertTrue(
        comparison.shown(toy.EXPERIMENT, self.settings, draw=full)
      )
    self.assertEqual(said, [text] * 2)
    (self.path / 'summary.json').write_text('{"panels": 3}')
    self.assertFalse(comparison.shown(toy.EXPERIMENT, self.settings))

  def test_names(self):
    """Curves bear the names of the papers (G.8)."""
    self.assertEqual(
      comparison.name_of(lstm_raw()), 'LSTM (Andrychowicz et al.)'
    )
    psd = predicted_step_descent()
    self.assertEqual(comparison.name_of(psd), 'Predicted Step Descent')
    self.assertEqual(comparison.name_of(robust_optimizer()), 'robust')
    alone = robust_optimizer(agreement=None, warmup=0)
    self.assertEqual(comparison.name_of(alone), 'robust_coordinatewise')
    for other in {'agreement': None}, {'warmup': 0}, {'scale': 0.2}:
      name = comparison.name_of(robust_optimizer(**other))
      self.assertEqual(name, 'schedule-free Adam, gated')
    self.assertEqual(comparison.name_of(robust_optimizer(8)), 'gated LSTM')
    toy.train(self.path)
    again = self.path / 'theta.npz'
    other = self.path / 'checkpoints' / 'theta.npz'
    other.write_bytes(again.read_bytes())
    name = 'LSTM (Andrychowicz et al.)'
    once = comparison.rivals([str(self.path)] * 2, parabolas())
    self.assertEqual(list(once), [name])
    thrice = [str(self.path), str(again), str(other)]
    thrice = comparison.rivals(thrice, parabolas())
    names = [name, f'{name} (theta.npz)', f'{name} ({other})']
    self.assertEqual(list(thrice), names)
    packaged = comparison.rivals(['quadratics'], parabolas())
    self.assertEqual(list(packaged), [name])
    own = comparison.contenders(toy.LEARNED, (), self.settings, once)
    self.assertEqual(list(own)[0], 'LSTM (Andrychowicz et al.) (this run)')
    with self.assertRaisesRegex(cli.UsageError, '--rivals=/nowhere'):
      comparison.rivals(['/nowhere'], parabolas())

  def test_rivals_for_other_parameters(self):
    """Found before any meta-training (D.1)."""
    theta = predicted_step_descent({'w': 'w'}).init(jax.random.key(0))
    other = None, predicted_step_descent({'w': 'w'}), theta
    with (
      mock.patch.object(run, 'rebuild', return_value=other),
      self.assertRaisesRegex(cli.UsageError, '--rivals=elsewhere: '),
    ):
      comparison.rivals(['elsewhere'], parabolas())


class NamesTest(absltest.TestCase):
  def test_a_directory_of_the_name_of_a_pretrained_optimizer(self):
    """`robust` is the package's; `./robust` and `robust/` are not."""
    folder = self.enterContext(tempfile.TemporaryDirectory())
    with contextlib.chdir(folder):
      toy.train('robust')
      for name in './robust', 'robust/':
        ((one, _),) = comparison.rivals([name], quadratic(2)).values()
        self.assertEqual(one.call['name'], 'lstm_raw')
      ((one, _),) = comparison.rivals(['robust'], quadratic(2)).values()
    self.assertEqual(one.call['name'], 'robust_optimizer')

  def test_labels(self):
    label = lambda text: comparison.label_of(pathlib.Path(text))
    self.assertEqual(label('a/b/c.npz'), 'b/c.npz')
    self.assertEqual(label('_best.npz'), './_best.npz')
    self.assertEqual(label('.'), pathlib.Path.cwd().name)


if __name__ == '__main__':
  absltest.main()
