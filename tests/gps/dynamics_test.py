"""Fits of dynamics and controllers against the systems behind the samples."""

import numpy as np
from absl.testing import absltest, parameterized

from l2o_jax.gps import dynamics
from tests.gps.problems import run


class DynamicsTest(parameterized.TestCase):
  @parameterized.parameters(0.0, 0.3)
  def test_regression(self, blend):
    """Of a linear map, against its formula: a ridge of 1e-3 shrinks it."""
    rng = np.random.default_rng(0)
    S, T, I, O = 50, 5, 4, 2
    x, V = rng.normal(size=(S, T, I)), rng.normal(size=(T, O, I))
    c = rng.normal(size=(T, O))
    y = np.einsum('toi,sti->sto', V, x) + c
    W, b, R = run(lambda x, y: dynamics.regress(x, y, blend), x, y)
    if not blend:
      np.testing.assert_allclose(W, V, rtol=0.01, atol=0.01)
      np.testing.assert_allclose(b, c, atol=0.01)
    z = np.concatenate([x, y], -1)
    z -= z.mean(0)
    own = np.stack([np.cov(z[:, t].T, bias=True) for t in range(T)])
    for t, C in enumerate((1 - blend) * own + blend * own.mean(0)):
      xx, xy = C[:I, :I], C[:I, I:]
      want = np.linalg.solve(xx + 1e-3 * np.diag(np.diag(xx)), xy).T
      np.testing.assert_allclose(W[t], want, atol=1e-8)
      left = np.block([-want, np.eye(O)])  # y - W x
      np.testing.assert_allclose(R[t], left @ C @ left.T, atol=1e-8)
      mean = y[:, t].mean(0) - want @ x[:, t].mean(0)
      np.testing.assert_allclose(b[t], mean, atol=1e-8)

  @parameterized.parameters(1, 3)
  def test_curvature_of_a_quadratic(self, size):
    """Gradient g = H x: the secants and the structured row are exact."""
    rng = np.random.default_rng(1)
    T, S = 6, 40
    root = rng.normal(size=(size, size))
    H = root @ root.T + np.eye(size)
    a = rng.normal(size=(S, T, size))
    x = np.concatenate([rng.normal(size=(S, 1, size)), a], 1).cumsum(1)
    g = x @ H
    u = np.concatenate([np.zeros((S, 1, size)), a], 1)
    curvature = run(dynamics.secant_curvature, g, a)
    self.assertEqual(curvature.shape, (T + 1, size, size))
    np.testing.assert_allclose(curvature, np.tile(H, (T + 1, 1, 1)), rtol=1e-4)
    states = np.concatenate([x, g, u], -1)
    fit = run(
      lambda s, a, h: dynamics.fit_dynamics(s, a, 0.05, (1.0, 1.0), h),
      states,
      a,
      curvature,
    )
    after = (
      np.einsum('tij,stj->sti', fit.state, states[:, :-1])
      + np.einsum('tij,stj->sti', fit.action, a)
      + fit.offset
    )
    np.testing.assert_allclose(after, states[:, 1:], atol=2e-4)
    np.testing.assert_allclose(fit.noise, 0, atol=1e-6)
    np.testing.assert_allclose(fit.initial_mean, states[:, 0].mean(0))
    np.testing.assert_array_equal(fit.state[:, :size, size:], 0)

  def test_alone_needs_few_samples(self):
    """g' = g + H a, from fewer samples than the state has columns."""
    rng = np.random.default_rng(4)
    H, T, S = np.array([[2.0, 0.5], [0.5, 1.0]]), 5, 3
    a = rng.normal(size=(S, T, 2))
    x = np.concatenate([rng.normal(size=(S, 1, 2)), a], 1).cumsum(1)
    u = np.concatenate([np.zeros((S, 1, 2)), a], 1)
    fit = run(
      lambda s, a, h: dynamics.fit_dynamics(
        s, a, 0.05, (1.0, 1.0), h, alone=True
      ),
      np.concatenate([x, x @ H, u], -1),
      a,
      np.tile(H, (T + 1, 1, 1)),
    )
    want = np.zeros((2, 6))
    want[:, 2:4] = np.eye(2)
    for t in range(T):
      np.testing.assert_allclose(fit.state[t, 2:4], want, atol=1e-12)
      np.testing.assert_allclose(fit.action[t, 2:4], H, atol=1e-12)
    np.testing.assert_allclose(fit.offset[:, 2:4], 0, atol=1e-12)

  def test_curvature_is_cut(self):
    rng = np.random.default_rng(2)
    a = rng.normal(size=(30, 60, 1))
    h = np.repeat([100.0, 2.0, -3.0], [12, 32, 16])
    g = np.concatenate([np.zeros((30, 1, 1)), h[:, None] * a], 1).cumsum(1)
    got = run(dynamics.secant_curvature, g, a)
    np.testing.assert_allclose(got[[0, 28, 55], 0, 0], [10, 2, 0.4], rtol=1e-4)

  def test_linear_policy_is_found(self):
    rng = np.random.default_rng(3)
    s, K = rng.normal(size=(60, 4, 3)), rng.normal(size=(4, 2, 3))
    k = rng.normal(size=(4, 2))
    a = np.einsum('tad,std->sta', K, s) + k
    fit = run(
      lambda s, a, v: dynamics.fit_controller(s, a, v, blend=0.0),
      s,
      a,
      np.full((4, 2), 0.3),
    )
    np.testing.assert_allclose(fit.gain, K, atol=0.01)
    np.testing.assert_allclose(
      fit.noise, np.tile(0.3 * np.eye(2), (4, 1, 1)), atol=1e-4
    )


if __name__ == '__main__':
  absltest.main()
