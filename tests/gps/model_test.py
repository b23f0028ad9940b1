"""A guide's samples as a model, in units of their own."""

import numpy as np
from absl.testing import absltest, parameterized

from l2o_jax.gps import costs, model
from l2o_jax.gps.lqr import Controller
from l2o_jax.gps.rollouts import Samples
from tests.gps.problems import run, spd

T, S = 6, 40


def samples_of(rng, A, scale=1.0):
  """Runs on 1/2 x^T H x, in units `scale` of x; f stays the same."""
  H = spd(rng, A)
  a = rng.normal(size=(S, T, A))
  x = np.concatenate([rng.normal(size=(S, 1, A)), a], 1).cumsum(1)
  f = np.einsum('sti,ij,stj->st', x, H, x) / 2
  x, a, H = scale * x, scale * a, H / scale**2
  u = np.concatenate([np.zeros((S, 1, A)), a], 1)
  states = np.concatenate([x, x @ H, u, rng.normal(size=x.shape)], -1)
  Hs = np.tile(H, (T + 1, 1, 1))
  return Samples(states, np.zeros(()), a, x @ H, f, Hs)


class ModelTest(parameterized.TestCase):
  @parameterized.parameters(1, 2)
  def test_does_not_depend_on_units(self, A):
    for cost in (costs.gradient_share, costs.taylor, costs.sample_taylor):
      fits = [
        run(
          lambda s, cost=cost: model.fit_model(s, cost, 0.05),
          samples_of(np.random.default_rng(0), A, scale),
        )
        for scale in (1.0, 1e-3)
      ]
      for name in ('dynamics', 'cost', 'states', 'action_rms'):
        one, other = (getattr(fit, name) for fit in fits)
        for x, y in zip(
          *(np.atleast_1d(z) if name[0] in 'sa' else z for z in (one, other)),
          strict=True,
        ):
          np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)
      np.testing.assert_allclose(
        fits[1].action_unit, 1e-3 * fits[0].action_unit, rtol=1e-9
      )

  def test_hessian_by_secants(self):
    """On a quadratic f it is the recorded one, in units of x and of f."""
    samples = samples_of(np.random.default_rng(2), 1, 0.1)
    by_secants, recorded = (
      run(lambda s, cost=cost: model.fit_model(s, cost, 0.05), samples)
      for cost in (costs.sample_taylor, costs.taylor)
    )
    x_unit = np.std(samples.states[..., 0])
    size = np.mean(samples.values) - np.min(samples.values)
    wanted = x_unit**2 * samples.curvature[:, 0, 0] / size
    for fit in (by_secants, recorded):
      got = fit.cost.quadratic[:, 0, 0]
      np.testing.assert_allclose(got, wanted, rtol=1e-5)

  def test_scaled_and_back(self):
    rng = np.random.default_rng(1)
    samples = samples_of(rng, 2)
    D = samples.states.shape[-1]
    guide = Controller(
      rng.normal(size=(T, 2, D)), rng.normal(size=(T, 2)), spd(rng, T, 2)
    )

    def both(samples, guide):
      fit = model.fit_model(samples, costs.gradient_share, 0.05)
      inside = model.scaled(guide, fit)
      now = samples.states[:, :-1]
      outer = now @ guide.gain.swapaxes(-1, -2).sum(0) * 0  # shape [S, T, 2]
      for t in range(T):
        a = now[:, t] @ guide.gain[t].T + guide.offset[t]
        b = fit.states[:, t] @ inside.gain[t].T + inside.offset[t]
        outer = outer.at[:, t].set(b * fit.action_unit - a)
      variance = model.explored(inside, fit, (0.1, 0.2))
      return model.unscaled(inside, fit), outer, variance, fit.action_rms

    back, difference, variance, rms = run(both, samples, guide)
    for x, y in zip(back, guide, strict=True):
      np.testing.assert_allclose(x, y, rtol=1e-12)
    np.testing.assert_allclose(difference, 0, atol=1e-10)
    relative = np.sqrt(variance) / rms[:, None]
    self.assertGreaterEqual(relative.min(), 0.1)
    self.assertLessEqual(relative.max(), 0.2 + 1e-9)


if __name__ == '__main__':
  absltest.main()
