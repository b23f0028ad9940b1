"""Blocks of coordinates: the same meta-gradients, the same updates."""

from unittest import mock

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import absltest, parameterized

from l2o_jax import blocks
from l2o_jax.blocks import chunked
from l2o_jax.cells.lstm import lstm_cell
from l2o_jax.coordinatewise import coordinatewise
from l2o_jax.features import gradient, log_and_sign
from l2o_jax.learned_optimizers import robust_optimizer
from l2o_jax.optimizees.quadratic import quadratic
from l2o_jax.policy_features import relative_changes
from l2o_jax.truncated_bptt import truncated_bptt
from l2o_jax.unroll import unroll
from tests import quick
from tests.contracts.subjects import LEARNED, theta_of, tree


@pytest.mark.slow
class UnrollTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ('gradient', gradient(), jnp.float32),
    ('log_and_sign', log_and_sign(), jnp.float32),
    ('bfloat16_state', log_and_sign(), jnp.bfloat16),
    ('integers_in_the_state', relative_changes(), jnp.float32),
  )
  def test_as_differentiated_whole(self, features, state_dtype):
    """By theta, x_0, state, and what f closes over.

    Four blocks of 4 of 14 coordinates: the last two overlap.
    """
    learned = coordinatewise(features, lstm_cell((4,)), state_dtype)
    theta = theta_of(learned)
    x = jnp.asarray(np.random.default_rng(1).normal(size=14), jnp.float32)
    leaves, structure = jax.tree.flatten(learned.transform(theta).init(x))
    is_float = lambda leaf: jnp.issubdtype(leaf.dtype, jnp.inexact)
    floats = [s + jnp.asarray(0.1, s.dtype) for s in leaves if is_float(s)]

    def total(theta, x, floats, scale, run):
      floats = iter(floats)
      state = structure.unflatten(
        [next(floats) if is_float(s) else s for s in leaves]
      )

      def f(x, key):
        a, b = x[:12].reshape(3, 4), x[12:]
        product = jnp.sum(a**2) * jnp.sum(b**4)
        return scale * product + jnp.sum(a[:, 1:] * b[0]) ** 2

      keys = jax.random.split(jax.random.key(3), 6)
      end, trajectory = run(f, learned.transform(theta), x, state, keys)
      ends = [
        s.astype(jnp.float32).sum() for s in jax.tree.leaves(end) if is_float(s)
      ]
      return trajectory.losses @ jnp.arange(1.0, 7.0) + sum(
        (i + 1) * s for i, s in enumerate(ends)
      )

    differentiate = quick.jit(
      jax.value_and_grad(total, (0, 1, 2, 3)), static_argnums=4
    )
    with mock.patch.object(blocks, 'BLOCK', 4):
      in_blocks = differentiate(theta, x, floats, 0.5, blocks.unroll)
    whole = differentiate(theta, x, floats, 0.5, unroll)
    tolerance = 1e-4 if state_dtype == jnp.float32 else 3e-2
    for got, want in zip(
      (in_blocks[0], *in_blocks[1]), (whole[0], *whole[1]), strict=True
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

  def test_what_it_cannot_do(self):
    learned = coordinatewise(gradient(), lstm_cell((2,)))
    opt = learned.transform(theta_of(learned))
    x = {'a': jnp.ones(3), 'b': jnp.ones(2)}
    run = lambda **options: blocks.unroll(
      lambda x, key: jnp.sum(x['a']),
      opt,
      x,
      opt.init(x),
      jax.random.split(jax.random.key(0), 3),
      **options,
    )
    with self.assertRaisesRegex(ValueError, r'one array .* 5 co.*\(2, 3\) for'):
      run()
    for options in (
      {'second_derivatives': True},
      {'remat': False},
      {'remat': 'segments'},
    ):
      with self.assertRaisesRegex(ValueError, 'not possible block by block'):
        run(**options)
    loss, keys = lambda x, key: jnp.sum(x), jax.random.split(jax.random.key(0))
    with self.assertRaisesRegex(TypeError, r'^blocks.unroll: .* its transform'):
      blocks.unroll(loss, learned, jnp.ones(3), (), keys)
    with self.assertRaisesRegex(ValueError, '^blocks.unroll: keys must be sev'):
      state = opt.init(jnp.ones(3))
      blocks.unroll(loss, opt, jnp.ones(3), state, jax.random.key(0))

  def test_no_coordinates(self):
    learned = coordinatewise(gradient(), lstm_cell((3,)))
    opt, x = learned.transform(theta_of(learned)), jnp.zeros(0)
    keys = jax.random.split(jax.random.key(0), 3)
    run = lambda run: run(
      lambda x, key: jnp.sum(x) + 1, opt, x, opt.init(x), keys
    )
    _, seen = run(blocks.unroll)
    np.testing.assert_array_equal(seen.losses, run(unroll)[1].losses)

  @parameterized.named_parameters(
    ('averaging', coordinatewise(gradient(), lstm_cell((3,), averaged=2))),
    ('size of a leaf', robust_optimizer(agreement=None)),
    ('mean of a leaf', robust_optimizer()),
  )
  def test_what_depends_on_others_is_refused(self, learned):
    """With more coordinates than a block the gradient was 30 % off."""
    opt = learned.transform(theta_of(learned))
    x, keys = jnp.ones(12), jax.random.split(jax.random.key(0), 3)
    loss = lambda x, key: jnp.sum(x**2)
    with mock.patch.object(blocks, 'BLOCK', 5):
      with self.assertRaisesRegex(ValueError, '^blocks.unroll: .*communicate'):
        blocks.unroll(loss, opt, x, opt.init(x), keys)
      for count in (1, 2):
        trainer = truncated_bptt(
          learned,
          optax.sgd(1.0),
          unroll_length=2,
          num_unrolls=1,
          num_optimizees=count,
          unroll=blocks.unroll,
        )
        state = jax.eval_shape(trainer.init, jax.random.key(0))
        with self.assertRaisesRegex(ValueError, '^meta_loss: .*communicate'):
          jax.eval_shape(
            lambda s, t=trainer: t.step(s, quadratic(12), jax.random.key(0)),
            state,
          )
    with self.assertRaisesRegex(ValueError, '^chunked: .*communicate'):
      chunked(learned, 5)
    with self.assertRaisesRegex(ValueError, '^chunked: .*communicate'):
      chunked(chunked(LEARNED['small'], 5), 2)


class ChunkedTest(parameterized.TestCase):
  @parameterized.parameters('small', 'bfloat16_state')
  def test_same_updates_as_all_at_once(self, name):
    plain = LEARNED[name]
    theta = theta_of(plain)
    params = tree()

    def two_steps(learned):
      opt = learned.transform(theta)

      @quick.jit
      def run(params):
        def step(state, _):
          updates, state = opt.update(params, state, params)
          return state, updates

        return jax.lax.scan(step, opt.init(params), None, 2)[1]

      return run(params)

    chex.assert_trees_all_close(
      two_steps(chunked(plain, 5)), two_steps(plain), rtol=1e-5
    )

  @parameterized.parameters((jnp.float32, 320), (jnp.bfloat16, 160))
  def test_needs_no_second_state(self, dtype, size):
    """So many bytes of state a coordinate, donated; scratch for a block."""
    n = 1_000_000
    learned = chunked(
      coordinatewise(log_and_sign(), lstm_cell(), state_dtype=dtype)
    )
    theta = theta_of(learned)
    vector = jax.ShapeDtypeStruct((n,), jnp.float32)
    state = jax.eval_shape(lambda x: learned.transform(theta).init(x), vector)
    update = jax.jit(
      lambda g, state, x: learned.transform(theta).update(g, state, x),
      donate_argnums=1,
    )
    memory = update.lower(vector, state, vector).compile().memory_analysis()
    self.assertGreater(memory.alias_size_in_bytes, (size - 1) * 1e6)
    self.assertLess(memory.temp_size_in_bytes, 8e6 + 2e6)  # g, x and a block

  def test_bad_size(self):
    with self.assertRaisesRegex(ValueError, 'chunked.*0'):
      chunked(LEARNED['small'], 0)

  def test_chunked_outside_of_jit_is_traced_once(self):
    traces, features = [], gradient()

    def update(*args):
      traces.append(args)
      return features.update(*args)

    learned = coordinatewise(
      features._replace(update=update), lstm_cell((2,), 0.1)
    )
    opt, g = chunked(learned, 4).transform(theta_of(learned)), jnp.ones(6)
    _, state = opt.update(g, opt.init(g))
    once = len(traces)
    opt.update(g, state)
    self.assertLen(traces, once)

  def test_states_of_another_size_are_refused(self):
    opt = chunked(LEARNED['small'], 5).transform(theta_of(LEARNED['small']))
    state = jax.eval_shape(opt.init, jnp.ones(16))
    for n in (12, 4, 21):
      with self.assertRaisesRegex(ValueError, 'the state of a leaf has shape'):
        opt.update(jnp.ones(n), state)
    with self.assertRaisesRegex(ValueError, 'the parameter of a leaf has'):
      opt.update(jnp.ones(16), state, jnp.ones((4, 4)))


if __name__ == '__main__':
  absltest.main()
