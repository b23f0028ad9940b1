"""Golden values, reductions and finite differences of meta-training."""

import functools
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from l2o_jax import blocks
from l2o_jax.base import Optimizee
from l2o_jax.cells.lstm import lstm_cell
from l2o_jax.coordinatewise import coordinatewise
from l2o_jax.evaluation import learning_curves
from l2o_jax.features import gradient, log_and_sign
from l2o_jax.groups import Groups, grouped
from l2o_jax.learned_optimizers import lstm_raw
from l2o_jax.optimizees.quadratic import quadratic
from l2o_jax.policy_features import relative_changes
from l2o_jax.truncated_bptt import (
  MetaState,
  initial_state,
  meta_loss,
  truncated_bptt,
)
from tests import quick
from tests.contracts.subjects import gru_cell, theta_of


def parabola():
  """f(x) = x^2, x_0 = 1: the original's test problem."""
  return Optimizee(lambda key: (jnp.ones(()), ()), lambda x, task, key: x**2)


def linear_only():
  return coordinatewise(gradient(), lstm_cell(hidden=(), scale=1.0))


def started(learned, theta, optimizee, shape):
  """What `meta_loss` is given of some B optimizees at their start.

  Their draws would take seconds to compile; `shape` is [B, T + 1].
  """

  rng, keys = (
    np.random.default_rng(5),
    jax.random.split(jax.random.key(5), shape),
  )
  draw = lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype)
  params, tasks = jax.eval_shape(jax.vmap(optimizee.init), keys[:, 0])
  start = functools.partial(initial_state, learned, theta)
  states = jax.eval_shape(jax.vmap(start), params)
  params = jax.tree.map(draw, params)
  tasks = jax.tree.map(lambda x: jnp.exp(draw(x)), tasks)
  states = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), states)
  return optimizee, tasks, params, states, keys


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
      _, info = quick.jit(trainer.step)(
        MetaState(theta, optimizer.init(theta)), parabola(), jax.random.key(0)
      )
      cost = info.losses[-1, 0, -1]
      np.testing.assert_allclose(cost, 0.7325327, atol=1e-7)
      np.testing.assert_allclose(jnp.sqrt(cost), 0.8559, atol=5e-5)

  def test_explicit_axes(self):
    """Newer versions of `jax.make_mesh` make them by default."""
    kind = jax.sharding.AxisType.Explicit
    mesh = jax.make_mesh((1,), ('a',), axis_types=(kind,))
    spec = jax.sharding.PartitionSpec('a')
    with self.assertRaisesRegex(ValueError, 'axes of the mesh must be Auto'):
      truncated_bptt(
        linear_only(),
        optax.sgd(0.1),
        unroll_length=2,
        num_unrolls=1,
        sharding=jax.sharding.NamedSharding(mesh, spec),
      )

  def test_arguments_in_another_order(self):
    with self.assertRaisesRegex(TypeError, 'meta_optimizer is no optax trans'):
      truncated_bptt(
        optax.adam(0.1), linear_only(), unroll_length=2, num_unrolls=1
      )

  def test_converges_as_the_original(self):
    """Cost under 1e-5 within 500 epochs of 5 unrolls of 20."""
    optimizer = optax.adam(0.01)
    trainer = truncated_bptt(
      linear_only(), optimizer, unroll_length=20, num_unrolls=5
    )
    theta = {'lstm': [], 'linear': {'w': jnp.zeros((1, 1)), 'b': jnp.zeros(1)}}
    step = lambda state, key: trainer.step(state, parabola(), key)
    _, info = quick.jit(lambda s, k: jax.lax.scan(step, s, k))(
      MetaState(theta, optimizer.init(theta)),
      jax.random.split(jax.random.key(0), 500),
    )
    self.assertLess(info.losses[-1, -1, 0, -1], 1e-5)

  @parameterized.product(features=[gradient(), log_and_sign(10.0)])
  def test_gradient_by_finite_differences(self, features):
    """With second derivatives the meta-gradient is the true one."""
    with jax.enable_x64(True):
      learned = coordinatewise(features, lstm_cell((3,), scale=0.1))
      theta = jax.tree.map(lambda x: x.astype(float), theta_of(learned))
      batch = started(learned, theta, quadratic(dimension=3), (2, 5))
      loss = quick.jit(
        jax.value_and_grad(
          lambda theta: meta_loss(
            theta, learned, *batch, second_derivatives=True
          )[0]
        )
      )
      flat, unravel = jax.flatten_util.ravel_pytree(theta)
      direction = np.random.default_rng(4).normal(size=flat.shape)
      along = lambda e: float(loss(unravel(flat + e * direction))[0])
      numeric = (
        8 * (along(1e-4) - along(-1e-4)) - (along(2e-4) - along(-2e-4))
      ) / 12e-4
      slope, _ = jax.flatten_util.ravel_pytree(loss(theta)[1])
      exact = float(direction @ slope)
    np.testing.assert_allclose(exact, numeric, rtol=1e-7)

  def test_remat_changes_nothing(self):
    learned = coordinatewise(gradient(), lstm_cell((4,), scale=0.1))
    theta = theta_of(learned)
    optimizee, *batch = started(learned, theta, quadratic(dimension=3), (3, 8))

    def loss(**options):
      differentiate = jax.value_and_grad(
        lambda theta, batch: meta_loss(
          theta, learned, optimizee, *batch, **options
        )[0]
      )
      return quick.jit(differentiate)

    whole = loss(remat=False)(theta, batch)
    remat = loss(remat=True)(theta, batch)
    segments = loss(remat='segments')(theta, batch)  # 3, 3 and 1 steps
    with mock.patch.object(blocks, 'BLOCK', 2):  # 2 of 9, ..., the last 2
      in_blocks = loss(unroll=blocks.unroll)(theta, batch)
    for other in (remat, segments, in_blocks):
      jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-5),
        whole,
        other,
      )

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
      lambda key: (jnp.zeros(n), ()), lambda x, task, key: jnp.sum(x**2)
    )
    theta = theta_of(learned)
    options = (
      {'unroll': blocks.unroll} if remat == 'blocks' else {'remat': remat}
    )
    params = jax.ShapeDtypeStruct((1, n), jnp.float32)
    states = jax.eval_shape(jax.vmap(learned.transform(theta).init), params)
    keys = jax.eval_shape(
      lambda key: jax.random.split(key, (1, num_steps + 1)), jax.random.key(0)
    )
    gradient = jax.jit(
      jax.grad(
        lambda theta, *batch: meta_loss(
          theta, learned, optimizee, (), *batch, **options
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
      optax.sgd(1.0),
      unroll_length=3,
      num_unrolls=2,
      num_optimizees=4,
      weights=jnp.zeros(7).at[-1].set(1.0),
    )
    theta = theta_of(learned)
    state = MetaState(theta, optax.sgd(1.0).init(theta))
    new, info = quick.jit(trainer.step)(
      state, quadratic(dimension=2), jax.random.key(1)
    )
    self.assertEqual(info.losses.shape, (2, 4, 4))
    self.assertEqual(float(info.meta_loss[0]), 0.0)
    np.testing.assert_allclose(
      info.meta_loss[1], np.mean(info.losses[1, :, -1]), rtol=1e-6
    )
    # One meta-step moved theta, by its gradient; the first had none.
    norm = optax.tree.norm(optax.tree.sub(new.theta, theta))
    self.assertGreater(float(norm), 0)
    np.testing.assert_allclose(info.summary['gradient_norm'], norm, rtol=1e-5)

  @parameterized.parameters('rising', 'first')
  def test_weights_of_every_step(self, kind):
    """The last loss of an unroll and the first of the next are at one x."""
    weights = {'rising': np.arange(7.0), 'first': np.eye(7)[0]}[kind]
    trainer = truncated_bptt(
      linear_only(),
      optax.sgd(0.0),
      unroll_length=3,
      num_unrolls=2,
      weights=weights,
    )
    theta = theta_of(linear_only())
    state = MetaState(theta, optax.sgd(0.0).init(theta))
    _, info = quick.jit(trainer.step)(state, quadratic(2), jax.random.key(1))
    want = [info.losses[u, 0] @ weights[3 * u : 3 * u + 4] for u in range(2)]
    np.testing.assert_allclose(info.meta_loss, want, rtol=1e-5)

  def test_losses_in_a_narrow_type(self):
    """101 losses of 1,000 in float16: their sum is beyond its range."""

    def loss(x, task, key):
      return (1000 + jnp.sum(x.astype(jnp.float32) ** 2)).astype(jnp.float16)

    start = lambda key: (jnp.ones(2, jnp.float16), ())
    trainer = truncated_bptt(
      linear_only(), optax.sgd(0.0), unroll_length=100, num_unrolls=1
    )
    state = trainer.init(jax.random.key(0))
    zero = state._replace(theta=jax.tree.map(jnp.zeros_like, state.theta))
    optimizee = Optimizee(start, loss)
    _, info = quick.jit(trainer.step)(zero, optimizee, jax.random.key(1))
    np.testing.assert_allclose(info.meta_loss, [101 * 1002], rtol=1e-5)
    self.assertFalse(info.skipped.any())

  def test_a_parameter_that_is_not_real_is_named(self):
    start = lambda key: ({'x': jnp.ones(2), 'n': jnp.array(3)}, ())
    loss = lambda params, task, key: jnp.sum(params['x'] ** 2)
    optimizee = Optimizee(start, loss)
    trainer = truncated_bptt(
      linear_only(), optax.sgd(0.1), unroll_length=2, num_unrolls=1
    )
    state = trainer.init(jax.random.key(0))
    with self.assertRaisesRegex(TypeError, r"parameter \['n'\] is int32"):
      trainer.step(state, optimizee, jax.random.key(1))

  def test_clip_each(self):
    """The large gradient of two is clipped, the small one is not."""

    # One step of x' = x + w g + b from x = 1: the final loss a x'^2 has, at
    # w = b = 0, the gradient 2 a (g, 1) with g = 2 a.
    scales = jnp.array([2.0, 0.25])
    optimizee = Optimizee(
      lambda key: (jnp.ones(()), jax.random.bernoulli(key)),
      lambda x, task, key: scales[task.astype(int)] * x**2,
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
      state, _ = quick.jit(trainer.step)(
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
    run = lambda length, number: quick.jit(
      truncated_bptt(
        learned,
        optax.sgd(0.0),
        unroll_length=length,
        num_unrolls=number,
        num_optimizees=2,
      ).step
    )
    optimizee = quadratic(dimension=3)
    theta = theta_of(learned)
    state = MetaState(theta, optax.sgd(0.0).init(theta))
    _, pieces = run(5, 4)(state, optimizee, jax.random.key(1))
    _, whole = run(20, 1)(state, optimizee, jax.random.key(1))
    for u in range(4):
      np.testing.assert_allclose(
        pieces.losses[u], whole.losses[0][:, 5 * u : 5 * u + 6], rtol=1e-4
      )

  def test_weights_of_any_kind(self):
    learned, f = linear_only(), quadratic(dimension=2)
    params, tasks = jax.vmap(f.init)(jax.random.split(jax.random.key(0), 1))
    keys = jax.random.split(jax.random.key(1), (1, 3))
    theta = theta_of(learned)
    states = initial_state(learned, theta, params)
    of = lambda weights: meta_loss(
      theta, learned, f, tasks, params, states, keys, weights=weights
    )
    loss, (*_, losses) = of([0, 0, 1])
    np.testing.assert_allclose(loss, losses[0, -1], rtol=1e-6)
    with self.assertRaisesRegex(ValueError, r'shape \(3,\), got \(2,\)'):
      of(np.ones(2))

  def test_bad_arguments(self):
    sizes = {'unroll_length': 5, 'num_unrolls': 2}
    with self.assertRaisesRegex(TypeError, 'learned must be a LearnedOptimiz'):
      truncated_bptt(optax.sgd(1.0), optax.sgd(1.0), **sizes)
    for options, message in (
      ({'num_unrolls': 0}, 'num_unrolls.*0'),
      ({'unroll_length': -1}, 'unroll_length.*-1'),
      ({'num_optimizees': 0}, 'num_optimizees.*0'),
      ({'weights': jnp.ones(10)}, r'\(11,\), got \(10,\)'),
      ({'weights': np.full(11, np.nan)}, 'must be finite'),
      ({'remat': 'blocks'}, "remat must be .*'blocks'"),
      ({'clip_each': 0.0}, 'clip_each .* 0.0'),
      ({'clip_each': float('nan')}, 'clip_each .* nan'),
    ):
      with self.assertRaisesRegex(ValueError, '^truncated_bptt: .*' + message):
        truncated_bptt(linear_only(), optax.sgd(1.0), **{**sizes, **options})


def mixed(dtype=jnp.float32, noise=0.1):
  """Leaves of all ranks; optimizees whose values differ by a factor of 100."""

  def init(key):
    draw = lambda i, *shape: jax.random.normal(
      jax.random.fold_in(key, i), shape
    )
    params = {
      'w': draw(0, 2, 3),
      's': draw(1),
      'b': draw(2, 3).astype(dtype),
      'empty': jnp.zeros((0, 2)),
      'none': None,
    }
    return params, 10 ** jax.random.uniform(key, minval=-1, maxval=1)

  def loss(params, scale, key):
    x = params['w'] * params['s'] + params['b'].astype(jnp.float32)
    if noise:
      x += noise * jax.random.normal(key, (3,))
    return scale * jnp.sum(x**2)

  return Optimizee(init, loss)


class ManyOptimizeesTest(parameterized.TestCase):
  @parameterized.parameters(
    (relative_changes(), jnp.float32, None, 0.1),
    (relative_changes(), jnp.bfloat16, None, 0),
    (gradient(), jnp.bfloat16, jnp.bfloat16, 0),
  )
  def test_as_one_array_they_are_what_they_are_apart(
    self, features, dtype, state_dtype, noise
  ):
    """Losses, meta-gradient, final parameters and states, each by itself."""
    learned = coordinatewise(features, lstm_cell((3,), scale=0.1), state_dtype)
    apart = learned._replace(communicates=True)  # run without the array
    theta = theta_of(learned)
    optimizee, *batch = started(learned, theta, mixed(dtype, noise), (3, 5))
    _, *batch_apart = started(apart, theta, mixed(dtype, noise), (3, 5))

    def run(learned):
      differentiate = jax.value_and_grad(meta_loss, has_aux=True)
      return quick.jit(
        lambda batch: differentiate(theta, learned, optimizee, *batch)
      )

    (loss, (params, states, losses)), slope = run(learned)(batch)
    one = run(apart)
    each = [
      one(jax.tree.map(lambda x, b=b: x[b : b + 1], batch_apart))
      for b in range(3)
    ]
    leaves = jax.tree.leaves(params)

    def on_array(states):  # leaves [1, K, *s] of all leaves -> [1, K, n]
      found, of = [np.asarray(x) for x in jax.tree.leaves(states)], []
      for i in range(0, len(found), len(leaves)):
        parts = found[i : i + len(leaves)]
        k = parts[0].ndim - leaves[0].ndim + 1
        of.append(
          np.concatenate([x.reshape(*x.shape[:k], -1) for x in parts], -1)
        )
      return of

    close = (
      functools.partial(chex.assert_trees_all_close, rtol=1e-4, atol=1e-5)
      if dtype == jnp.float32
      else functools.partial(chex.assert_trees_all_close, rtol=2e-2, atol=2e-2)
    )
    wide = lambda tree: jax.tree.map(lambda x: x.astype(jnp.float32), tree)
    for b, ((_, (one_params, one_states, one_losses)), _) in enumerate(each):
      got = jax.tree.map(lambda x, b=b: x[b : b + 1], (params, states, losses))
      got = got[0], jax.tree.leaves(got[1]), got[2]
      want = one_params, on_array(one_states), one_losses
      chex.assert_trees_all_equal_shapes_and_dtypes(got, want)
      close(wide(got), wide(want))
    mean = lambda *x: sum(x) / 3
    close(loss, mean(*(e[0][0] for e in each)))
    close(slope, jax.tree.map(mean, *(e[1] for e in each)))
    self.assertGreater(np.ptp(np.log(losses[:, 0])), 1)


class OwnCellTest(parameterized.TestCase):
  """A cell of one coordinate, 20 lines of its user, in every place."""

  def test_meta_gradients_whatever_is_stored(self):
    learned = coordinatewise(log_and_sign(), gru_cell())
    theta, optimizee = theta_of(learned), mixed(noise=0)

    def gradient_of(count, **options):
      batch = started(learned, theta, optimizee, (count, 6))
      loss = lambda theta: meta_loss(theta, learned, *batch, **options)[0]
      return quick.jit(jax.grad(loss))(theta)

    for count in (1, 3):
      want = gradient_of(count, remat=False)
      self.assertGreater(float(optax.tree.norm(want)), 1e-3)
      options = [{'remat': True}, {'unroll': blocks.unroll}]
      for option in options[count == 1 :] + [{'remat': 'segments'}] * (
        count == 3
      ):
        with mock.patch.object(blocks, 'BLOCK', 4):
          got = gradient_of(count, **option)
        chex.assert_trees_all_close(got, want, rtol=1e-3, atol=1e-4)

  @parameterized.parameters(
    {'clip_each': 1.0}, {'num_optimizees': 1}, {'unroll': blocks.unroll}
  )
  def test_meta_training(self, **options):
    learned = coordinatewise(gradient(), gru_cell())
    meta = optax.adam(1e-2)
    trainer = truncated_bptt(
      learned,
      meta,
      unroll_length=4,
      num_unrolls=2,
      **{'num_optimizees': 3, **options},
    )
    theta = theta_of(learned)
    step = lambda state, key: trainer.step(state, quadratic(3), key)
    keys = jax.random.split(jax.random.key(0), 60)
    state, info = quick.jit(lambda s: jax.lax.scan(step, s, keys))(
      MetaState(theta, meta.init(theta))
    )
    last = info.losses[..., -1, :, -1].mean(1)
    self.assertLess(float(last[-10:].mean()), 0.8 * float(last[:10].mean()))
    self.assertFalse(info.skipped.any())
    curves = quick.jit(
      lambda theta, keys: learning_curves(
        quadratic(3), learned.transform(theta), keys, 8
      )
    )(state.theta, keys[:5])
    self.assertTrue((curves[:, -1] < curves[:, 0]).all())

  def test_chunked_and_grouped(self):
    learned = coordinatewise(log_and_sign(), gru_cell())
    theta = theta_of(learned)
    x = jnp.linspace(-1, 1, 7)
    labels = {'a': 'one', 'b': 'one'}
    parts = {'a': x[:3], 'b': x[3:]}
    groups = grouped(learned, Groups(labels, ('one',)))
    first = lambda opt, x: opt.update(x, opt.init(x), x)[0]
    plain, chunks, group = quick.jit(
      lambda: (
        first(learned.transform(theta), x),
        first(blocks.chunked(learned, 3).transform(theta), x),
        first(groups.transform({'one': theta}), parts),
      )
    )()
    np.testing.assert_allclose(chunks, plain, rtol=1e-5)
    np.testing.assert_allclose(
      np.concatenate([group['a'], group['b']]), plain, rtol=1e-5
    )

  def test_groups_in_meta_training(self):
    """Each group's theta moves, by its own gradient."""
    labels = {'w': 'w', 's': 's', 'b': 'w', 'empty': 's', 'none': None}
    learned = grouped(linear_only(), Groups(labels, ('w', 's')))
    trainer = truncated_bptt(
      learned, optax.sgd(1e-3), unroll_length=2, num_unrolls=1, num_optimizees=2
    )
    theta = theta_of(learned)
    state = MetaState(theta, optax.sgd(1e-3).init(theta))
    new, _ = quick.jit(trainer.step)(state, mixed(), jax.random.key(0))
    for name in ('w', 's'):
      moved = optax.tree.sub(new.theta[name], theta[name])
      self.assertGreater(float(optax.tree.norm(moved)), 0, name)


if __name__ == '__main__':
  absltest.main()
