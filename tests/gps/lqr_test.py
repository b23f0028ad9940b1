"""Guided policy search's LQR against dense solutions in NumPy."""

import numpy as np
from absl.testing import absltest, parameterized

from l2o_jax.gps import lqr
from tests.gps.problems import run, spd

T, D = 6, 4


def problem(seed, actions):
  """Random dynamics, cost, λ, ν, π, previous guide; NumPy float64."""
  rng = np.random.default_rng(seed)
  A = actions
  dynamics = lqr.Dynamics(
    rng.normal(size=(T, D, D)) / 2,
    rng.normal(size=(T, D, A)),
    rng.normal(size=(T, D)),
    0.1 * spd(rng, T, D),
    rng.normal(size=D),
    0.1 * spd(rng, D),
  )
  cost = lqr.Cost(
    spd(rng, T + 1, D), rng.normal(size=(T + 1, D)), rng.normal(size=T + 1)
  )
  controller = lambda: lqr.Controller(
    rng.normal(size=(T, A, D)), rng.normal(size=(T, A)), spd(rng, T, A)
  )
  return (
    dynamics,
    cost,
    rng.normal(size=(T, A)),
    rng.uniform(0.1, 2, T),
    controller(),
    0.7,
    controller(),
  )


def dense(dynamics, cost, lam, nu, policy, eta, previous, start, first):
  """First action of the deterministic problem from s_first = start.

  KKT system in all states, actions and Lagrange multipliers; by certainty
  equivalence the stochastic problem has the same mean action.
  """
  S, A = D, lam.shape[1]
  steps = T - first
  n = steps * (S + A)
  H, g = np.zeros((n, n)), np.zeros(n)
  E, e = np.zeros((steps * S, n)), np.zeros(steps * S)
  state = lambda i: slice((i - 1) * S, i * S)
  action = lambda i: slice(steps * S + i * A, steps * S + (i + 1) * A)
  for i in range(steps):
    t = first + i
    H[state(i + 1), state(i + 1)] += cost.quadratic[t + 1]
    g[state(i + 1)] += cost.linear[t + 1]
    g[action(i)] -= lam[t]
    for weight, c in ((nu[t], policy), (eta, previous)):
      P = weight * np.linalg.inv(c.noise[t])
      K, k = c.gain[t], c.offset[t]
      H[action(i), action(i)] += P
      if i:
        H[state(i), state(i)] += K.T @ P @ K
        H[action(i), state(i)] -= P @ K
        H[state(i), action(i)] -= K.T @ P
        g[action(i)] -= P @ k
        g[state(i)] += K.T @ P @ k
      else:
        g[action(i)] -= P @ (k + K @ start)
    rows = slice(i * S, (i + 1) * S)
    E[rows, state(i + 1)] = np.eye(S)
    E[rows, action(i)] = -dynamics.action[t]
    e[rows] = dynamics.offset[t]
    if i:
      E[rows, state(i)] = -dynamics.state[t]
    else:
      e[rows] += dynamics.state[t] @ start
  m = len(e)
  kkt = np.block([[H, E.T], [E, np.zeros((m, m))]])
  return np.linalg.solve(kkt, np.concatenate([-g, e]))[action(0)]


class LqrTest(parameterized.TestCase):
  @parameterized.parameters(*((seed, a) for seed in range(3) for a in (1, 3)))
  def test_backward_is_the_dense_solution(self, seed, actions):
    args = problem(seed, actions)
    guide, valid = run(lqr.backward, *args)
    self.assertTrue(valid)
    rng = np.random.default_rng(100 + seed)
    for first in range(T):
      start = rng.normal(size=D)
      np.testing.assert_allclose(
        guide.gain[first] @ start + guide.offset[first],
        dense(*args, start, first),
        rtol=1e-9,
        atol=1e-9,
      )

  def test_without_penalties_it_is_plain_lqr(self):
    """Textbook Riccati recursion in NumPy, cost on states alone."""
    dynamics, cost, lam, nu, policy, _, previous = problem(5, 2)
    guide, valid = run(
      lqr.backward, dynamics, cost, 0 * lam, 0 * nu, policy, 0.0, previous
    )
    self.assertTrue(valid)
    P, p = cost.quadratic[-1], cost.linear[-1]
    for t in reversed(range(T)):
      A, B, c = dynamics.state[t], dynamics.action[t], dynamics.offset[t]
      solve = lambda x: np.linalg.solve(B.T @ P @ B, x)
      K, k = -solve(B.T @ P @ A), -solve(B.T @ (P @ c + p))
      np.testing.assert_allclose(guide.gain[t], K, rtol=1e-8, atol=1e-9)
      np.testing.assert_allclose(guide.offset[t], k, rtol=1e-8, atol=1e-9)
      M = A + B @ K
      p = cost.linear[t] + M.T @ (P @ (B @ k + c) + p)
      P = cost.quadratic[t] + M.T @ P @ M
    np.testing.assert_array_equal(guide.noise, 0)

  def test_forward_and_cost_and_divergence_against_samples(self):
    dynamics, cost, _, _, guide, _, other = problem(7, 2)
    mean, covariance = run(lqr.forward, dynamics, guide)
    costs = run(lqr.expected_cost, cost, mean, covariance)
    kl = run(lqr.divergence, guide, other, mean, covariance)
    rng = np.random.default_rng(0)
    draw = lambda cov: (
      rng.normal(size=(200_000, len(cov))) @ (np.linalg.cholesky(cov).T)
    )
    s = dynamics.initial_mean + draw(dynamics.initial_covariance)
    for t in range(T):
      np.testing.assert_allclose(
        costs[t],
        np.mean(
          np.einsum('ni,ij,nj->n', s, cost.quadratic[t], s) / 2
          + s @ cost.linear[t]
        )
        + cost.constant[t],
        rtol=0.02,
      )
      a = s @ guide.gain[t].T + guide.offset[t] + draw(guide.noise[t])
      logs = []
      for c in (guide, other):
        error = a - s @ c.gain[t].T - c.offset[t]
        logs.append(
          -np.einsum('ni,ij,nj->n', error, np.linalg.inv(c.noise[t]), error) / 2
          - np.linalg.slogdet(c.noise[t])[1] / 2
        )
      np.testing.assert_allclose(kl[t], np.mean(logs[0] - logs[1]), rtol=0.02)
      s = (
        s @ dynamics.state[t].T
        + a @ dynamics.action[t].T
        + dynamics.offset[t]
        + draw(dynamics.noise[t])
      )

  @parameterized.parameters(0.1, 1.0, 10.0)
  def test_step_has_the_divergence_asked_for(self, bound):
    dynamics, cost, lam, nu, policy, _, previous = problem(3, 1)
    guide, info = run(
      lqr.constrained_step,
      dynamics,
      cost,
      lam,
      0.1 * nu,
      policy,
      previous,
      bound,
      1.0,
    )
    mean, covariance = run(lqr.forward, dynamics, guide)
    kl = run(lqr.divergence, guide, previous, mean, covariance).sum()
    self.assertLessEqual(kl, bound * (1 + 1e-12))
    self.assertGreaterEqual(kl, 0.9 * bound)
    np.testing.assert_allclose(info.kl, kl, rtol=1e-9)

  def test_a_loose_bound_is_idle(self):
    """Then η is at its lower end and the guide the unconstrained one."""
    dynamics, cost, lam, nu, policy, _, previous = problem(3, 1)
    guide, info = run(
      lqr.constrained_step,
      dynamics,
      cost,
      0 * lam,
      nu,
      policy,
      previous,
      1e9,
      1.0,
    )
    want, _ = run(
      lqr.backward, dynamics, cost, 0 * lam, nu, policy, 0.0, previous
    )
    self.assertEqual(info.eta, 1e-8)
    np.testing.assert_allclose(guide.gain, want.gain, rtol=1e-5, atol=1e-6)

  def test_no_valid_guide_leaves_the_previous_one(self):
    """A cost that is concave beyond any η within reach of the trials."""
    dynamics, cost, lam, nu, policy, _, previous = problem(3, 1)
    cost = cost._replace(quadratic=-1e30 * cost.quadratic)
    guide, info = run(
      lqr.constrained_step,
      dynamics,
      cost,
      lam,
      0 * nu,
      policy,
      previous,
      1.0,
      1.0,
    )
    np.testing.assert_array_equal(guide.gain, previous.gain)
    self.assertEqual(info.kl, 0)

  @parameterized.parameters((0, 1), (1, 3))
  def test_untied_offsets_are_the_dense_solution_of_each_sample(
    self, seed, actions
  ):
    dynamics, cost, lam, nu, _, _, previous = problem(seed, actions)
    rng = np.random.default_rng(200 + seed)
    linear = rng.normal(size=(5, T + 1, D))
    k, G, info = run(
      lqr.untied_step,
      dynamics,
      lqr.Cost(cost.quadratic, linear, np.ones((5, T + 1))),
      previous,
      2.0,
      1.0,
    )
    dynamics = dynamics._replace(offset=0 * dynamics.offset)
    previous = previous._replace(offset=0 * previous.offset)
    for sample in range(5):
      own = cost._replace(linear=linear[sample])
      for first in range(T):
        np.testing.assert_allclose(
          k[sample, first],
          dense(
            dynamics,
            own,
            0 * lam,
            0 * nu,
            previous,
            info.eta,
            previous,
            np.zeros(D),
            first,
          ),
          rtol=1e-9,
          atol=1e-9,
        )
    self.assertBetween(info.kl, 1.8, 2.0)
    precision = np.linalg.inv(previous.noise)
    least = (
      np.einsum('sta,tab,stb->', k, precision, k) / 10
      + np.sum(
        np.einsum('tab,tba->t', precision, G)
        - actions
        - np.linalg.slogdet(precision @ G)[1]
      )
      / 2
    )
    self.assertBetween(info.kl, least, 2 * least)
    self.assertGreater(info.fall, 0)

  def test_untied_offsets_without_curvature_follow_the_gradient(self):
    """k_t = -G°_t (dJ/da_t)^T / η along psi°'s own loop, and G = G°."""
    dynamics, cost, _, _, _, _, previous = problem(4, 2)
    linear = np.random.default_rng(5).normal(size=(3, T + 1, D))
    k, G, info = run(
      lqr.untied_step,
      dynamics,
      lqr.Cost(0 * cost.quadratic, linear, np.ones((3, T + 1))),
      previous,
      0.5,
      1.0,
    )
    np.testing.assert_allclose(G, previous.noise, rtol=1e-9)
    for t in range(T):
      slope, moved = np.zeros((3, 2)), dynamics.action[t]
      for later in range(t + 1, T + 1):
        slope += linear[:, later] @ moved
        if later < T:
          moved = (
            dynamics.state[later]
            + dynamics.action[later] @ previous.gain[later]
          ) @ moved
      np.testing.assert_allclose(
        k[:, t], -slope @ previous.noise[t] / info.eta, rtol=1e-9
      )
    self.assertBetween(info.kl, 0.45, 0.5)

  def test_bad_curvature_is_invalid(self):
    args = list(problem(3, 1))
    args[1] = args[1]._replace(quadratic=-100 * args[1].quadratic)
    self.assertFalse(run(lqr.backward, *args)[1])


if __name__ == '__main__':
  absltest.main()
