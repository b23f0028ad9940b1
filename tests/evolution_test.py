"""Evolution strategies are unbiased over whole runs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from l2o_jax.base import LearnedOptimizer
from l2o_jax.evolution import evolution
from l2o_jax.optimizees.quadratic import quadratic
from tests import quick

T, U = 4, 3


def gradient_descent():
  """One weight: the logarithm of the learning rate."""

  def transform(theta):
    return optax.with_extra_args_support(optax.sgd(jnp.exp(theta['log_rate'])))

  init = lambda key: {'log_rate': jnp.float32(-4.0)}
  return LearnedOptimizer(init, transform)


def recorder():
  """A meta-optimizer that moves nothing and adds up what it is given."""

  def update(updates, state, params=None):
    del params
    total = jax.tree.map(jnp.add, state, updates)
    return jax.tree.map(jnp.zeros_like, updates), total

  zeros = lambda theta: jax.tree.map(jnp.zeros_like, theta)
  return optax.GradientTransformation(zeros, update)


def whole_run(theta, optimizee, key):
  """sum_{t=1..UT} f(x_t) of a run, as a function of theta."""
  params, task = optimizee.init(key)
  opt = gradient_descent().transform(theta)
  state, total = opt.init(params), 0.0
  for _ in range(T * U):
    g = jax.grad(optimizee.loss)(params, task, key)
    updates, state = opt.update(g, state, params)
    params = optax.apply_updates(params, updates)
    total += optimizee.loss(params, task, key)
  return total


class EvolutionTest(parameterized.TestCase):
  @parameterized.parameters(True, False)
  def test_is_the_gradient_of_the_whole_run(self, reuse_noise):
    """Truncated back-propagation through T steps would miss most of it."""
    optimizee = quadratic(3, 'normal')
    B = 2_000
    trainer = evolution(
      gradient_descent(),
      recorder(),
      unroll_length=T,
      num_unrolls=U,
      num_optimizees=B,
      std=0.01,
      reuse_noise=reuse_noise,
    )
    state = trainer.init(jax.random.key(0))
    state, info = quick.jit(trainer.step)(state, optimizee, jax.random.key(1))
    found = float(state.opt_state['log_rate'])

    @quick.jit
    def exact(keys):
      of_rate = lambda rate, key: whole_run({'log_rate': rate}, optimizee, key)
      return jax.vmap(jax.grad(of_rate), (None, 0))(jnp.float32(-4.0), keys)

    init_keys = jax.random.split(jax.random.key(1), 3)[0]
    each = np.asarray(exact(jax.random.split(init_keys, B)))
    self.assertEqual(info.losses.shape, (U, B, T + 1))
    summed = info.losses[..., 1:].sum(-1).mean(-1)
    np.testing.assert_allclose(info.meta_loss, summed, rtol=1e-5)
    self.assertFalse(info.skipped.any())
    # z² has a deviation of 2^½; PES adds the noise of earlier unrolls.
    error = 4 * 3 * np.sqrt(np.mean(each**2) / B)
    self.assertLess(abs(found - each.mean()), error)
    self.assertGreater(abs(each.mean()), error)

  def test_lowers_the_losses(self):
    trainer = evolution(
      gradient_descent(),
      optax.adam(0.1),
      unroll_length=T,
      num_unrolls=U,
      num_optimizees=16,
      of_loss=jnp.log,
    )
    state, step = trainer.init(jax.random.key(0)), quick.jit(trainer.step)
    values, optimizee = [], quadratic(3)
    for key in jax.random.split(jax.random.key(1), 30):
      state, info = step(state, optimizee, key)
      values.append(float(info.meta_loss[-1]))
    self.assertLess(np.mean(values[-5:]), np.mean(values[:5]) - 0.3)

  def test_bad_arguments(self):
    make = functools.partial(evolution, gradient_descent(), optax.sgd(1.0))
    with self.assertRaisesRegex(ValueError, 'unroll_length must be positive'):
      make(unroll_length=0, num_unrolls=1)
    with self.assertRaisesRegex(ValueError, 'std must be positive'):
      make(unroll_length=1, num_unrolls=1, std=0.0)


if __name__ == '__main__':
  absltest.main()
