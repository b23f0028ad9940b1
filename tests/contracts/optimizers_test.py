"""A table of learned optimizers against a list of contracts."""

import collections
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
from l2o_jax.groups import Groups, grouped
from l2o_jax.learned_optimizers import (
  lstm_log_and_sign,
  lstm_raw,
  ntm_bfgs,
  robust_optimizer,
)
from tests import quick
from tests.contracts.subjects import (
  LEARNED,
  NEED_PARAMS,
  NEED_VALUE,
  OF_ANY_SIZE,
  SEPARABLE,
  theta_of,
  tree,
)

N = 20
TRACES = collections.Counter()
# One of each kind of state and of cell, where a contract is long to compile.
KINDS = ('linear', 'gru', 'predicted_step_descent', 'grouped', 'chunked')
close = functools.partial(chex.assert_trees_all_close, rtol=1e-5, atol=1e-7)


@functools.cache
def made(name):
  return LEARNED[name].transform(theta_of(LEARNED[name]))


@functools.cache
def two_steps(name):
  """theta, gradients [2, n] -> updates [2, n], state."""

  @quick.jit
  def run(theta, gradients):
    TRACES[name] += 1
    opt = LEARNED[name].transform(theta)
    x = jnp.zeros(N)

    def step(carry, g):
      state, x = carry
      updates, state = opt.update(g, state, x, value=jnp.sum(x) + 2)
      return (state, x + 0.1), updates

    (state, _), updates = jax.lax.scan(step, (opt.init(x), x), gradients)
    return updates, state

  return run


def gradients():
  x = np.random.default_rng(1).normal(size=(2, N))
  return jnp.asarray(x, jnp.float32)


def subjects(names=LEARNED):
  return parameterized.named_parameters((name, name) for name in names)


def types(tree):
  """What jit, scan and cond compare of the leaves."""
  return [(x.shape, x.dtype, bool(x.weak_type)) for x in jax.tree.leaves(tree)]


class TypesTest(parameterized.TestCase):
  @subjects()
  def test_updates_are_like_gradients_and_the_state_keeps_its_type(self, name):
    """In every type; where it moved, `scan`, `cond` and nnx would refuse it."""
    opt = made(name)

    def run(params):
      state = opt.init(params)

      def step(state, _):
        updates, state = opt.update(params, state, params, value=1.0)
        return state, updates

      return jax.lax.scan(step, state, None, 2)

    for dtype in (jnp.float32, jnp.float16, jnp.bfloat16):
      params = tree(dtype)
      state, updates = jax.eval_shape(run, params)
      want = jax.tree.map(lambda x: jnp.stack([x, x]), params)
      chex.assert_trees_all_equal_shapes_and_dtypes(updates, want)
      weak = [weak for _, _, weak in types((state, updates))]
      self.assertFalse(any(weak))
    weak = jnp.broadcast_to(jnp.asarray(2.0), (N,))
    self.assertTrue(weak.weak_type)
    jax.eval_shape(run, weak)
    numbers = {'a': 1.0, 'b': np.ones(N - 2), 'c': np.float64(3)}
    _, updates = jax.eval_shape(lambda: run(numbers))
    self.assertEqual({d.name for _, d, _ in types(updates)}, {'float32'})

  @parameterized.parameters('linear', 'chunked')
  def test_numbers_of_python_and_numpy(self, name):
    """Python floats and float64 of numpy move as float32 arrays do."""
    opt = made(name)
    params = {'a': 1.0, 'b': np.linspace(-1, 1, 3)}
    arrays = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    step = lambda p: opt.update(p, opt.init(p), p, value=1.0)
    got, want = quick.jit(lambda: (step(params), step(arrays)))()
    chex.assert_trees_all_equal(got, want)

  @subjects()
  def test_init_of_shapes_alone(self, name):
    opt, params = made(name), tree()
    state = opt.init(jax.eval_shape(lambda: params))
    want = jax.eval_shape(opt.init, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, want)

  @subjects()
  def test_the_same_types_under_x64(self, name):
    learned, key = LEARNED[name], jax.random.key(0)
    theta = jax.eval_shape(learned.init, key)
    with jax.enable_x64(True):
      wide = jax.eval_shape(learned.init, key)
      state = jax.eval_shape(
        lambda t, x: learned.transform(t).init(x), *(wide, jnp.ones(N))
      )
    self.assertEqual(types(theta), types(wide))
    wide = {d.name for _, d, _ in types(state)}
    self.assertNoCommonElements(wide, {'float64', 'int64'})

  def test_the_same_theta_under_x64(self):
    for cell in (lstm_cell((2,)), standardised(mlp_cell((3,)))):
      init = quick.jit(lambda key, cell=cell: cell.init(key, 2))
      plain = init(jax.random.key(0))
      with jax.enable_x64(True):
        chex.assert_trees_all_equal(init(jax.random.key(0)), plain)


class NothingToUpdateTest(parameterized.TestCase):
  @subjects(OF_ANY_SIZE)
  def test_empty_trees(self, name):
    opt = made(name)
    for empty in ({}, {'a': None, 'b': (None, [])}, {'a': jnp.zeros((0, 2))}):
      step = lambda p: opt.update(p, opt.init(p), p, value=1.0)[0]
      updates = jax.eval_shape(step, empty)
      chex.assert_trees_all_equal_shapes_and_dtypes(updates, empty)

  @subjects(OF_ANY_SIZE)
  def test_masked_and_partition_that_leave_nothing(self, name):
    opt, params = made(name), {'w': jnp.ones((2, 3)), 'b': jnp.ones(3)}
    masked = optax.masked(opt, jax.tree.map(lambda _: False, params))
    labels = jax.tree.map(lambda _: 'rest', params)
    parts = optax.partition({'ours': opt, 'rest': optax.sgd(1.0)}, labels)
    for wrapped, factor in ((masked, 1), (parts, -1)):
      state = wrapped.init(params)
      updates, _ = wrapped.update(params, state, params, value=1.0)
      want = jax.tree.map(lambda x: factor * x, params)
      chex.assert_trees_all_equal(updates, want)

  @parameterized.parameters('linear', 'gru', 'chunked')
  def test_a_frozen_leaf(self, name):
    """None in the gradients: no update, and its memory stays."""
    opt = made(name)
    g = {'a': jnp.array([0.3, -2.0]), 'b': None}
    params = {'a': jnp.ones(2), 'b': jnp.ones(2)}

    @quick.jit
    def run(params):
      start = opt.init(params)
      updates, state = opt.update(g, start, params, value=1.0)
      thawed, _ = opt.update(params, state, params, value=1.0)
      return updates, thawed, opt.update(params, start, params, value=1.0)[0]

    updates, thawed, fresh = run(params)
    self.assertIsNone(updates['b'])
    self.assertNotEqual(updates['a'][0], updates['a'][1])
    close(thawed['b'], fresh['b'])
    if name != 'linear':  # which has no memory
      self.assertNotEqual(thawed['a'][0], fresh['a'][0])

  @subjects([name for name in SEPARABLE if name != 'grouped'])
  def test_a_frozen_leaf_keeps_the_types(self, name):
    opt, params = made(name), {'a': jnp.ones(2), 'b': jnp.ones(2)}
    g = {'a': jnp.ones(2), 'b': None}
    before = jax.eval_shape(opt.init, params)
    step = lambda s, p: opt.update(g, s, p, value=1.0)
    updates, after = jax.eval_shape(step, before, params)
    self.assertIsNone(updates['b'])
    self.assertEqual(types(before), types(after))

  def test_a_frozen_leaf_in_groups(self):
    """The labels must be a tree: a function would not see the leaf."""
    groups = Groups({'a': 'one', 'b': 'two'}, ('one', 'two'))
    learned = grouped(LEARNED['linear'], groups)
    opt = learned.transform(theta_of(learned))
    params = {'a': jnp.ones(2), 'b': jnp.ones(2)}
    g = {'a': params['a'], 'b': None}
    updates, _ = opt.update(g, opt.init(params), params)
    self.assertIsNone(updates['b'])
    self.assertEqual(updates['a'].shape, (2,))

  def test_cells_that_communicate_refuse_a_frozen_leaf(self):
    """Its coordinates belong to the mean: to leave them out is to mask them."""
    opt, params = made('averaged'), {'a': jnp.ones(2), 'b': jnp.ones(2)}
    state = jax.eval_shape(opt.init, params)
    with self.assertRaisesRegex(ValueError, 'gradients have 2 coordinates'):
      opt.update({'a': params['a'], 'b': None}, state, params)


class ArgumentsTest(parameterized.TestCase):
  @subjects()
  def test_ignores_unknown_arguments_and_runs_without_params(self, name):
    """The same program in the end."""
    opt, params = made(name), jnp.linspace(-1, 1, N)
    needed = {'value': 1.0} if name in NEED_VALUE else {}
    state = jax.eval_shape(opt.init, params)
    program = lambda f: str(jax.make_jaxpr(f)(params, state))
    plain = program(lambda p, s: opt.update(p, s, p, value=1.0))
    other = program(lambda p, s: opt.update(p, s, p, value=1.0, other=object()))
    self.assertEqual(plain, other)
    jax.eval_shape(lambda p, s: opt.update(p, s, p, **needed), params, state)
    if name not in NEED_PARAMS:
      jax.eval_shape(lambda p, s: opt.update(p, s, **needed), params, state)
    if name in NEED_VALUE:
      with self.assertRaisesRegex(TypeError, 'need `value`'):
        opt.update(params, state, params)

  @parameterized.parameters('gru', 'averaged')
  def test_values_and_params_that_are_not_needed_change_nothing(self, name):
    opt, params = made(name), jnp.linspace(-1, 1, N)

    @quick.jit
    def run(params):
      state = opt.init(params)
      given = opt.update(params, state, params, value=3.0)[0]
      return given, opt.update(params, state)[0]

    chex.assert_trees_all_equal(*run(params))

  @subjects(NEED_PARAMS)
  def test_names_the_parameters_that_it_needs(self, name):
    """It would run on x = 0 and take other steps from the second on."""
    opt, params = made(name), jnp.ones(3)
    state = jax.eval_shape(opt.init, params)
    with self.assertRaisesRegex(TypeError, '^coordinatewise: .*need `params`'):
      opt.update(params, state, value=1.0)

  @subjects()
  def test_leaves_that_are_not_real_are_named(self, name):
    opt, params = made(name), {'w': jnp.ones((4, 4)), 'v': {'b': jnp.ones(4)}}
    state = jax.eval_shape(opt.init, params)
    bad = {
      'complex64': jnp.ones(4, jnp.complex64),
      'int32': jnp.ones(4, jnp.int32),
      'bool': jnp.ones(4, bool),
      'float0': np.zeros(4, jax.dtypes.float0),
      'key': jax.random.split(jax.random.key(0), 4),
    }
    for kind, leaf in bad.items():
      wrong = {'w': params['w'], 'v': {'b': leaf}}
      update = lambda s, wrong=wrong: opt.update(wrong, s, params, value=1.0)
      for what, call in (
        ('parameter', lambda: opt.init(wrong)),
        ('gradient', lambda: jax.eval_shape(update, state)),
      ):
        with self.assertRaises(TypeError) as caught:
          call()
        message = str(caught.exception)
        start = f"coordinatewise: the {what} ['v']['b'] is {kind}"
        self.assertStartsWith(message, start)
        self.assertNotIn('\n', message)

  @subjects()
  def test_gradients_of_another_tree_or_shape(self, name):
    """Of the same total size: coordinates would get each other's memory."""
    opt, w, b = made(name), jnp.ones((4, 4)), jnp.ones(4)
    params = {'w': w, 'b': b}
    state = jax.eval_shape(opt.init, params)
    bad = [{'w': w}, {'w': w, 'b': b[:3]}]
    if name in SEPARABLE:  # the others have one axis of all coordinates
      bad += [{'v': w, 'b': b}, [w, b], {'w': (w[:2], w[2:]), 'b': b}]
      bad += [{'w': w.ravel(), 'b': b}]
    for g in bad:
      with self.assertRaises(ValueError) as caught:
        jax.eval_shape(
          lambda s, g=g: opt.update(g, s, params, value=1.0), state
        )
      if name != 'grouped':  # optax.partition says it, in several lines
        self.assertStartsWith(str(caught.exception), 'coordinatewise: ')
        self.assertNotIn('\n', str(caught.exception))

  @subjects()
  def test_buffers_of_its_own(self, name):
    """A user may donate parameters and state: nothing is in two places."""
    params = tree()
    arrays = jax.tree.leaves((params, made(name).init(params)))
    places = [x.unsafe_buffer_pointer() for x in arrays if x.size]
    self.assertLen(set(places), len(places))

  @subjects()
  def test_theta_of_another_optimizer(self, name):
    other = {'some': jnp.ones((2, 3))}
    theta = (
      {g: other for g in ('matrix', 'other')} if name == 'grouped' else other
    )
    with self.assertRaisesRegex(ValueError, '^coordinatewise: theta is not'):
      LEARNED[name].transform(theta).init(jnp.ones(20))

  # `optax.partition` reads the state of 'grouped'.
  @subjects([name for name in SEPARABLE if name != 'grouped'])
  def test_a_state_of_another_optimizer(self, name):
    """One line without arrays; params and state are easily swapped."""
    opt, params = made(name), {'w': jnp.ones((4, 4)), 'b': jnp.ones(4)}
    for state in optax.adam(0.1).init(params), params:
      with self.assertRaisesRegex(ValueError, 'not of this optimizer') as e:
        opt.update(params, state, params, value=1.0)
      self.assertLess(len(str(e.exception)), 200)

  @subjects(NEED_VALUE)
  def test_value_must_be_a_scalar(self, name):
    opt, params = made(name), jnp.ones(N)
    state = jax.eval_shape(opt.init, params)
    for value in (jnp.ones(1), jnp.ones(7), jnp.ones((1, N))):
      with self.assertRaisesRegex(ValueError, '`value` must be a scalar, got'):
        step = lambda s, v=value: opt.update(params, s, params, value=v)
        jax.eval_shape(step, state)


class RuleTest(parameterized.TestCase):
  @subjects(OF_ANY_SIZE)
  def test_permuting_coordinates_permutes_updates(self, name):
    g, theta = gradients(), theta_of(LEARNED[name])
    order = np.random.default_rng(2).permutation(N)
    updates, _ = two_steps(name)(theta, g)
    permuted, _ = two_steps(name)(theta, g[:, order])
    close(permuted, updates[:, order])
    self.assertGreater(float(jnp.abs(updates[0] - updates[1]).min()), 0)

  @subjects(SEPARABLE)
  def test_coordinates_share_nothing(self, name):
    g, theta = gradients(), theta_of(LEARNED[name])
    rest = np.arange(N) != 3
    (one, state) = two_steps(name)(theta, g)
    for other in (100.0, jnp.nan, jnp.inf, -jnp.inf):
      two, other_state = two_steps(name)(theta, g.at[0, 3].set(other))
      chex.assert_tree_all_finite((two, other_state))
      np.testing.assert_array_equal(one[:, rest], two[:, rest])
      self.assertNotEqual(one[0, 3], two[0, 3], other)
      if name != 'chunked':  # its state ends in blocks
        of = lambda a: a[..., rest] if a.ndim else a  # []: of the leaf
        some = lambda tree: jax.tree.map(of, tree)
        chex.assert_trees_all_equal(some(state), some(other_state))

  @subjects()
  def test_zero_linear_layer_is_zero_update(self, name):
    last = ('linear', 'direction', 'heads')
    keys = lambda path: [getattr(part, 'key', None) for part in path]
    off = lambda path, x: 0 * x if set(last) & set(keys(path)) else x
    theta = jax.tree.map_with_path(off, theta_of(LEARNED[name]))
    updates, _ = two_steps(name)(theta, gradients())
    np.testing.assert_array_equal(updates, np.zeros((2, N)))

  @subjects()
  def test_two_thetas_share_one_trace(self, name):
    one, state = two_steps(name)(theta_of(LEARNED[name], 0), gradients())
    two, _ = two_steps(name)(theta_of(LEARNED[name], 1), gradients())
    chex.assert_tree_all_finite((one, two, state))
    self.assertGreater(float(jnp.abs(one - two).max()), 0)
    self.assertEqual(TRACES[name], 1)


class OptaxTest(parameterized.TestCase):
  @subjects((*KINDS, 'averaged'))
  def test_composes_with_optax(self, name):
    opt = made(name)
    step = lambda g, s, p: opt.update(g, s, p, value=1.0)
    ours = optax.GradientTransformation(quick.jit(opt.init), quick.jit(step))
    params = {'w': jnp.linspace(-1, 1, 6).reshape(2, 3), 'b': jnp.ones(3)}
    dense = {'w': params['w']}
    first = lambda wrapped, p: wrapped.update(p, wrapped.init(p), p)[0]
    half = lambda factor: optax.chain(ours, optax.scale(factor))
    want, alone = first(ours, params), first(ours, dense)
    close(first(half(0.5), params), jax.tree.map(lambda u: 0.5 * u, want))
    masked = first(optax.masked(ours, {'w': True, 'b': False}), params)
    np.testing.assert_array_equal(masked['b'], params['b'])
    close(masked['w'], alone['w'])
    rules = {'a': ours, 'z': optax.set_to_zero()}
    parts = first(optax.partition(rules, {'w': 'a', 'b': 'z'}), params)
    np.testing.assert_array_equal(parts['b'], np.zeros(3))
    close(parts['w'], alone['w'])
    if name != 'averaged':
      close(alone['w'], want['w'])
    injected = optax.inject_hyperparams(half)(factor=0.5)
    close(first(injected, dense), {'w': 0.5 * alone['w']})

  @parameterized.parameters('gru', 'averaged')
  def test_every_second_step(self, name):
    opt, params = made(name), jnp.linspace(-1, 1, N)
    every = optax.MultiSteps(opt, 2)
    update = quick.jit(functools.partial(every.update, value=1.0))
    idle, state = update(params, every.init(params), params)
    np.testing.assert_array_equal(idle, np.zeros(N))
    want = two_steps(name)(theta_of(LEARNED[name]), jnp.stack([params] * 2))
    close(update(params, state, params)[0], want[0][0])

  @subjects([name for name in SEPARABLE if name != 'grouped'])
  def test_state_is_recognised_as_of_the_parameters(self, name):
    """`map_params` reaches all of it, and beside it may see the parameters."""
    opt = made(name)
    params = {'w': jnp.ones((2, 3)), 'b': jnp.ones(3), 's': jnp.ones(())}
    state = jax.eval_shape(opt.init, params)
    names = {'w': 'W', 'b': 'B', 's': 'S'}
    mapped = optax.tree.map_params(opt, lambda x, n: n, state, names)
    self.assertEqual(jax.tree.structure(mapped), jax.tree.structure(state))
    self.assertLessEqual(set(jax.tree.leaves(mapped)), set('WBS'))
    if name == 'small':
      self.assertEqual(mapped.cell[0][0][0], names)

  @parameterized.parameters(
    (lambda x: lstm_log_and_sign(p=x), 5.0),
    (lambda x: lstm_raw(scale=x), 0.5),
    (lambda x: robust_optimizer(scale=x), 0.9),
    (lambda x: robust_optimizer(warmup=x), 9.0),
    (lambda x: ntm_bfgs(scale=x), 0.3),
  )
  def test_arguments_may_be_hyperparameters(self, make, argument):
    """Traced values pass the checks of the constructors."""
    theta, g = theta_of(make(argument)), jnp.array([0.1, -3.0])
    build = lambda x: make(x).transform(theta)
    injected = optax.inject_hyperparams(build)(x=argument)

    @quick.jit
    def run(factor):
      state, fixed = injected.init(g), build(argument)
      state.hyperparams['x'] *= factor
      got = injected.update(g, state, g)[0]
      return got, fixed.update(g, fixed.init(g))[0]

    got, want = run(1.0)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    self.assertNotEqual(run(2.0)[0][0], got[0])


if __name__ == '__main__':
  absltest.main()
