"""Features with a history, against slow loops in NumPy."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from l2o_jax.base import Cell
from l2o_jax.coordinatewise import coordinatewise
from l2o_jax.features import adam_ratios, gradient, log_and_sign
from l2o_jax.policy_features import history, relative_changes, state_features
from l2o_jax.scale_free import scale_free
from tests import quick


def run_data(steps, seed=0):
  rng = np.random.default_rng(seed)
  return (
    rng.normal(size=(steps, 2)).cumsum(0),
    rng.normal(size=(steps, 2)),
    rng.uniform(0.5, 2, steps),
  )


def along(features, x, g, f):
  """Features at every t of a recorded run, [T, n, F]."""

  def step(memory, inputs):
    return features.update(memory, *inputs)

  with jax.enable_x64(True):
    arrays = tuple(map(jnp.asarray, (x, g, f)))
    return np.asarray(
      quick.jit(lambda *a: jax.lax.scan(step, features.init(a[0][0]), a)[1])(
        *arrays
      )
    )


def slow_state_features(x, g, f, lag, depth):
  """Written from the paper's definition, one number at a time."""

  def bar(values, i):
    return np.mean([values[j] for j in range(max(i - 2, 0), i + 1)])

  out = np.zeros((len(f), x.shape[1], 3 * depth + 1))
  for t in range(len(f)):
    m = t % lag
    for n in range(x.shape[1]):
      xs, gs, row = x[:, n], g[:, n], out[t, n]
      for i in range(depth):
        last = t - lag * (i + 1)
        if last >= 0:
          row[i] = (bar(f, t - lag * i) - bar(f, last)) / bar(f, last)
          top = abs(bar(xs, max(last, m + lag)) - bar(xs, max(last - lag, m)))
          row[2 * depth + 1 + i] = top / (
            abs(bar(xs, t - lag * i) - bar(xs, last)) + 0.1
          )
      for i in range(depth + 1):
        if t - lag * i >= 0:
          row[depth + i] = bar(gs, t - lag * i) / (
            abs(bar(gs, max(t - lag * (i + 1), m))) + 1
          )
  return out


def slow_scale_free(x, g, f, age):
  """Averages as sums over all earlier steps, one number at a time."""

  def average(values, decay):
    weights = decay ** np.arange(len(values))[::-1]
    return weights @ values / weights.sum()

  out = np.zeros((len(f), x.shape[1], 7))
  for t in range(len(f)):
    for n in range(x.shape[1]):
      past, row = g[: t + 1, n], out[t, n]
      v, whole = average(past**2, 0.95), np.mean(past**2)
      row[0] = average(past, 0.5) / v**0.5
      row[1] = average(past, 0.9) / v**0.5
      row[2] = np.clip(g[t, n] / whole**0.5, -10, 10)
      row[4] = 0.5 * np.log(v / whole)
      row[6] = np.log(1 + t / age)
      if t:
        f_bar, steps = average(f[:t], 0.9), np.diff(x[: t + 1, n])
        row[3] = (f[t] - f_bar) / (abs(f[t]) + abs(f_bar))
        row[5] = abs(steps[-1]) / average(steps**2, 0.9) ** 0.5
  return out


ALL = {
  'state': state_features(3, 4),
  'changes': relative_changes(),
  'history': history(6),
  'scale_free': scale_free(),
}


class FeaturesTest(parameterized.TestCase):
  @parameterized.parameters((5, 25, 140), (3, 4, 30), (1, 2, 8), (5, 0, 12))
  def test_state_features(self, lag, depth, steps):
    data = run_data(steps)
    features = state_features(lag, depth)
    got = along(features, *data)
    self.assertEqual(got.shape[-1], features.size)
    np.testing.assert_allclose(
      got, slow_state_features(*data, lag, depth), rtol=1e-10, atol=1e-12
    )

  def test_state_features_of_the_paper_are_76_numbers(self):
    self.assertEqual(state_features().size, 76)

  def test_relative_changes(self):
    x, g, f = run_data(20)
    want = np.zeros((20, 2, 3))
    for t in range(20):
      want[t, :, 1] = g[t] / (abs(g[max(t - 1, 0)]) + 1)
      if t:
        want[t, :, 0] = (f[t] - f[t - 1]) / f[t - 1]
        want[t, :, 2] = abs(x[max(t - 1, 1)] - x[max(t - 2, 0)]) / (
          abs(x[t] - x[t - 1]) + 0.1
        )
    np.testing.assert_allclose(
      along(relative_changes(), x, g, f), want, rtol=1e-10, atol=1e-12
    )

  @parameterized.parameters(1.0, 1e-9, 1e9)
  def test_scale_free(self, scale):
    """A factor of f or of x changes nothing."""
    x, g, f = run_data(30)
    want = slow_scale_free(x, g, f, 20.0)
    features = scale_free()
    self.assertEqual(features.size, 7)
    for factors in ((1, scale, scale), (scale, 1, 1)):
      data = (z * factor for z, factor in zip((x, g, f), factors))
      np.testing.assert_allclose(
        along(features, *data), want, rtol=1e-9, atol=1e-12
      )

  def test_losses_before_the_first_finite_one(self):
    """They are not known, so a constant loss does not change."""
    for features, of_change in (scale_free(), 3), (relative_changes(), 0):
      memory, x = features.init(jnp.zeros(2)), jnp.zeros(2)
      for f in np.nan, np.inf, 2.0, 2.0, np.nan, 2.0:
        memory, seen = features.update(memory, x, x + 1, jnp.float32(f))
        np.testing.assert_allclose(seen[:, of_change], 0, atol=1e-6)

  @parameterized.parameters('changes', 'history', 'state')
  def test_counters_do_not_wrap(self, name):
    features = {
      'changes': relative_changes(),
      'history': history(2),
      'state': state_features(1, 1),
    }[name]
    memory, x = features.init(jnp.zeros(1)), jnp.ones(1)
    most = jnp.int32(2**31 - 1)
    memory = memory._replace(step=most)
    memory, _ = features.update(memory, x, x, jnp.float32(1))
    self.assertEqual(int(memory.step), int(most))

  def test_parameters_that_jump(self):
    """From one end of what is finite to the other, and back."""
    for features in scale_free(), relative_changes():
      memory = features.init(jnp.zeros(2))
      for x in 1.0, 3e38, -3e38, 1e20, 0.0:
        x = jnp.full(2, x, jnp.float32)
        memory, seen = features.update(memory, x, jnp.ones(2), jnp.ones(()))
        for leaf in jax.tree.leaves((memory, seen)):
          self.assertTrue(np.isfinite(leaf).all())

  def test_scale_free_at_nothing(self):
    """At g = 0, after large g and at f = 0 all is finite, bounded by 10."""
    with self.assertRaisesRegex(ValueError, 'age must be positive, got 0'):
      scale_free(0)
    features = scale_free()
    x, f = jnp.zeros(3), jnp.float32(0)

    def seen(memory, g):
      return features.update(memory, x, g, f)[1]

    memory = features.init(x)
    for g in (0.0, 1e-30, 1e30, 0.0, -3e38):
      g = jnp.full(3, g, jnp.float32)
      slopes = quick.jit(jax.jacfwd(seen, 1))(memory, g)
      self.assertTrue(np.isfinite(slopes).all())
      memory, found = quick.jit(features.update)(memory, x, g, f)
      self.assertTrue(np.isfinite(found).all())
      self.assertLessEqual(np.abs(found).max(), 10)
    never = features.update(features.init(x), x, jnp.zeros(3), f)[1]
    np.testing.assert_array_equal(never, np.zeros((3, 7)))

  def test_history(self):
    x, g, f = run_data(10)
    want = np.zeros((10, 2, 8))
    for t in range(10):
      for i in range(4):
        if t - i >= 0:
          want[t, :, i] = g[t - i]
        if t - i - 1 >= 0:
          want[t, :, 4 + i] = f[t] - f[t - i - 1]
    np.testing.assert_allclose(
      along(history(4), x, g, f), want, rtol=1e-10, atol=1e-12
    )

  @parameterized.named_parameters((n, n) for n in ALL)
  def test_the_future_does_not_leak_in(self, name):
    x, g, f = run_data(20)
    before = along(ALL[name], x, g, f)
    x[11:], g[11:], f[11:] = 7, -3, 5
    after = along(ALL[name], x, g, f)
    np.testing.assert_array_equal(before[:11], after[:11])
    self.assertGreater(abs(before[11] - after[11]).max(), 0)

  @parameterized.named_parameters((n, n) for n in ALL)
  def test_losses_that_are_not_finite_or_zero(self, name):
    """They count as the last finite loss."""
    x, g, f = run_data(12)
    f[[3, 7, 8]] = np.nan, np.inf, 0
    found = along(ALL[name], x, g, f)
    self.assertTrue(np.isfinite(found).all())
    f[[3, 7]] = f[[2, 6]]
    if name != 'scale_free':  # whose average of losses sees them twice
      np.testing.assert_array_equal(found[8:], along(ALL[name], x, g, f)[8:])

  @parameterized.named_parameters(
    *((n, n) for n in ALL), ('gradient', 'gradient'), ('log', 'log')
  )
  def test_shapes_and_what_they_need(self, name):
    """Arrays of any shape: [...] -> [..., F]; memory keeps its type."""
    features = {'gradient': gradient(), 'log': log_and_sign(), **ALL}[name]
    needs = {'gradient': '', 'log': '', 'history': 'value'}
    given = needs.get(name, 'params value').split()
    self.assertEqual(features.needs, frozenset(given))
    for shape in ((), (3,), (2, 0), (2, 3, 4)):
      x = jax.ShapeDtypeStruct(shape, jnp.float32)
      memory = jax.eval_shape(features.init, x)
      value = jax.ShapeDtypeStruct((), jnp.float32)
      new, seen = jax.eval_shape(features.update, memory, x, x, value)
      self.assertEqual(
        (seen.shape, seen.dtype), ((*shape, features.size), x.dtype)
      )
      chex.assert_trees_all_equal_shapes_and_dtypes(new, memory)

  def test_log_and_sign_by_hand(self):
    """log 2 = 0.6931; below exp(-p) it is (-1, exp(p) g)."""
    features = log_and_sign(2.0)
    g = jnp.array([2.0, -2.0, 0.1, 0.0])
    _, seen = features.update((), g, g, None)
    want = [[0.3465736, 1], [0.3465736, -1], [-1, 0.7389056], [-1, 0]]
    np.testing.assert_allclose(seen, want, rtol=1e-6)

  @parameterized.parameters(
    (lambda: log_and_sign(0.0), 'got 0.0'),
    (lambda: log_and_sign(88.1), 'got 88.1'),
    (lambda: log_and_sign(float('nan')), 'got nan'),
    (lambda: history(0), 'got 0'),
    (lambda: state_features(0, 3), 'lag must be positive, got 0'),
    (lambda: state_features(5, -1), 'depth must not be negative, got -1'),
    (lambda: state_features(1.5, 2), 'lag must be a whole number, got 1.5'),
    (lambda: state_features(2, 1.5), 'depth must be a whole number, got 1.5'),
  )
  def test_bad_arguments(self, make, message):
    with self.assertRaisesRegex(ValueError, message):
      make()

  def test_a_p_too_large_for_float16(self):
    """exp(12) is infinite there; at g = 0 the sign is 0."""
    g = jnp.array([0.0, 1e-5, -1.0], jnp.float16)
    _, seen = log_and_sign(12.0).update((), g, g, None)
    np.testing.assert_allclose(seen[:, 1], [0, 0.65, -1], atol=0.03)

  def test_a_loss_that_rises_beyond_all_numbers(self):
    """f from 1e-3 to 3e38: their ratio is not finite."""
    features, x = relative_changes(), jnp.ones(2)
    memory, _ = features.update(features.init(x), x, x, 1e-3)
    _, seen = features.update(memory, x, x, 3e38)
    chex.assert_tree_all_finite(seen)

  @parameterized.parameters(
    lambda: adam_ratios(0.95, 0.999, window=10.0, age=100.0), scale_free
  )
  def test_the_last_number_of_a_counter(self, make):
    """After 2^31 - 1 steps it stays there."""
    features, x = make(), jnp.ones(2)
    memory = features.init(x)._replace(step=jnp.int32(2**31 - 2))
    for _ in range(3):
      memory, seen = features.update(memory, x, x, 1.0)
      chex.assert_tree_all_finite(seen)
    self.assertEqual(memory.step, 2**31 - 1)

  def test_the_largest_p_is_finite(self):
    """exp(88) is finite in float32; exp(89) was NaN at g = 0."""
    features, g = log_and_sign(88.0), jnp.array([0.0, 1e-38, -1.0])
    see = lambda g: features.update((), g, g, None)[1]
    seen, slopes = jax.jvp(see, (g,), (jnp.ones(3),))
    self.assertTrue(np.isfinite(seen).all() and np.isfinite(slopes).all())


class AdamRatiosTest(parameterized.TestCase):
  def test_are_the_steps_of_adam(self):
    """optax's Adam, for each decay; and the gradient over the same root."""
    x, g, f = run_data(7)
    seen = along(adam_ratios((0.9, 0.5), 0.8, 1e-3, age=2.0), x, g, f)
    with jax.enable_x64(True):
      for k, b1 in enumerate((0.9, 0.5, 0.0)):
        adam = optax.scale_by_adam(b1, 0.8, 1e-3)
        state = adam.init(jnp.zeros(2))
        for t in range(7):
          step, state = adam.update(jnp.asarray(g[t]), state)
          np.testing.assert_allclose(seen[t, :, k], step, rtol=1e-9)
    ages = np.log(1 + np.arange(7) / 2)[:, None]
    np.testing.assert_allclose(seen[..., 3], ages + np.zeros(2), rtol=1e-12)

  def test_sees_the_size_of_the_leaf(self):
    """log(1 + n / size), before the age."""
    features, seen = adam_ratios(0.9, age=5.0, size=10.0), []
    self.assertEqual((features.size, features.needs), (4, {'leaf'}))
    ones = jnp.ones((6, 5))
    memory, found = features.update(features.init(ones), None, ones, None)
    want = np.broadcast_to([1, 1, np.log(4), 0], (6, 5, 4))
    np.testing.assert_allclose(found, want, rtol=1e-6)
    self.assertEqual((memory.step.shape, memory.v.shape), ((), (6, 5)))
    step = lambda theta, x, state: (seen.append(x) or x[2], ())
    cell = Cell(lambda key, size: (), lambda: (), step)
    learned = coordinatewise(features, cell)
    self.assertTrue(learned.communicates)
    g = {'a': jnp.ones((3, 30)), 'b': jnp.ones(())}
    opt = learned.transform(())
    steps, _ = opt.update(g, opt.init(g), g)
    np.testing.assert_allclose(steps['a'], np.full((3, 30), np.log(10.0)), 1e-6)
    np.testing.assert_allclose(steps['b'], np.log(1.1), 1e-6)
    self.assertLen(seen, 2)

  def test_length_of_steps_by_agreement(self):
    """By hand for β₁ = β₂ = 0: m is the last gradient, √v the new one."""
    features = adam_ratios(0.0, 0.0, 1e-12, age=3.0, agreement=2.0)
    self.assertEqual((features.size, features.needs), (4, {'leaf'}))
    cell = Cell(lambda key, size: (), lambda: (), lambda _, x, s: (x[2], s))
    learned = coordinatewise(features, cell)
    self.assertTrue(learned.communicates)
    opt, found = learned.transform(()), []
    x = {'a': jnp.zeros((3, 1)), 'b': jnp.zeros(())}
    state = opt.init(x)
    of_a = (2, 0.5, 5), (4, -1, 0), (4, -1, 0), (-1, -1, 0), (0, 0, 0)
    for a, b in zip(of_a, (1.0, 1.0, -1.0, 1.0, 0.0)):
      g = {'a': jnp.array(a, jnp.float32)[:, None], 'b': jnp.array(b)}
      steps, state = opt.update(g, state, x)
      found.append((*np.ravel(steps['a']), float(steps['b'])))
    # Weights are the roots of 4 and 1: (2 x 0.5 - 0.5) / 3, then 1, then -1 and
    # 1 (clipped); the third coordinate has no gradient and does not count.  The
    # scalar has 1, -1 and -1, and a lower bound.  Without any gradient nothing
    # changes.
    of_a, of_b = np.array([0, 1 / 6, 1, 0, 0]), np.array([0, 1, -1, -1, 0])
    rate = 2 / np.sqrt(1 + np.arange(5) / 3)
    want = np.cumsum(of_a * rate)
    for i in range(3):
      np.testing.assert_allclose([r[i] for r in found], want, rtol=1e-6)
    want = np.maximum(np.cumsum(of_b * rate), -0.5)
    np.testing.assert_allclose([row[3] for row in found], want, rtol=1e-6)
    self.assertEqual(state.memory[0].length['a'].shape, ())

  def test_a_memory_that_grows(self):
    """Weights by hand: c / (c + t - 1), until 1 - β₂ is more.

    With c = 2 they are 1 and 2/3; then β₂ = 1/2 has more: 4/7 and 8/15.
    """
    features = adam_ratios(0.0, 0.5, 1e-12, window=2.0)
    memory, g = features.init(jnp.zeros(())), (1.0, 2.0, 4.0, 0.0)
    means = []
    for x in g:
      memory, _ = features.update(memory, None, jnp.array(x), None)
      means.append(float(memory.v))
    np.testing.assert_allclose(means, [1, 3, 73 / 7, 73 / 15], rtol=1e-6)
    root = np.sqrt(np.array([1, 3, 73 / 7]))
    seen = along(features, *[np.array(g[:3])[:, None]] * 3)
    np.testing.assert_allclose(seen[:, 0, 1], g[:3] / root, rtol=1e-6)

  def test_a_long_memory_is_a_mean(self):
    """c = 1: the plain mean of all squares, whatever came first."""
    x, g, f = run_data(50)
    seen = along(adam_ratios(0.0, 1 - 1e-9, 1e-12, window=1.0), x, g, f)
    mean = np.cumsum(g**2, 0) / np.arange(1, 51)[:, None]
    np.testing.assert_allclose(seen[..., 1], g / np.sqrt(mean), rtol=1e-6)

  def test_units_do_not_matter(self):
    x, g, f = run_data(9)
    one = along(adam_ratios(), x, g, f)
    many = along(adam_ratios(), x, 1e4 * g, f)
    self.assertEqual(one.shape, (9, 2, 2))
    np.testing.assert_allclose(one, many, rtol=1e-6)

  def test_extremes(self):
    """Nothing and too much: finite, and forgotten."""
    features = adam_ratios(0.5, 0.6)
    memory = features.init(jnp.zeros(3))
    for g in (jnp.array([0.0, 1e38, -1e38]), jnp.array([0.0, 1.0, 1.0])):
      memory, seen = features.update(memory, None, g, None)
      self.assertTrue(np.isfinite(seen).all())
    for _ in range(200):
      memory, seen = features.update(memory, None, jnp.ones(3), None)
    np.testing.assert_allclose(seen, 1, atol=1e-2)
    zero = features.init(jnp.zeros(3))
    slope = jax.grad(lambda g: features.update(zero, None, g, None)[1].sum())
    self.assertTrue(np.isfinite(slope(jnp.zeros(3))).all())

  @parameterized.parameters(
    ({'b1': 1.0}, 'decays must be in'),
    ({'b2': -0.1}, 'decays must be in'),
    ({'b1': ()}, 'decays must be in'),
    ({'eps': 0.0}, 'must be positive'),
    ({'age': 0.0}, 'must be positive'),
    ({'window': 0.0}, 'window must be positive, got 0.0$'),
    ({'window': float('nan')}, 'must be positive'),
    ({'size': -1.0}, 'must be positive'),
    ({'age': 1.0, 'agreement': 0.0}, 'must be positive'),
    ({'agreement': 1.0}, 'agreement needs an age'),
  )
  def test_bad_arguments(self, arguments, message):
    with self.assertRaisesRegex(ValueError, message):
      adam_ratios(**arguments)


if __name__ == '__main__':
  absltest.main()
