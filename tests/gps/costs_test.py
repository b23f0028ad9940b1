"""Quadratic models of the cost, on functions that are quadratic."""

import numpy as np
from absl.testing import absltest

from l2o_jax.gps import costs
from tests.gps.problems import run


class CostsTest(absltest.TestCase):
  def test_both_are_a_quadratic_function_up_to_a_constant(self):
    """f = 1/2 x^T H x - b^T x: the expansions are f and f - min f."""
    rng = np.random.default_rng(0)
    root = rng.normal(size=(3, 3))
    H, b = root @ root.T + np.eye(3), rng.normal(size=3)
    x = rng.normal(size=(7, 5, 3))
    f = np.einsum('sti,ij,stj->st', x, H, x) / 2 - x @ b
    g = x @ H - b
    Hs = np.tile(H, (5, 1, 1))
    states = np.concatenate([x, g, rng.normal(size=(7, 5, 2))], -1)
    lowest = -b @ np.linalg.solve(H, b) / 2
    seen = costs.Scaled(states, g, f, Hs, Hs)
    for model, want in ((costs.taylor, f), (costs.gradient_share, f - lowest)):
      cost, size = run(model.fit, seen)
      np.testing.assert_allclose(
        size, np.mean(want) - want.min() * (model is costs.taylor)
      )
      got = (
        np.einsum('sti,tij,stj->st', states, cost.quadratic, states) / 2
        + np.einsum('sti,ti->st', states, cost.linear)
        + cost.constant
      )
      np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-9)

  def test_costs_of_samples_are_exact_in_deviations(self):
    """f(x + δ) = f + ∇f^T δ + 1/2 δ^T H δ, each sample around itself."""
    rng = np.random.default_rng(1)
    root = rng.normal(size=(2, 2))
    H = root @ root.T
    x, shift = rng.normal(size=(2, 6, 4, 2))
    f = lambda x: np.einsum('sti,ij,stj->st', x, H, x) / 2
    states = np.concatenate([x, x @ H, 0 * x], -1)
    Hs = np.tile(H, (4, 1, 1))
    seen = costs.Scaled(states, x @ H, f(x), Hs, Hs)
    deviation = np.concatenate([shift, rng.normal(size=(6, 4, 4))], -1)
    value = lambda cost: (
      np.einsum('sti,tij,stj->st', deviation, cost.quadratic, deviation) / 2
      + np.einsum('sti,sti->st', deviation, cost.linear)
      + cost.constant
    )
    second, _ = run(costs.sample_taylor.fit, seen)
    np.testing.assert_allclose(value(second), f(x + shift), rtol=1e-9)
    first, _ = run(costs.sample_gradient.fit, seen)
    np.testing.assert_allclose(
      value(first), f(x + shift) - f(shift), rtol=1e-9, atol=1e-9
    )


if __name__ == '__main__':
  absltest.main()
