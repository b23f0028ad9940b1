"""A table of learned optimizers against a list of contracts; their cells."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from l2o_jax.cells.lstm import lstm_cell
from l2o_jax.cells.mlp import mlp_cell
from l2o_jax.cells.standardised import standardised
from l2o_jax.coordinatewise import chunked, coordinatewise, grouped
from l2o_jax.features import gradient, log_and_sign
from l2o_jax.joint import joint
from l2o_jax.learned_optimizers import (
  autonomous_optimizer,
  flattened,
  lstm_log_and_sign,
  lstm_raw,
  predicted_step_descent,
)


def by_rank(params):
  return jax.tree.map(lambda x: 'matrix' if x.ndim > 1 else 'other', params)


LEARNED = {
  'lstm_raw': lstm_raw(),
  'lstm_log_and_sign': lstm_log_and_sign(),
  'leaf_by_leaf': coordinatewise(log_and_sign(), lstm_cell((5,))),
  'chunked': chunked(coordinatewise(log_and_sign(), lstm_cell((5,))), 5),
  'bfloat16_state': coordinatewise(gradient(), lstm_cell((5,)), jnp.bfloat16),
  'linear': coordinatewise(gradient(), lstm_cell(hidden=(), scale=1.0)),
  'averaged': flattened(
    coordinatewise(gradient(), lstm_cell((6, 4), averaged=2))
  ),
  'grouped': grouped(
    coordinatewise(gradient(), lstm_cell((4,))), by_rank, ('matrix', 'other')
  ),
  'standardised_mlp': coordinatewise(
    log_and_sign(), standardised(mlp_cell((5, 4)))
  ),
  'predicted_step_descent': predicted_step_descent(hidden=4),
  'joint': autonomous_optimizer(20, depth=3, hidden=5),  # 20 as in `tree`
}
LEAF_BY_LEAF = (
  'leaf_by_leaf',
  'chunked',
  'bfloat16_state',
  'linear',
  'grouped',
  'standardised_mlp',
  'predicted_step_descent',
)
NEED_VALUE = ('predicted_step_descent', 'joint')
NEED_PARAMS = (*NEED_VALUE, 'grouped')  # optax.partition labels by params
OF_ANY_SIZE = [name for name in LEARNED if name != 'joint']
SEPARABLE = [name for name in OF_ANY_SIZE if name != 'averaged']


def tree(dtype=jnp.float32):
  rng = np.random.default_rng(1)
  make = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)
  return {
    'w': make(4, 3),
    'b': make(3),
    's': make(),
    'none': None,
    'empty': make(0, 2),
    'nested': (make(2, 1, 2),),
  }


class LearnedOptimizerTest(parameterized.TestCase):
  @parameterized.named_parameters((n, n) for n in LEARNED)
  def test_keeps_structure_shape_and_dtype(self, name):
    learned = LEARNED[name]
    theta = learned.init(jax.random.key(0))
    opt = learned.transform(theta)
    for dtype in (jnp.float32, jnp.bfloat16):
      params = tree(dtype)
      update = jax.jit(functools.partial(opt.update, value=1.0))
      updates, state = update(params, opt.init(params), params)
      chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)
      again, later = update(params, state, params)
      chex.assert_trees_all_equal_shapes_and_dtypes(state, later)
      chex.assert_tree_all_finite(again)
    if name in LEAF_BY_LEAF:  # optax.flatten cannot concatenate nothing
      self.assertEqual(opt.update({}, opt.init({}), {}, value=1.0)[0], {})

  @parameterized.named_parameters((n, n) for n in LEARNED)
  def test_ignores_unknown_arguments_and_runs_without_params(self, name):
    opt = LEARNED[name].transform(LEARNED[name].init(jax.random.key(0)))
    params = tree()
    state = jax.jit(opt.init)(params)
    needed = {'value': 1.0} if name in NEED_VALUE else {}
    plain = jax.jit(functools.partial(opt.update, **needed))(
      params, state, params
    )[0]
    other = jax.jit(
      lambda g, s, p: opt.update(g, s, p, value=1.0, anything=object())
    )(params, state, params)[0]
    chex.assert_trees_all_equal(plain, other)
    if name not in NEED_PARAMS:
      chex.assert_trees_all_equal(plain, jax.jit(opt.update)(params, state)[0])
    if name in NEED_VALUE:
      with self.assertRaisesRegex(TypeError, 'need `value`'):
        opt.update(params, state, params)

  @parameterized.named_parameters((n, n) for n in OF_ANY_SIZE)
  def test_permuting_coordinates_permutes_updates(self, name):
    opt = LEARNED[name].transform(LEARNED[name].init(jax.random.key(0)))
    x = jax.random.normal(jax.random.key(1), (7,))

    @jax.jit
    def two_steps(x):
      state = opt.init(x)
      _, state = opt.update(x, state, x, value=2.0)
      return opt.update(2 * x, state, x, value=1.0)[0]

    order = jnp.array([3, 1, 6, 0, 5, 2, 4])
    np.testing.assert_allclose(
      two_steps(x[order]), two_steps(x)[order], rtol=1e-5, atol=1e-7
    )

  @parameterized.named_parameters((n, n) for n in SEPARABLE)
  def test_coordinates_share_nothing(self, name):
    opt = LEARNED[name].transform(LEARNED[name].init(jax.random.key(0)))
    x = jax.random.normal(jax.random.key(1), (7,))
    update = jax.jit(lambda g: opt.update(g, opt.init(x), x, value=1.0))
    rest = np.array([0, 1, 2, 4, 5, 6])
    for other in (100.0, jnp.nan, jnp.inf, -jnp.inf):
      one, two = update(x), update(x.at[3].set(other))
      chex.assert_tree_all_finite(two)
      chex.assert_trees_all_equal(
        *jax.tree.map(lambda a: a[..., rest], (one, two))
      )
    self.assertNotEqual(one[0][3], two[0][3])

  @parameterized.named_parameters((n, n) for n in LEARNED)
  def test_zero_linear_layer_is_zero_update(self, name):
    theta = LEARNED[name].init(jax.random.key(0))
    zero = jax.tree.map_with_path(
      lambda path, x: 0 * x if 'linear' in jax.tree_util.keystr(path) else x,
      theta,
    )
    opt = LEARNED[name].transform(zero)
    params = tree()
    updates = jax.jit(lambda p: opt.update(p, opt.init(p), p, value=1.0)[0])(
      params
    )
    chex.assert_trees_all_equal(updates, jax.tree.map(jnp.zeros_like, params))

  @parameterized.named_parameters((n, n) for n in LEARNED)
  def test_two_thetas_share_one_trace(self, name):
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(1)
    def update(theta, params):
      opt = LEARNED[name].transform(theta)
      return opt.update(params, opt.init(params), params, value=1.0)[0]

    params = tree()
    one = update(LEARNED[name].init(jax.random.key(0)), params)
    two = update(LEARNED[name].init(jax.random.key(1)), params)
    self.assertGreater(float(jnp.abs(one['w'] - two['w']).max()), 0)

  @parameterized.named_parameters((n, n) for n in OF_ANY_SIZE)
  def test_composes_with_optax(self, name):
    theta = LEARNED[name].init(jax.random.key(0))
    opt = LEARNED[name].transform(theta)
    params = tree()
    close = functools.partial(chex.assert_trees_all_close, rtol=1e-5, atol=1e-7)

    def first(wrapped, params=params):
      return jax.jit(
        lambda p: wrapped.update(p, wrapped.init(p), p, value=1.0)[0]
      )(params)

    want = first(opt)
    close(
      first(optax.chain(opt, optax.scale(0.5))),
      jax.tree.map(lambda u: 0.5 * u, want),
    )
    masked = first(
      optax.masked(
        opt,
        {
          'w': True,
          'b': False,
          's': True,
          'none': None,
          'empty': True,
          'nested': (True,),
        },
      )
    )
    np.testing.assert_array_equal(masked['b'], params['b'])
    parts = first(
      optax.partition(
        {'a': opt, 'z': optax.set_to_zero()},
        {
          'w': 'a',
          'b': 'z',
          's': 'a',
          'none': None,
          'empty': 'a',
          'nested': ('a',),
        },
      )
    )
    np.testing.assert_array_equal(parts['b'], np.zeros(3))
    if name != 'averaged':
      close(parts['w'], want['w'])
    dense = {'w': params['w']}
    alone = first(opt, dense)
    every = optax.MultiSteps(opt, 2)
    update = jax.jit(functools.partial(every.update, value=1.0))
    idle, state = update(dense, every.init(dense), dense)
    np.testing.assert_array_equal(idle['w'], np.zeros((4, 3)))
    close(update(dense, state, dense)[0], alone)
    injected = optax.inject_hyperparams(
      lambda factor: optax.chain(opt, optax.scale(factor))
    )(factor=0.5)
    close(first(injected, dense), {'w': 0.5 * alone['w']})


class ChunkedTest(parameterized.TestCase):
  @parameterized.parameters('leaf_by_leaf', 'bfloat16_state')
  def test_same_updates_as_all_at_once(self, name):
    plain = LEARNED[name]
    theta = plain.init(jax.random.key(0))
    params = tree()

    def two_steps(learned):
      opt = learned.transform(theta)

      @jax.jit
      def run(params):
        updates, state = opt.update(params, opt.init(params), params)
        return updates, opt.update(updates, state, params)[0]

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
    theta = learned.init(jax.random.key(0))
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
      chunked(LEARNED['leaf_by_leaf'], 0)


class CellTest(parameterized.TestCase):
  def test_a_step_by_hand(self):
    """One unit, all weights by hand, against values computed with math."""
    theta = {
      'lstm': [
        {
          'w': jnp.array([[0.1, 0.2, 0.3, 0.4], [0.5, 0.6, 0.7, 0.8]]),
          'b': jnp.array([0.01, 0.02, 0.03, 0.04]),
        }
      ],
      'linear': {'w': jnp.array([[2.0]]), 'b': jnp.array([0.5])},
    }
    cell = lstm_cell((1,), scale=0.1)
    delta, state = cell.step(
      theta, jnp.array([1.5]), ((jnp.array([0.3]), jnp.array([-0.7])),)
    )
    np.testing.assert_allclose(state[0][1], [-0.3243683], rtol=1e-5)
    np.testing.assert_allclose(state[0][0], [-0.2215544], rtol=1e-5)
    np.testing.assert_allclose(delta, 0.005689112, rtol=1e-5)

  def test_averaged_needs_one_axis(self):
    learned = coordinatewise(gradient(), lstm_cell((4,), averaged=1))
    opt = learned.transform(learned.init(jax.random.key(0)))
    params = {'a': jnp.ones(3), 'b': jnp.ones(2)}
    with self.assertRaisesRegex(NameError, 'coordinates'):
      opt.update(params, opt.init(params), params)

  def test_averaged_is_the_mean_over_all_leaves(self):
    cell = lstm_cell((2,), scale=1.0, averaged=2)
    learned = flattened(coordinatewise(gradient(), cell))
    theta = learned.init(jax.random.key(0))
    opt = learned.transform(theta)
    params = {'a': jnp.array([1.0, -2.0]), 'b': jnp.array([[0.5]])}
    updates, _ = opt.update(params, opt.init(params), params)
    plain = lstm_cell((2,), scale=1.0)
    h = [
      plain.step(theta, jnp.array([g]), plain.initial_state())[1][0][0]
      for g in (1.0, -2.0, 0.5)
    ]
    want = (sum(h) / 3) @ theta['linear']['w'][:, 0]
    np.testing.assert_allclose(updates['a'], [want, want], rtol=1e-5)
    np.testing.assert_allclose(updates['b'], [[want]], rtol=1e-5)

  def test_initial_weights(self):
    """Truncated normal of std 1/sqrt(fan in), cut at two (0.88 remains)."""
    theta = lstm_cell((200, 200)).init(jax.random.key(0), 2)
    for layer, fan_in in zip(theta['lstm'], (202, 400)):
      bound = fan_in**-0.5
      self.assertEqual(layer['w'].shape, (fan_in, 800))
      self.assertLessEqual(float(jnp.abs(layer['w']).max()), 2 * bound)
      np.testing.assert_allclose(layer['w'].std(), 0.8796 * bound, rtol=0.02)
    self.assertEqual(theta['linear']['w'].shape, (200, 1))
    np.testing.assert_array_equal(theta['linear']['b'], [0])

  def test_mlp_by_hand(self):
    """log(1 + e) = 1.3132617, log(1 + 1/e) = 0.3132617."""
    theta = {
      'hidden': [
        {'w': jnp.array([[1.0, -1.0], [2.0, 0.0]]), 'b': jnp.array([0.0, 0.5])}
      ],
      'linear': {'w': jnp.array([[3.0], [1.0]]), 'b': jnp.array([0.25])},
    }
    x = jnp.array([-1.5, 1.25])  # before softplus: 1, 2; log(1 + e^2) 2.1269280
    delta, state = mlp_cell((2,), scale=0.1).step(theta, x, ())
    np.testing.assert_allclose(delta, 0.6316713, rtol=1e-6)
    self.assertEqual(state, ())
    theta['linear'] = {'w': jnp.eye(2), 'b': jnp.array([0.0, 1.0])}
    delta, _ = mlp_cell((2,), outputs=2).step(theta, x, ())
    np.testing.assert_allclose(delta, [1.3132617, 3.1269280], rtol=1e-6)

  def test_standardised_by_hand(self):
    cell = standardised(lstm_cell((), scale=1.0), limit=3.0)
    theta = cell.init(jax.random.key(0), 2)
    plain = lambda x: theta['cell']['linear']['w'][:, 0] @ jnp.array(x)
    step = lambda theta, x: cell.step(theta, jnp.array(x), ())[0]
    np.testing.assert_allclose(step(theta, [0.5, 2.0]), plain([0.5, 2.0]))
    theta.update(
      mean=jnp.array([1.0, 2.0]),
      std=jnp.array([0.5, 4.0]),
      output=jnp.array(0.1),
    )
    np.testing.assert_allclose(
      step(theta, [2.0, -50.0]), 0.1 * plain([2.0, -3.0]), rtol=1e-6
    )
    slopes = jax.grad(step)(theta, [2.0, 1.0])
    for name in ('mean', 'std', 'output'):
      self.assertEqual(float(jnp.abs(slopes[name]).sum()), 0)
    np.testing.assert_allclose(
      slopes['cell']['linear']['w'][:, 0], [0.2, -0.025], rtol=1e-6
    )

  def test_joint_sees_all_and_moves_all(self):
    """A linear cell on (f(t) - f(t-1), g) of two coordinates, by hand."""
    cell = lstm_cell((), scale=1.0)._replace(
      step=lambda theta, x, state: (theta @ x, state)
    )
    theta = jnp.array([[1.0, 10.0], [100.0, 1000.0]])
    opt = joint(gradient(), cell, 2).transform(theta)
    params = {'a': jnp.array([1.0]), 'b': jnp.array([[2.0]])}
    updates, _ = opt.update(
      {'a': jnp.array([3.0]), 'b': jnp.array([[4.0]])}, opt.init(params), params
    )
    np.testing.assert_allclose(updates['a'], [43.0])
    np.testing.assert_allclose(updates['b'], [[4300.0]])
    with self.assertRaisesRegex(ValueError, 'for 2 coordinates, got 3'):
      opt.init({'a': jnp.ones(3)})

  @parameterized.parameters(
    (lambda: lstm_cell((20, 0)), 'hidden.*0'),
    (lambda: lstm_cell(averaged=21), 'averaged.*21'),
    (lambda: mlp_cell((5, 0)), r'got \(5, 0\)'),
    (lambda: log_and_sign(0.0), 'got 0.0'),
  )
  def test_bad_arguments(self, make, message):
    with self.assertRaisesRegex(ValueError, message):
      make()


if __name__ == '__main__':
  absltest.main()
