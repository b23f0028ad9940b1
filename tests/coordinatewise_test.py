"""From one coordinate to all: layouts of the state, and one axis of all."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest

from l2o_jax.base import Cell, Features
from l2o_jax.cells.lstm import lstm_cell
from l2o_jax.coordinatewise import (
  CoordinatewiseState,
  WholeState,
  coordinatewise,
  each,
)
from l2o_jax.features import gradient
from l2o_jax.learned_optimizers import lstm_raw, robust_optimizer
from l2o_jax.policy_features import history, relative_changes
from tests import quick


def sum_cell(rate):
  """delta = -rate · (sum of the first feature so far); counts its steps."""

  def step(theta, x, state):
    total = state['sum'] + x[:1]
    return -rate * theta * total[0], {'sum': total, 'count': state['count'] + 1}

  start = lambda: {'sum': jnp.zeros(1), 'count': jnp.zeros((), jnp.int32)}
  return Cell(lambda key, num_features: jnp.ones(()), start, step)


class CoordinatewiseTest(absltest.TestCase):
  def test_theta_of_another_cell(self):
    """The first array that is of another shape, is missing or is too many."""
    learned = lstm_raw()
    theta = learned.init(jax.random.key(0))
    more = {**theta, 'more': jnp.ones(3)}
    less = {k: v for k, v in theta.items() if k != 'linear'}
    other = {**theta, 'linear': {**theta['linear'], 'w': jnp.ones((7, 1))}}
    for bad, message in (
      (more, "\\['more'\\] is \\(3,\\), expected none"),
      (less, "\\['linear'\\]\\['b'\\] is missing, expected \\(1,\\)"),
      (other, "\\['linear'\\]\\['w'\\] is \\(7, 1\\), expected \\(20, 1\\)"),
    ):
      with self.assertRaisesRegex(ValueError, f'and this cell: {message}$'):
        learned.transform(bad)

  def test_two_steps_by_hand(self):
    """A cell of one coordinate with a counter, on leaves of three ranks."""
    opt = coordinatewise(gradient(), sum_cell(0.5)).transform(jnp.array(2.0))
    params = {'w': jnp.ones((1, 2)), 's': jnp.ones(())}
    g = {'w': jnp.array([[1.0, -2.0]]), 's': jnp.array(0.25)}
    first, state = opt.update(g, opt.init(params))
    second, state = opt.update(g, state)
    np.testing.assert_allclose(first['w'], [[-1, 2]])
    np.testing.assert_allclose(second['w'], [[-2, 4]])
    np.testing.assert_allclose(second['s'], -0.5)
    cell = state.cell[0]
    np.testing.assert_allclose(cell['sum']['w'], [[[2, -4]]])
    np.testing.assert_array_equal(cell['count']['w'], [[2, 2]])
    self.assertEqual(cell['count']['s'].dtype, jnp.int32)

  def test_layout_of_the_state(self):
    """Trees like the parameters, coordinates last: [H, *leaf.shape]."""
    learned = coordinatewise(history(4), lstm_cell((5,)))
    theta = jax.eval_shape(learned.init, jax.random.key(0))
    params = {'w': jnp.ones((2, 3)), 's': jnp.ones(())}
    state = jax.eval_shape(lambda t: learned.transform(t).init(params), theta)
    self.assertIsInstance(state, CoordinatewiseState)
    shapes = lambda tree: jax.tree.map(lambda x: x.shape, tree)
    h, c = shapes(state.cell[0][0])
    self.assertEqual((h, c), ({'w': (5, 2, 3), 's': (5,)},) * 2)
    self.assertEqual(shapes(state.memory[0].g), {'w': (3, 2, 3), 's': (3,)})
    whole = coordinatewise(history(4), lstm_cell((5,), averaged=1))
    state = jax.eval_shape(lambda t: whole.transform(t).init(params), theta)
    self.assertIsInstance(state, WholeState)
    self.assertEqual(shapes(state.cell[0][0]), ((5, 7), (5, 7)))
    self.assertEqual(state.memory[0].g.shape, (3, 7))

  def test_each_maps_over_the_last_axes(self):
    f = lambda x: jnp.stack([jnp.sum(x), jnp.prod(x)])  # [F] -> [2]
    x = jnp.arange(1.0, 13.0).reshape(2, 3, 2)
    got = each(f, 2)(x)
    self.assertEqual(got.shape, (2, 3, 2))
    np.testing.assert_allclose(got[0], x.sum(0))
    np.testing.assert_allclose(got[1], x.prod(0))

  def test_parameters_that_are_not_finite_are_seen_as_zero(self):
    learned = coordinatewise(relative_changes(), sum_cell(1.0))
    opt = learned.transform(jnp.ones(()))

    @quick.jit
    def two_steps(x):
      _, state = opt.update(x, opt.init(x), x, value=1.0)
      return opt.update(jnp.ones(3), state, x, value=2.0)

    bad, zero = (two_steps(jnp.array([1.0, x, 2.0])) for x in (jnp.nan, 0.0))
    chex.assert_trees_all_equal(bad, zero)

  def test_a_value_for_each_coordinate(self):
    """Which trainers give, who put several functions into one array."""
    opt = coordinatewise(history(2), sum_first()).transform(jnp.ones(()))
    x = jnp.ones(3)

    @quick.jit
    def last(values):
      state = opt.init(x)
      for value in values:
        updates, state = opt.update(x, state, x, value=value)
      return updates

    got = last([jnp.array([1.0, 2.0, 3.0]), jnp.array([4.0, 2.0, 1.0])])
    np.testing.assert_allclose(got, [3, 0, -2])
    np.testing.assert_allclose(last([1.0, 3.0]), [2, 2, 2])

  def test_the_state_may_be_stored_in_another_type(self):
    """Rounded between steps, not within; counters stay integers."""
    cell = sum_cell(1.0)
    learned = coordinatewise(gradient(), cell, jnp.bfloat16)
    opt = learned.transform(jnp.ones(()))
    g = jnp.full(2, 1 + 2**-10)
    updates, state = opt.update(g, opt.init(g))
    np.testing.assert_array_equal(updates, -g)
    self.assertEqual(state.cell[0]['sum'].dtype, jnp.bfloat16)
    self.assertEqual(state.cell[0]['count'].dtype, jnp.int32)
    np.testing.assert_array_equal(state.cell[0]['sum'], [[1, 1]])

  def test_cells_and_features_that_break_the_contract(self):
    """One line, not parameters that change their shape."""
    whole = lambda step: Cell(
      lambda key, F: jnp.ones(()), lambda n: jnp.zeros((1, n)), step, True
    )
    unlike = lambda theta, x, state: (x, state)  # [1, *s], not [*s]
    mean = lambda theta, x, state: (jnp.mean(x), state)
    grows = lambda theta, x, state: (x[0], jnp.concatenate([state, state]))
    good = whole(lambda theta, x, state: (-x[0], state))
    flat = Features(1, lambda x: (), lambda memory, x, g, value: (memory, g))
    two = lambda memory, x, g, value: (memory, jnp.stack([g, g], -1))
    counts = lambda memory, x, g, value: (memory + g, g[..., None])
    counts = Features(1, lambda x: jnp.zeros(x.shape, int), counts)
    for features, cell, message in (
      (gradient(), whole(unlike), r'step .* \(1, 2\), .* \(2,\)'),
      (gradient(), whole(mean), r'step .* has shape \(\), '),
      (gradient(), whole(grows), r'began as float32\[1, 2\] became .*\[2, 2\]'),
      (flat, good, r'features .* shape \(2,\)'),
      (Features(1, lambda x: (), two), good, r'features .* shape \(2, 2\)'),
      (counts, good, r'began as int.* became float32'),
    ):
      opt = coordinatewise(features, cell).transform(jnp.ones(()))
      x = jnp.ones(2)
      with self.assertRaisesRegex(ValueError, f'^coordinatewise: .*{message}'):
        opt.update(x, opt.init(x), x)

  def test_memory_of_another_structure(self):
    grows = lambda memory, x, g, value: ((memory, g), g[..., None])
    features = Features(1, lambda x: jnp.zeros(x.shape), grows)
    cell = lstm_cell((), scale=1.0)
    learned = coordinatewise(features, cell)
    opt, x = learned.transform(learned.init(jax.random.key(0))), jnp.ones(2)
    with self.assertRaisesRegex(ValueError, '^coordinatewise: memory .* bec'):
      opt.update(x, opt.init(x), x)

  def test_without_promotion_of_ranks(self):
    """`jax_numpy_rank_promotion='raise'` finds nothing."""
    params = {'w': jnp.ones((3, 2)), 's': jnp.ones(())}
    with jax.numpy_rank_promotion('raise'):
      for learned in (robust_optimizer(), lstm_raw()):
        opt = learned.transform(learned.init(jax.random.key(0)))
        updates, _ = opt.update(params, opt.init(params), params)
        chex.assert_tree_all_finite(updates)

  def test_unknown_needs(self):
    features = gradient()._replace(needs=frozenset({'values'}))
    with self.assertRaisesRegex(ValueError, r"cannot need \['values'\]"):
      coordinatewise(features, lstm_cell())

  def test_leaves_of_one_shape_are_traced_once(self):
    traced = []

    def step(theta, x, state):
      traced.append(x.shape)
      return x[0], state

    cell = Cell(lambda key, f: (), lambda n: (), step, whole=True)
    opt = coordinatewise(gradient(), cell).transform(())
    g = {'a': jnp.ones(2), 'b': jnp.ones((3, 1)), 'c': jnp.ones(2)}
    for _ in range(2):  # without jit
      opt.update(g, opt.init(g), g)
    self.assertEqual(traced, [(1, 2), (1, 3, 1)])

  def test_a_gradient_of_no_parameter(self):
    learned = coordinatewise(gradient(), lstm_cell((3,)))
    opt = learned.transform(learned.init(jax.random.key(0)))
    g = {'a': jnp.ones(2)}
    with self.assertRaisesRegex(ValueError, 'gradient for a parameter None'):
      opt.update(g, opt.init(g), {'a': None})
    narrow = {'a': jnp.ones(2, jnp.float8_e4m3fn)}
    with self.assertRaisesRegex(TypeError, r"\['a'\] is float8.* 16 bits"):
      opt.init(narrow)

  def test_what_is_no_array(self):
    opt = coordinatewise(gradient(), sum_cell(1.0)).transform(jnp.ones(()))
    with self.assertRaisesRegex(TypeError, r"parameter \['f'\] is no array: <"):
      opt.init({'f': jax.nn.relu, 'w': jnp.ones(2)})

  def test_number_types_that_hold_no_fractions(self):
    with self.assertRaisesRegex(ValueError, 'state_dtype must be a floating'):
      coordinatewise(gradient(), sum_cell(0.5), state_dtype=jnp.int32)
    opt = coordinatewise(gradient(), sum_cell(0.5)).transform(jnp.array(2))
    g = jnp.array([0.5, -0.25])
    np.testing.assert_array_equal(opt.update(g, opt.init(g))[0], -g)

  def test_large_gradients_of_a_wider_type(self):
    """Finite is not 0."""
    opt = coordinatewise(gradient(), sum_cell(1.0))
    opt = opt.transform(jnp.ones((), jnp.float16))
    g = jnp.array([1e6, -1e6, jnp.inf])
    largest = float(jnp.finfo(jnp.float16).max)
    updates, _ = opt.update(g, opt.init(jnp.zeros(3)))
    np.testing.assert_array_equal(updates, [-largest, largest, 0])

  def test_cells_that_communicate_must_be_whole(self):
    cell = sum_cell(1.0)._replace(communicates=True)
    with self.assertRaisesRegex(ValueError, 'must be whole'):
      coordinatewise(gradient(), cell)

  def test_a_float32_master_copy_for_bfloat16(self):
    """Steps of 1e-3 from 1: bfloat16 rounds all of them away."""
    learned = coordinatewise(gradient(), sum_cell(1e-3))
    opt = learned.transform(jnp.ones(()))
    params = jnp.ones(1000, jnp.bfloat16)

    def moved(opt, steps=8):
      @quick.jit
      def run(params):
        def step(carry, _):
          x, state = carry
          updates, state = opt.update(jnp.ones_like(x), state, x)
          return (optax.apply_updates(x, updates), state), None

        start = (params, opt.init(params))
        return jax.lax.scan(step, start, None, steps)[0][0]

      end = run(params)
      self.assertEqual(end.dtype, jnp.bfloat16)
      return np.asarray(end, np.float32)

    np.testing.assert_array_equal(moved(opt, 1), np.ones(1000))
    # 1e-3 (1 + 2 + ... + 8) = 0.036: to the nearest bfloat16.
    want = np.asarray(jnp.asarray(1 - 0.036, jnp.bfloat16), np.float32)
    np.testing.assert_array_equal(moved(master_copy(opt)), np.full(1000, want))


def sum_first():
  """delta = the third feature of `history(2)`, f(t) - f(t - 1)."""
  step = lambda theta, x, state: (theta * x[2], state)
  return Cell(lambda key, size: jnp.ones(()), lambda: (), step)


def master_copy(opt: optax.GradientTransformation):
  """Runs `opt` on a float32 copy of parameters of a narrower type.

  The copy is in the state and takes the small steps that the parameters would
  round away; the update is what takes the parameters to the rounded copy.

  Args:
    opt: any optax transformation.

  Returns:
    A transformation whose update needs `params`.
  """
  opt = optax.with_extra_args_support(opt)
  wide = lambda tree: jax.tree.map(lambda x: x.astype(jnp.float32), tree)

  def init(params):
    return wide(params), opt.init(wide(params))

  def update(updates, state, params, **extra_args):
    copy, inner = state
    steps, inner = opt.update(wide(updates), inner, copy, **extra_args)
    copy = optax.apply_updates(copy, steps)
    # In float32 the difference is exact, and so is its sum with x in bfloat16.
    to = lambda new, x: (new.astype(x.dtype) - x).astype(x.dtype)
    return jax.tree.map(to, copy, params), (copy, inner)

  return optax.GradientTransformationExtraArgs(init, update)


if __name__ == '__main__':
  absltest.main()
