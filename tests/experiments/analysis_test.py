"""What is measured of an optimizer, against formulas of known ones."""

import json
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import absltest, parameterized

from experiments import analysis
from experiments.common import anatomy, cli, panels, responses
from experiments.common.responses import Record
from experiments.common.settings import UsageError
from l2o_jax.optimizees.quadratic import quadratic
from tests.experiments import toy

T, C = 12, 3
LIKE = {'a': jnp.zeros((2, 2)), 'b': jnp.zeros(1)}
RANDOM = np.random.default_rng(0)
GRADIENTS = RANDOM.normal(size=(T, 5)).astype(np.float32)
RECORD = Record(
  jnp.asarray(GRADIENTS), jnp.zeros((T, 5)), jnp.ones(T, jnp.float32)
)
CHOSEN = [4, 0, 2]


def by_norm():
  """u = -g / |g|: coordinates that communicate, without a state."""

  def update(g, state, x=None):
    del x
    norm = optax.tree.norm(g)
    return jax.tree.map(lambda g: -g / norm, g), state

  return optax.GradientTransformation(lambda x: (), update)


def subject(opt, communicates):
  return responses.subject(opt, RECORD, CHOSEN, LIKE if communicates else None)


def adam_by_hand(gradients, rate=0.1):
  """The last update of ADAM after these gradients [T, ...]."""
  m = v = 0.0
  for g in gradients:
    m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
  t = len(gradients)
  return -rate * m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)


class ResponsesTest(parameterized.TestCase):
  @parameterized.parameters(False, True)
  def test_proposals(self, communicates):
    got = responses.proposals(subject(optax.adam(0.1), communicates))
    want = [adam_by_hand(GRADIENTS[: t + 1, CHOSEN]) for t in range(T)]
    np.testing.assert_allclose(got, want, rtol=1e-4)

  @parameterized.parameters(False, True)
  def test_sweep(self, communicates):
    """ADAM with another last gradient."""
    new = np.linspace(-3, 3, 7)[:, None] * np.array([1.0, 2.0, 0.1])
    got = responses.sweep(subject(optax.adam(0.1), communicates))(4, new)
    past = GRADIENTS[:4, CHOSEN]
    want = [adam_by_hand([*past, row]) for row in new]
    np.testing.assert_allclose(got, want, rtol=1e-4)

  def test_sweep_of_one_among_others(self):
    """The others keep the gradients that they had."""
    new = np.array([[2.0, 2.0, 2.0]])
    got = responses.sweep(subject(by_norm(), True))(3, new)
    g = GRADIENTS[3]
    rest = [np.sum(g**2) - g[i] ** 2 for i in CHOSEN]
    want = -2.0 / np.sqrt(np.add(rest, 4.0))
    np.testing.assert_allclose(got[0], want, rtol=1e-5)

  @parameterized.parameters(False, True)
  def test_impulse(self, communicates):
    """-rate 0.9^k, whatever the gradients are."""
    opt = optax.sgd(0.5, momentum=0.9)
    got = responses.impulse(subject(opt, communicates), 6)(3)
    want = -0.5 * 0.9 ** np.arange(6)
    np.testing.assert_allclose(got, np.repeat(want[:, None], C, 1), rtol=1e-5)

  def test_impulse_is_the_derivative(self):
    """Of ADAM's next updates by hand, by differences."""
    respond = responses.impulse(subject(optax.adam(0.1), False), 4)
    past = GRADIENTS[:, CHOSEN].astype(np.float64)
    more, less = past.copy(), past.copy()
    more[2], less[2] = past[2] + 1e-5, past[2] - 1e-5
    of = lambda g: np.array([adam_by_hand(g[: t + 1]) for t in range(2, 6)])
    want = (of(more) - of(less)) / 2e-5
    np.testing.assert_allclose(respond(2), want, rtol=1e-3, atol=1e-5)

  def test_time_scale(self):
    """0 for one step alone; μ / (1 - μ) for momentum."""
    k = np.arange(400)[:, None]
    r = np.concatenate([k == 0, -(0.9**k), 0.5**k], 1)
    np.testing.assert_allclose(responses.time_scale(r), [0, 9, 1], rtol=1e-6)

  def test_recorded(self):
    """x_{t+1} = x_t + u_t, u = -rate g; f as it is at x_t."""
    f, key = quadratic(3), jax.random.key(0)
    record, updates, x = responses.recorded(f, optax.sgd(0.1), key, 5)
    np.testing.assert_allclose(updates, -0.1 * record.gradients, rtol=1e-5)
    moved = record.params[:-1] + updates[:-1]
    np.testing.assert_allclose(record.params[1:], moved, rtol=1e-5, atol=1e-6)
    key_init, _ = jax.random.split(key)
    start, task = f.init(key_init)
    np.testing.assert_array_equal(x, start)
    want = [f.loss(x, task, key) for x in record.params]
    np.testing.assert_allclose(record.values, want, rtol=1e-5)

  def test_choose(self):
    """Medians of the leaves first; never one without gradients."""
    gradients = np.zeros((2, 5))
    gradients[1] = [5, 1, 0, 3, 7]  # a: 5 1 / 0 3, b: 7
    found = responses.choose(gradients, LIKE, 3)
    self.assertEqual(found, {'a[1, 1]': 3, 'b[0]': 4, 'a[0, 1]': 1})
    found = responses.choose(gradients, LIKE, 100)
    self.assertEqual(set(found.values()), {0, 1, 3, 4})


class AnatomyTest(absltest.TestCase):
  def test_likeness_by_hand(self):
    u = np.array([[3.0], [4.0]])
    updates = {'mine': u, 'twice': 2 * u, 'turned': u * [[1], [-1]]}
    found = anatomy.likeness(updates, 'mine')
    self.assertAlmostEqual(found['twice']['cosine'], 1.0)
    self.assertAlmostEqual(found['twice']['length'], 0.5)
    self.assertAlmostEqual(found['turned']['cosine'], (9 - 16) / 25)
    self.assertEqual(found['turned']['opposite'], 0.5)
    self.assertAlmostEqual(found['mine']['persistence'], 12 / 25)

  def test_table_of_curves(self):
    """What is read is what was written, without what is not finite."""
    y = np.array([[1.0, 2.0, 4.0], [0.0, 0.0, 8.0], [np.nan] * 3])
    with self.assertWarnsRegex(RuntimeWarning, 'NaN'):
      one = panels.curve([1, 2, 3], y)
    np.testing.assert_array_equal(one['x'], [1, 2])
    np.testing.assert_array_equal(one['y'], [2, 0])
    np.testing.assert_array_equal(one['high'], [3, 4])
    toy.quiet(self)
    self.path.mkdir()
    panels.write(self.path / 'c.csv', {'p': {'a, b': {'mine': one}}})
    again = panels.read(self.path / 'c.csv')['p']['a, b']['mine']
    for name in panels.COLUMNS:
      np.testing.assert_array_equal(again[name], one[name])


class AnalysisTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    toy.quiet(self)
    self.said = self.enterContext(mock.patch.object(cli, 'say'))

  def settings(self, **flags):
    return toy.make_settings(self.path, analysis.EXPERIMENT, **flags)

  @pytest.mark.slow
  def test_a_whole_run(self):
    """Of coordinates that communicate; the second time nothing is run."""
    tiny = {'num_steps': 8, 'window': 4, 'times': (1, 3), 'coordinates': 3}
    theta = ('quadratics_averaging',)
    few = {'num_tuning': 2, 'baselines': ('ADAM',)}
    s = self.settings(task='quadratic', theta=theta, **tiny, **few)
    analysis.check(s)
    analysis.main(s)
    summary = json.loads((self.path / 'summary.json').read_text())
    self.assertEqual(tuple(summary['theta']), theta)
    pictures = sorted(self.path.glob('*.png'))
    names = sorted(f'{name}.png' for name in anatomy.PICTURES)
    self.assertEqual([path.name for path in pictures], names)
    text = '\n'.join(call.args[0] for call in self.said.call_args_list)
    words = 'quadratics_averaging: mean lag of an additional gradient'
    self.assertIn(words, text)
    before = [path.read_bytes() for path in pictures]
    for path in pictures:
      path.unlink()
    with mock.patch.object(analysis, 'analyse', side_effect=AssertionError):
      analysis.main(s)
    self.assertEqual([path.read_bytes() for path in pictures], before)

  def test_bad_flags(self):
    """One line, and no file."""
    cases = (
      ({'theta': ('nonesuch',)}, '--theta=nonesuch: no such file or directory'),
      ({'theta': ('quadratics_ntm_bfgs',)}, 'its state has 2.5e.08 numbers'),
      (
        {'theta': ('predicted_step_descent',), 'task': 'quadratic'},
        '--theta=predicted_step_descent: is for other parameters',
      ),
    )
    for flags, message in cases:
      with self.assertRaisesRegex(UsageError, message) as error:
        analysis.main(self.settings(**flags))
      self.assertLen(str(error.exception).splitlines(), 1)
    self.assertFalse(self.path.exists())
    for flags, message in (
      ({'times': (61,)}, '--times=61: .* leave steps 1 to 60'),
      ({'window': 100}, '--window=100 leaves no step'),
    ):
      with self.assertRaisesRegex(UsageError, message):
        analysis.check(self.settings(**flags))


if __name__ == '__main__':
  absltest.main()
