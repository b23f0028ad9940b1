"""The judgement: by hand on toy results, and a whole run on a small task."""

import json
import pathlib
import tempfile
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import absltest, parameterized

import l2o_jax
from experiments import evaluate
from experiments.common import cli, judging, run, tasks, verdict
from experiments.common.judging import Contender
from experiments.common.settings import UsageError
from experiments.common.tasks import Task
from l2o_jax import Optimizee
from tests import quick
from tests.experiments import toy

FLAGS = {
  'task': ('robust_regression',),
  'horizons': (100,),
  'num_test': 2,
  'baselines': ('ADAM, cosine',),
}


def end(*losses, diverged=0, rose=0):
  return {'loss': list(losses), 'diverged': diverged, 'rose': rose}


class VerdictTest(parameterized.TestCase):
  def test_interquartile_mean(self):
    self.assertEqual(verdict.interquartile_mean([0, 1, 2, 100]), 1.5)
    x = [0, 1, 2, 3, 4, 5, np.inf, np.nan]
    self.assertEqual(verdict.interquartile_mean(x), 3.5)
    for x in ([1, 2, np.inf, np.inf], [1, np.inf, np.inf, np.inf]):
      self.assertEqual(verdict.interquartile_mean(x), np.inf)

  def test_by_hand(self):
    results = {
      'a': {'ADAM': {100: end(1.0, 3.0)}, 'mine': {100: end(1.0, 1.0)}},
      'b': {
        'ADAM': {100: end(10.0, 10.0)},
        'mine': {100: end(20.0, None, diverged=1)},
      },
    }
    rows = verdict.aggregate(results, [100])[100]
    # mine: 0.5, 0.5, 2, inf; between the quartiles: 0.5 and 2.
    self.assertEqual(rows['mine']['interquartile_mean'], 1.25)
    self.assertEqual(rows['ADAM']['interquartile_mean'], 1.0)
    self.assertEqual(rows['mine']['mean_rank'], 1.5)
    self.assertEqual(rows['mine']['ahead_of_adam'], 1)
    self.assertEqual(rows['mine']['diverged'], 1)
    self.assertEqual(rows['mine']['worst'], np.inf)
    # Of the seeds drawn, a quarter has inf twice: 0.5, 0.5, inf, inf.
    self.assertEqual(rows['mine']['interval'], [1.25, np.inf])
    ratios = verdict.mean_ratios(results, [100])
    self.assertEqual(ratios[100]['a'], {'ADAM': 1.0, 'mine': 0.5})

  @parameterized.parameters(np.nan, np.inf, None)
  def test_tuned_adam_has_diverged(self, lost):
    """Then nobody is ahead of it; nan, inf and null are one."""
    of_task = {'ADAM': {100: end(1.0, lost)}, 'mine': {100: end(1.0, 2.0)}}
    rows = verdict.aggregate({'a': of_task}, [100])[100]
    self.assertEqual(rows['mine']['interquartile_mean'], 1.0)
    self.assertEqual(rows['mine']['ahead_of_adam'], 0)
    of_task['mine'], of_task['ADAM'] = of_task['ADAM'], of_task['mine']
    rows = verdict.aggregate({'a': of_task}, [100])[100]
    self.assertEqual(rows['mine']['worst'], np.inf)

  def test_horizons_in_any_order(self):
    """What stands beside the losses is of the longest."""
    more = {'rate': 1.0, 'ms': 1.0, 'curve': [2.0, 2.0, 1.0]}
    of_task = {'ADAM': {h: end(1.0) | more for h in (200, 100)}}
    text = verdict._task_table('a', of_task, (200, 100), 100)
    self.assertIn('the rest at 200', text)
    self.assertEqual(text.split()[-1], '200')

  def test_a_diverged_optimizer_in_the_table(self):
    """inf, neither nan nor the largest float."""
    lost = end(None, None, diverged=2)
    results = {'a': {'ADAM': {100: end(1, 1)}, 'lost': {100: lost}}}
    rows = verdict.aggregate(results, [100])[100]
    self.assertEqual(rows['lost']['interval'], [np.inf, np.inf])
    last = verdict._overall_table(rows, 100).splitlines()[-1]
    row = ['lost', 'inf', 'inf', '…', 'inf', '2.00', 'inf', '0/1', '2/2']
    self.assertEqual(last.split(), row)

  def test_steps_and_milliseconds_by_hand(self):
    """One needs a third of the steps of tuned Adam, and twice its time."""
    row = lambda curve, ms, **more: {
      300: end(curve[-1])
      | {'curve': curve, 'quartiles': [curve, curve], 'ms': ms, **more}
    }
    of_task = {
      'ADAM': row([4.0, 3.0, 2.0, 1.0], 1.0, flops=10.0),
      'quick': row([4.0, 0.9, 0.5, 0.1], 6.0, flops=40.0),
      'never': row([4.0, None, 3.0, 2.0], 1.0, flops=10.0),
    }
    steps = lambda name: verdict.steps_to_target(of_task, name, 100)
    self.assertEqual([steps('ADAM'), steps('quick')], [300, 100])
    self.assertEqual(steps('never'), np.inf)
    panels, labels = verdict.cost_curves({'a': of_task}, 100)
    self.assertEqual(list(labels.values()), ['steps', 'ms', 'GFLOPs'])
    x = [curves['quick']['step'][1] for curves in panels.values()]
    np.testing.assert_allclose(x, [100, 600, 4e-6])

  def test_a_loop_has_no_count(self):
    """XLA would count its body once."""
    init = lambda key: (jnp.ones(3), ())
    square = lambda x, task, key: jnp.sum(x * jax.random.normal(key, (3,)))

    def looped(x, task, key):
      return jax.lax.scan(lambda c, x: (c + x**2, None), 0.0, x)[0]

    sgd = Contender(lambda rate, steps: optax.sgd(rate), (1e-2,))
    ms, flops = judging._cost(sgd, Task(Optimizee(init, square)))
    self.assertGreater(min(ms, flops), 0)
    _, flops = judging._cost(sgd, Task(Optimizee(init, looped)))
    self.assertIsNone(flops)


class JudgingTest(absltest.TestCase):
  def test_the_grid_grows_at_both_ends(self):
    """As far as `FURTHER` rates; one rate is not tuned."""
    apart = lambda best: lambda r: abs(np.log10(r / best))
    for best in 1e-6, 1e-2, 1e4:
      found = judging._best((1e-3, 1e-2, 1e-1), apart(best))
      np.testing.assert_allclose(found, best, rtol=1e-6)
    far = judging._best((1e-3, 1e-2, 1e-1), apart(1e30))
    np.testing.assert_allclose(far, 10.0 ** (judging.FURTHER - 1), rtol=1e-6)
    self.assertEqual(judging._best((0.3,), lambda r: 1 / 0), 0.3)

  def task(self):
    """f(x) = x² from x_0 = 1, and 2 x² on data that were held out."""
    init = lambda key: (jnp.ones(1), ())
    f = Optimizee(init, lambda x, task, key: jnp.sum(x**2))
    twice = jax.tree_util.Partial(lambda x: (2 * jnp.sum(x**2), 0.5))
    return Task(f, twice)

  def test_gradient_descent_by_hand(self):
    """x_t = (1 - 2 r)^t: the best rate, beyond the end of those given."""
    usable = lambda rate: jnp.where(rate > 2e-3, 0.0, rate)
    make = lambda rate, steps: optax.sgd(usable(rate))
    sgd = Contender(make, (1e-5, 1e-4))
    found = judging.judged(sgd, self.task(), (100, 300), 1, 2)
    for horizon in (100, 300):
      want = (1 - 2e-3) ** (2 * horizon)
      row = found[horizon]
      self.assertAlmostEqual(row['rate'], 1e-3)
      np.testing.assert_allclose(row['loss'], [want, want], rtol=1e-3)
      np.testing.assert_allclose(row['held_out'], np.multiply(2, row['loss']))
      np.testing.assert_allclose(row['norm'], np.sqrt(row['loss']), rtol=1e-4)
      self.assertEqual(row['accuracy'], [0.5, 0.5])
      self.assertEqual((row['diverged'], row['rose']), (0, 0))

  def test_what_diverges_and_what_rises(self):
    up = Contender(lambda rate, steps: optax.sgd(rate), (1.01,))
    found = judging.judged(up, self.task(), (100,), 1, 3)[100]
    self.assertEqual((found['diverged'], found['rose']), (3, 0))

    def there_and_back(rate, steps):
      rate = lambda t: jnp.where(t < 100, 0.004, -0.004)
      return optax.sgd(rate)

    back = Contender(there_and_back, (1.0,))
    found = judging.judged(back, self.task(), (100, 200), 1, 2)
    self.assertEqual((found[100]['rose'], found[200]['rose']), (0, 2))

  def test_a_schedule_ends_with_the_run(self):
    seen = []

    def make(rate, steps):
      seen.append(steps)
      return optax.sgd(optax.linear_schedule(rate, 0.0, steps))

    one = Contender(make, (1e-2,), scheduled=True)
    judging.judged(one, self.task(), (100, 200), 1, 1)
    self.assertEqual(set(seen), {100, 200})


class TasksTest(parameterized.TestCase):
  @parameterized.named_parameters((name, name) for name in tasks.KINDS)
  def test_starts_and_has_gradients(self, name):
    """At chance for images and text, where nothing has been learned before.

    Every parameter has some gradient.
    """
    task = tasks.make(name)
    f, key = task.optimizee, jax.random.key(0)

    @jax.jit
    def start(f, key):
      params, drawn = f.init(key)
      return params, jax.value_and_grad(f.loss)(params, drawn, key)

    params, (loss, grads) = start(f, key)
    self.assertTrue(np.isfinite(loss))
    moved = [np.any(g != 0) for g in jax.tree.leaves(grads)]
    self.assertTrue(all(moved), name)
    if task.held_out is not None:
      held_out, accuracy = jax.jit(lambda h, x: h(x))(task.held_out, params)
      self.assertTrue(np.isfinite(held_out))
      begun = name == 'warm_start' and accuracy > 0.85
      self.assertTrue(np.isnan(accuracy) or accuracy < 0.35 or begun)


class ContendersTest(absltest.TestCase):
  def test_a_theta_that_is_named_twice_is_judged_once(self):
    named = evaluate.Judgement(theta=('robust', 'mnist_gated', 'robust'))
    found = evaluate.learned_contenders(named)
    self.assertEqual(list(found), ['robust', 'mnist_gated'])


class EvaluateTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    directory = self.enterContext(tempfile.TemporaryDirectory())
    self.path = pathlib.Path(directory) / 'run'
    self.enterContext(mock.patch.object(cli, 'log'))
    self.said = self.enterContext(mock.patch.object(cli, 'say'))

  def settings(self, **flags):
    flags = {**FLAGS, **flags}
    return toy.make_settings(self.path, evaluate.EXPERIMENT, **flags)

  @pytest.mark.slow
  def test_a_whole_run(self):
    """All files and tables; a row that is there is not run again."""
    s = self.settings(tune_theta=True)
    evaluate.main(s)
    names = {'robust', 'robust, steps tuned', 'ADAM'}
    summary = json.loads((self.path / 'summary.json').read_text())
    self.assertEqual(set(summary['100']), names | {'ADAM 1e-3', 'ADAM, cosine'})
    text = self.said.call_args_list[0].args[0]
    self.assertIn('robust_regression: mean loss', text)
    self.assertIn('loss over the loss of Adam', text)
    self.assertTrue((self.path / 'ratios.png').exists())
    self.assertTrue((self.path / 'curves.png').exists())
    with mock.patch.object(judging, 'judged', side_effect=AssertionError):
      evaluate.main(s)
    file = self.path / 'results.jsonl'
    lines = file.read_text().splitlines()
    file.write_text('\n'.join(lines[:-1]) + '\n' + lines[-1][:20])
    evaluate.main(s)
    again = file.read_text().splitlines()
    without_time = lambda line: line.rpartition('"ms"')[0]
    self.assertEqual(*map(without_time, (again[-1], lines[-1])))
    self.assertEqual(again[:-1], lines[:-1])

  def test_another_theta_of_the_same_name_is_refused(self):
    """A file that was written anew is judged in a directory of its own."""
    file = self.path.parent / 'theta.npz'
    learned, theta = l2o_jax.pretrained('robust')
    l2o_jax.save_learned(file, learned, theta)
    s = self.settings(theta=(str(file),))
    for _ in range(2):
      with run.opened(evaluate.EXPERIMENT, s):
        pass
    other = jax.tree.map(lambda x: x + 1, theta)
    l2o_jax.save_learned(file, learned, other)
    with self.assertRaisesRegex(UsageError, f'{file} was another file'):
      evaluate.main(s)

  def test_a_theta_for_other_parameters(self):
    """Found before anything is run or written."""
    with self.assertRaisesRegex(UsageError, '--theta=cifar10: is for other'):
      evaluate.main(self.settings(theta=('cifar10',)))
    with self.assertRaisesRegex(UsageError, 'its state has 7e.08 numbers'):
      evaluate.main(
        self.settings(theta=('quadratics_ntm_bfgs',), task=('wide',))
      )
    self.assertFalse(self.path.exists())

  def test_weight_decay(self):
    """It is part of the gradient: without one, parameters still shrink."""
    rivals = evaluate.contenders(self.settings(weight_decay=(0.1,)).run)
    x = jnp.array([1.0, -2.0, 0.0])

    def signs(name):
      one = rivals[name]
      opt = one.make(1.0, 100, *one.arguments)
      return np.sign(opt.update(jnp.zeros(3), opt.init(x), x)[0]).tolist()

    self.assertEqual(signs('robust'), [0, 0, 0])
    self.assertEqual(signs('robust, decay 0.1'), [-1, 1, 0])

  def test_average(self):
    """Those that average are judged there, too; others have no such row."""
    flags = {'average': True, 'theta': ('robust', 'quadratics')}
    rivals = evaluate.contenders(self.settings(**flags).run)
    names = {name for name in rivals if 'average' in name}
    self.assertEqual(names, {'robust, average'})
    average, x = rivals['robust, average'], jnp.ones(3)
    self.assertIsNone(rivals['robust'].point)
    opt = average.make(0.5, 100, *average.arguments)
    state, update = opt.init(x), quick.jit(opt.update)
    for _ in range(3):
      updates, state = update(2 * x, state, x)
      x = optax.apply_updates(x, updates)
    (theta,) = average.arguments
    found = average.point(state, x, 0.5, *average.arguments)
    np.testing.assert_array_equal(
      found, l2o_jax.eval_params(theta, state, x, 0.5)
    )
    self.assertGreater(np.abs(found - x).min(), 1e-4)

  def test_bad_flags(self):
    with self.assertRaisesRegex(UsageError, 'horizons=150 is not a multiple'):
      evaluate.check(self.settings(horizons=(150,)))


if __name__ == '__main__':
  absltest.main()
