"""Conjugate gradient on quadratics, where it ends after n exact steps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from experiments.common.conjugate_gradient import (
  conjugate_gradient,
  scale_by_conjugate_gradient,
)
from l2o_jax.unroll import unroll


class ConjugateGradientTest(parameterized.TestCase):
  @parameterized.parameters('fletcher_reeves', 'polak_ribiere')
  def test_exact_steps_end_after_n(self, rule):
    rng = np.random.default_rng(0)
    root = rng.normal(size=(5, 5))
    H = jnp.asarray(root @ root.T + np.eye(5), jnp.float32)
    b = jnp.asarray(rng.normal(size=5), jnp.float32)
    opt = scale_by_conjugate_gradient(rule)
    x = jnp.zeros(5)
    state = opt.init(x)
    for _ in range(5):
      g = H @ x - b
      d, state = opt.update(g, state)
      x = x - d * (g @ d) / (d @ H @ d)
    np.testing.assert_allclose(x, np.linalg.solve(H, b), rtol=1e-3, atol=1e-4)

  def test_two_steps_by_hand(self):
    """g = (3, 4) then (1, 2): β is 5/25, and max(-6, 0)/25."""
    for rule, want in (
      ('fletcher_reeves', (1.6, 2.8)),
      ('polak_ribiere', (1.0, 2.0)),
    ):
      opt = conjugate_gradient(0.5, rule)
      tree = lambda a, b: {'a': jnp.array([a]), 'b': jnp.array(b)}
      state = opt.init(tree(0.0, 0.0))
      first, state = opt.update(tree(3.0, 4.0), state)
      np.testing.assert_allclose(first['b'], -2.0)
      second, _ = opt.update(tree(1.0, 2.0), state)
      np.testing.assert_allclose(
        [second['a'][0], second['b']], -0.5 * np.array(want), rtol=1e-6
      )

  def test_line_search_descends(self):
    """`unroll` hands over what the search needs."""
    f = lambda x, key: jnp.sum((x - 1) ** 4 + x**2)
    search = optax.scale_by_backtracking_linesearch(20)
    opt, x = conjugate_gradient(1.0, linesearch=search), jnp.array([3.0, -2.0])
    keys = jax.random.split(jax.random.key(0), 31)
    _, run = jax.jit(lambda x: unroll(f, opt, x, opt.init(x), keys))(x)
    self.assertLess(np.diff(run.losses).max(), 1e-6)
    np.testing.assert_allclose(run.losses[-1], 2 * 0.289273, rtol=1e-4)

  def test_bad_rule(self):
    with self.assertRaisesRegex(ValueError, "got 'steepest'"):
      conjugate_gradient(1.0, 'steepest')


if __name__ == '__main__':
  absltest.main()
