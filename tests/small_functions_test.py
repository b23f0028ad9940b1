"""Curves, tuning and margins of the experiments on small functions."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest
from jax.tree_util import Partial

from experiments.common import small_functions
from l2o_jax.base import Optimizee


def parabolas():
  """f = h x² / 2 with h ~ U[1, 3), x_0 = 1."""

  def init(key):
    return jnp.ones(()), jax.random.uniform(key, minval=1.0, maxval=3.0)

  return Optimizee(Partial(init), Partial(lambda x, h, key: h * x**2 / 2))


KEYS = jax.random.split(jax.random.key(0), 5)


def run(keys, make_opt, num_steps=60):
  return small_functions.curves(parabolas(), make_opt, keys, num_steps)


class SmallFunctionsTest(absltest.TestCase):
  def test_curves_of_gradient_descent(self):
    h = np.asarray(jax.vmap(parabolas().init)(KEYS)[1])[:, None]
    got = small_functions.curves(parabolas(), lambda f: optax.sgd(0.1), KEYS, 3)
    want = h / 2 * (1 - 0.1 * h) ** (2 * np.arange(4))
    np.testing.assert_allclose(got, want, rtol=1e-5)

  def test_the_optimizer_is_given_its_own_function(self):
    """Newton's step, from the second derivative of each f."""
    newton = lambda f: optax.stateless(
      lambda g, x: -g / jax.grad(jax.grad(f))(x)
    )
    got = small_functions.curves(parabolas(), newton, KEYS, 2)
    np.testing.assert_allclose(got[:, 1:], 0, atol=1e-10)

  def test_tune(self):
    """Against sums one by one; strings and integers too; what diverges."""
    make = lambda rate, kind, power: (
      lambda f: optax.sgd(rate if kind == 'plain' else rate**power)
    )
    grid = [
      (0.3, 'plain', 1),
      (0.2, 'other', 2),
      (9.0, 'plain', 1),
      (0.1, 'plain', 1),
    ]
    best, sums = small_functions.tune(run, KEYS, make, grid)
    self.assertEqual(best, (0.3, 'plain', 1))
    self.assertEqual(set(sums), set(grid))
    h = np.asarray(jax.vmap(parabolas().init)(KEYS)[1])[:, None]
    for setting, rate in zip(grid, (0.3, 0.04, None, 0.1)):
      want = (
        np.inf
        if rate is None
        else (h / 2 * (1 - rate * h) ** (2 * np.arange(61))).sum(1).mean()
      )
      np.testing.assert_allclose(sums[setting], want, rtol=1e-4)
    with self.assertRaisesRegex(ValueError, 'every setting diverges'):
      small_functions.tune(run, KEYS, make, grid[2:3])

  def test_settings_without_numbers(self):
    best, sums = small_functions.tune(
      run, KEYS, lambda memory: lambda f: optax.sgd(0.1 * memory), [(1,), (2,)]
    )
    self.assertEqual(best, (2,))
    self.assertLess(sums[2,], sums[1,])

  def test_margin_by_hand(self):
    """The best competitor of each function and step; divergence is no win."""
    inf = np.inf
    losses = {
      'mine': np.array([[4.0, 1.0, 2.0], [8.0, 8.0, 8.0]]),
      'a': np.array([[4.0, 3.0, 1.0], [8.0, 9.0, inf]]),
      'b': np.array([[4.0, 2.0, 5.0], [8.0, inf, np.nan]]),
    }
    np.testing.assert_allclose(
      small_functions.margin(losses, 'mine', ('a', 'b')), [0, 0.5, -0.5]
    )
    np.testing.assert_allclose(
      small_functions.margin(losses, 'mine', ('b',)), [0, 0.5, 1]
    )


if __name__ == '__main__':
  absltest.main()
