"""Golden values, reductions and finite differences of meta-training."""

import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized
from jax.tree_util import Partial

from l2o_jax import blocks as replay
from l2o_jax.base import Optimizee
from l2o_jax.cells.lstm import lstm_cell
from l2o_jax.coordinatewise import coordinatewise
from l2o_jax.features import gradient, log_and_sign, relative_changes
from l2o_jax.learned_optimizers import flattened, lstm_raw
from l2o_jax.optimizees.quadratic import quadratic
from l2o_jax.truncated_bptt import MetaState, meta_loss, truncated_bptt
from l2o_jax.unroll import unroll


def parabola():
  """f(x) = x^2, x_0 = 1: the original's test problem."""
  return Optimizee(
    Partial(lambda key: (jnp.ones(()), ())), Partial(lambda x, task, key: x**2)
  )


def linear_only():
  return coordinatewise(gradient(), lstm_cell(hidden=(), scale=1.0))


class TruncatedBpttTest(parameterized.TestCase):
  def test_golden_values_of_the_original(self):
    """Its "Torch results": cost 0.7325327, x 0.8559 after two unrolls."""
    with jax.enable_x64(True):
      optimizer = optax.adam(0.01)
      trainer = truncated_bptt(
        linear_only(), optimizer, unroll_length=5, num_unrolls=2
      )
      theta = {
        'lstm': [],
        'linear': {'w': jnp.zeros((1, 1)), 'b': jnp.zeros(1)},
      }
      _, info = jax.jit(trainer.step)(
        MetaState(theta, optimizer.init(theta)), parabola(), jax.random.key(0)
      )
      cost = info.losses[-1, 0, -1]
      np.testing.assert_allclose(cost, 0.7325327, atol=1e-7)
      np.testing.assert_allclose(jnp.sqrt(cost), 0.8559, atol=5e-5)

  def test_converges_as_the_original(self):
    """Cost under 1e-5 within 500 epochs of 5 unrolls of 20."""
    optimizer = optax.adam(0.01)
    trainer = truncated_bptt(
      linear_only(), optimizer, unroll_length=20, num_unrolls=5
    )
    theta = {'lstm': [], 'linear': {'w': jnp.zeros((1, 1)), 'b': jnp.zeros(1)}}
    step = lambda state, key: trainer.step(state, parabola(), key)
    _, info = jax.jit(lambda s, k: jax.lax.scan(step, s, k))(
      MetaState(theta, optimizer.init(theta)),
      jax.random.split(jax.random.key(0), 500),
    )
    self.assertLess(info.losses[-1, -1, 0, -1], 1e-5)

  @parameterized.product(features=[gradient(), log_and_sign(10.0)])
  def test_gradient_by_finite_differences(self, features):
    """With second derivatives the meta-gradient is the true one."""
    with jax.enable_x64(True):
      learned = coordinatewise(features, lstm_cell((3,), scale=0.1))
      theta = jax.tree.map(
        lambda x: x.astype(float), learned.init(jax.random.key(1))
      )
      optimizee = quadratic(dimension=3)
      params, tasks = jax.vmap(optimizee.init)(
        jax.random.split(jax.random.key(2), 2)
      )
      states = jax.vmap(learned.transform(theta).init)(params)
      keys = jax.random.split(jax.random.key(3), (2, 5))
      loss = jax.jit(
        lambda theta: meta_loss(
          theta,
          learned,
          optimizee,
          tasks,
          params,
          states,
          keys,
          second_derivatives=True,
        )[0]
      )
      flat, unravel = jax.flatten_util.ravel_pytree(theta)
      direction = jax.random.normal(jax.random.key(4), flat.shape)
      along = lambda e: float(loss(unravel(flat + e * direction)))
      numeric = (
        8 * (along(1e-4) - along(-1e-4)) - (along(2e-4) - along(-2e-4))
      ) / 12e-4
      exact = float(
        direction @ jax.flatten_util.ravel_pytree(jax.grad(loss)(theta))[0]
      )
    np.testing.assert_allclose(exact, numeric, rtol=1e-7)

  def test_remat_and_batching_change_nothing(self):
    learned = lstm_raw(0.1)
    theta = learned.init(jax.random.key(0))
    optimizee = quadratic(dimension=3)
    params, tasks = jax.vmap(optimizee.init)(
      jax.random.split(jax.random.key(1), 3)
    )
    states = jax.vmap(learned.transform(theta).init)(params)
    keys = jax.random.split(jax.random.key(2), (3, 8))

    def loss(rows, **options):
      some = lambda tree: jax.tree.map(lambda x: x[rows], tree)
      return jax.value_and_grad(
        lambda theta: meta_loss(
          theta,
          learned,
          optimizee,
          some(tasks),
          some(params),
          some(states),
          keys[rows],
          **options,
        )[0]
      )(theta)

    whole = loss(slice(0, 3))
    remat = loss(slice(0, 3), remat=True)
    segments = loss(slice(0, 3), remat='segments')  # 3, 3 and 1 steps
    with mock.patch.object(replay, 'BLOCK', 2):  # 2 of 3, then the last 2
      blocks = loss(slice(0, 3), remat='blocks')
    single = [loss(slice(i, i + 1)) for i in range(3)]
    mean = jax.tree.map(lambda *x: sum(x) / 3, *single)
    for other in (remat, segments, blocks, mean):
      jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-5),
        whole,
        other,
      )

  @parameterized.named_parameters(
    ('gradient', gradient(), jnp.float32),
    ('log_and_sign', log_and_sign(), jnp.float32),
    ('bfloat16_state', log_and_sign(), jnp.bfloat16),
    ('integers_in_the_state', relative_changes(), jnp.float32),
  )
  def test_blocks(self, features, state_dtype):
    """As differentiated whole: by theta, x_0, state, and what f closes over.

    Four blocks of 4 of 14 coordinates: the last two overlap.
    """
    learned = flattened(
      coordinatewise(features, lstm_cell((4, 3)), state_dtype)
    )
    theta = learned.init(jax.random.key(0))
    x = {
      'a': jax.random.normal(jax.random.key(1), (3, 4)),
      'b': jax.random.normal(jax.random.key(2), (2,)),
    }
    leaves, structure = jax.tree.flatten(learned.transform(theta).init(x))
    is_float = lambda leaf: jnp.issubdtype(leaf.dtype, jnp.inexact)
    floats = [s + jnp.asarray(0.1, s.dtype) for s in leaves if is_float(s)]

    def total(theta, x, floats, scale, remat):
      floats = iter(floats)
      state = structure.unflatten(
        [next(floats) if is_float(s) else s for s in leaves]
      )
      end, run = unroll(
        lambda x, key: (
          scale * jnp.sum(x['a'] ** 2) * jnp.sum(x['b'] ** 4)
          + jnp.sum(x['a'][:, 1:] * x['b'][0]) ** 2
        ),
        learned.transform(theta),
        x,
        state,
        jax.random.split(jax.random.key(3), 6),
        remat=remat,
      )
      ends = [
        s.astype(jnp.float32).sum() for s in jax.tree.leaves(end) if is_float(s)
      ]
      return run.losses @ jnp.arange(1.0, 7.0) + sum(
        (i + 1) * s for i, s in enumerate(ends)
      )

    differentiate = jax.value_and_grad(total, (0, 1, 2, 3))
    with mock.patch.object(replay, 'BLOCK', 4):
      blocks = differentiate(theta, x, floats, 0.5, 'blocks')
    whole = differentiate(theta, x, floats, 0.5, False)
    tolerance = 1e-4 if state_dtype == jnp.float32 else 3e-2
    for got, want in zip(
      (blocks[0], *blocks[1]), (whole[0], *whole[1]), strict=True
    ):
      largest = max(float(jnp.abs(s).max()) for s in jax.tree.leaves(want))
      self.assertGreater(largest, 0)
      jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
          np.float32(a), np.float32(b), rtol=tolerance, atol=tolerance * largest
        ),
        got,
        want,
      )

  def test_blocks_need_a_vector(self):
    learned = coordinatewise(gradient(), lstm_cell((2,)))
    opt = learned.transform(learned.init(jax.random.key(0)))
    x = {'a': jnp.ones(3), 'b': jnp.ones(2)}
    run = lambda **options: unroll(
      lambda x, key: jnp.sum(x['a']),
      opt,
      x,
      opt.init(x),
      jax.random.split(jax.random.key(0), 3),
      remat='blocks',
      **options,
    )
    with self.assertRaisesRegex(ValueError, r'all 5 co.*\(2, 3\) for opt_st'):
      run()
    for options in ({'second_derivatives': True}, {'record': lambda step: 0}):
      with self.assertRaisesRegex(ValueError, 'neither second derivatives nor'):
        run(**options)

  @parameterized.parameters(
    (100, 10_000, True, 344.2e6),
    (100, 10_000, 'blocks', 344.2e6),
    (100, 10_000, 'segments', 85.0e6),
    (1000, 100_000, 'segments', 2243e6),
  )
  def test_memory(self, num_steps, n, remat, expected):
    """What is stored: 81 numbers (state, gradient) a coordinate and kept step.

    As many as T steps, or as segments and the steps of one; and 6.24 times that
    to work with.
    """
    learned = lstm_raw()
    optimizee = Optimizee(
      Partial(lambda key: (jnp.zeros(n), ())),
      Partial(lambda x, task, key: jnp.sum(x**2)),
    )
    theta = learned.init(jax.random.key(0))
    params = jax.ShapeDtypeStruct((1, n), jnp.float32)
    states = jax.eval_shape(jax.vmap(learned.transform(theta).init), params)
    keys = jax.eval_shape(
      lambda key: jax.random.split(key, (1, num_steps + 1)), jax.random.key(0)
    )
    gradient = jax.jit(
      jax.grad(
        lambda theta, *batch: meta_loss(
          theta, learned, optimizee, (), *batch, remat=remat
        )[0]
      )
    )
    memory = (
      gradient.lower(theta, params, states, keys).compile().memory_analysis()
    )
    self.assertLess(memory.temp_size_in_bytes, 8e9)
    np.testing.assert_allclose(memory.temp_size_in_bytes, expected, rtol=0.1)

  def test_weights(self):
    """Final only: the meta-loss is the last loss of the last unroll."""
    learned = coordinatewise(gradient(), lstm_cell((2,), scale=0.1))
    trainer = truncated_bptt(
      learned,
      optax.sgd(0.0),
      unroll_length=3,
      num_unrolls=2,
      num_optimizees=4,
      weights=jnp.zeros(7).at[-1].set(1.0),
    )
    _, info = jax.jit(trainer.step)(
      trainer.init(jax.random.key(0)), quadratic(dimension=2), jax.random.key(1)
    )
    self.assertEqual(info.losses.shape, (2, 4, 4))
    self.assertEqual(float(info.meta_loss[0]), 0.0)
    self.assertEqual(float(info.gradient_norm[0]), 0.0)
    np.testing.assert_allclose(
      info.meta_loss[1], np.mean(info.losses[1, :, -1]), rtol=1e-6
    )
    self.assertGreater(float(info.gradient_norm[1]), 0.0)

  def test_clip_each(self):
    """The large gradient of two is clipped, the small one is not."""

    # One step of x' = x + w g + b from x = 1: the final loss a x'^2 has, at
    # w = b = 0, the gradient 2 a (g, 1) with g = 2 a.
    def family(key):
      return jnp.ones(()), jax.random.bernoulli(key)

    scales = jnp.array([2.0, 0.25])
    optimizee = Optimizee(
      Partial(family),
      Partial(lambda x, task, key: scales[task.astype(int)] * x**2),
    )
    theta = {'lstm': [], 'linear': {'w': jnp.zeros((1, 1)), 'b': jnp.zeros(1)}}
    key = next(
      k
      for k in map(jax.random.key, range(99))
      if sum(
        jax.vmap(jax.random.bernoulli)(
          jax.random.split(jax.random.split(k)[0], 2)
        )
      )
      == 1
    )
    got = {}
    for clip in (None, 1e9, 1.0):
      trainer = truncated_bptt(
        linear_only(),
        optax.sgd(1.0),
        unroll_length=1,
        num_unrolls=1,
        num_optimizees=2,
        clip_each=clip,
      )
      state, _ = trainer.step(
        MetaState(theta, optax.sgd(1.0).init(theta)), optimizee, key
      )
      got[clip] = [-float(state.theta['linear'][k].ravel()[0]) for k in 'wb']
    # Gradients (16, 4) and (0.25, 0.5): norms 16.4924 and 0.5590.
    np.testing.assert_allclose(got[None], [8.125, 2.25], rtol=1e-6)
    np.testing.assert_allclose(got[1e9], [8.125, 2.25], rtol=1e-6)
    np.testing.assert_allclose(got[1.0], [0.6100713, 0.3712678], rtol=1e-6)

  def test_state_goes_from_unroll_to_unroll(self):
    """With a frozen theta, U unrolls of T steps are one run of U T steps."""
    learned = coordinatewise(gradient(), lstm_cell((4,), scale=0.1))
    run = lambda length, number: jax.jit(
      truncated_bptt(
        learned,
        optax.sgd(0.0),
        unroll_length=length,
        num_unrolls=number,
        num_optimizees=2,
      ).step
    )
    optimizee = quadratic(dimension=3)
    theta = learned.init(jax.random.key(0))
    state = MetaState(theta, optax.sgd(0.0).init(theta))
    _, pieces = run(5, 4)(state, optimizee, jax.random.key(1))
    _, whole = run(20, 1)(state, optimizee, jax.random.key(1))
    for u in range(4):
      np.testing.assert_allclose(
        pieces.losses[u], whole.losses[0][:, 5 * u : 5 * u + 6], rtol=1e-4
      )

  def test_bad_sizes(self):
    learned = linear_only()
    with self.assertRaisesRegex(ValueError, 'num_unrolls.*0'):
      truncated_bptt(learned, optax.sgd(1.0), unroll_length=5, num_unrolls=0)
    with self.assertRaisesRegex(ValueError, r'\(11,\), got \(10,\)'):
      truncated_bptt(
        learned,
        optax.sgd(1.0),
        unroll_length=5,
        num_unrolls=2,
        weights=jnp.ones(10),
      )


if __name__ == '__main__':
  absltest.main()
