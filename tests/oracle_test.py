"""Against values of the original implementation (see tests/data/README.md)."""

import contextlib
import functools
import pathlib
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from l2o_jax import blocks
from l2o_jax.cells.lstm import lstm_cell
from l2o_jax.coordinatewise import coordinatewise
from l2o_jax.features import gradient, log_and_sign
from l2o_jax.optimizees.quadratic import quadratic
from l2o_jax.truncated_bptt import initial_state, meta_loss
from l2o_jax.unroll import unroll
from tests import quick

EXCERPT = pathlib.Path(__file__).parent / 'data' / 'oracle.npz'


@contextlib.contextmanager
def precision(dtype):
  with jax.enable_x64(dtype == 'f64'):
    yield jnp.float64 if dtype == 'f64' else jnp.float32


def to_theta(weights, dtype):
  """The original's names, 'lstm_1.w_gates' or 'lstm_1/w_gates' -> ours."""
  get = {
    name.replace('/', '.'): np.asarray(value, dtype)
    for name, value in weights.items()
  }
  return {
    'lstm': [
      {'w': get[f'lstm_{i}.w_gates'], 'b': get[f'lstm_{i}.b_gates']}
      for i in (1, 2)
    ],
    'linear': {'w': get['linear.w'], 'b': get['linear.b']},
  }


def section(npz, prefix):
  return {
    name.removeprefix(prefix): npz[name]
    for name in npz.files
    if name.startswith(prefix)
  }


def start_state(values, dtype):
  """[coordinates, H] of the original -> [H, coordinates]."""
  cell = tuple(
    tuple(jnp.asarray(values[f'{s}{layer}_start'], dtype).T for s in 'hc')
    for layer in (1, 2)
  )
  return cell


def metagrad(tag, start, dtype, second):
  """(weights, W, y, {name: start, losses, 'grad/...'}) of an unroll."""
  with np.load(EXCERPT) as npz:
    case = f'metagrad/{tag}/{start}/'
    values = section(npz, f'{case}{dtype}/')
    values |= section(npz, f'{case}{dtype}/second_{str(second).lower()}/')
    if start == 'cold':  # the cell states are zero
      x = npz[f'{case}x_start']
      names = [f'{s}{layer}_start' for s in 'hc' for layer in (1, 2)]
      values |= {n: np.zeros((x.size, 20)) for n in names} | {'x_start': x}
    weights = section(npz, f'metagrad/{tag}/weights/')
    return weights, npz[f'metagrad/{tag}/W'], npz[f'metagrad/{tag}/y'], values


@functools.cache
def meta_gradient(tag, how, dtype):
  """The learned optimizer, and one program for both starts."""
  del dtype  # of the arguments
  features, scale = (
    (gradient(), 1.0) if tag == 'ident_init' else (log_and_sign(5.0), 0.01)
  )
  learned = coordinatewise(features, lstm_cell(scale=scale))
  options = {'unroll': blocks.unroll} if how == 'blocks' else {'remat': False}
  options['second_derivatives'] = how == 'second'

  def loss(theta, *of_one):
    keys = jax.random.split(jax.random.key(0), (1, 21))
    task, x, state = jax.tree.map(lambda a: a[None], of_one)
    family = quadratic(batch=x.shape[1])
    batch = task, x, state, keys
    return meta_loss(theta, learned, family, *batch, **options)

  return learned, quick.jit(jax.value_and_grad(loss, has_aux=True))


class OracleTest(parameterized.TestCase):
  def assert_close(self, got, want, rtol, what=''):
    np.testing.assert_allclose(
      got,
      want,
      rtol=rtol,
      atol=rtol * max(np.abs(want).max(), 1e-30),
      err_msg=what,
    )

  @parameterized.product(dtype=['f32', 'f64'], p=[5, 10])
  def test_log_and_sign(self, dtype, p):
    with np.load(EXCERPT) as npz:
      values = section(npz, f'log_and_sign/{dtype}/')
    with precision(dtype) as kind:
      features = log_and_sign(float(p))
      g = jnp.asarray(values['inputs'], kind)
      see = lambda g: features.update((), g, g, None)[1]
      seen = see(g)
      derivatives = jax.jvp(see, (g,), (jnp.ones_like(g),))[1]
    rtol = 1e-12 if dtype == 'f64' else 2e-6
    self.assert_close(seen, values[f'out_k{p}'], rtol)
    self.assertTrue(np.isfinite(derivatives).all())
    for column, name in ((0, 'dlog'), (1, 'dsign')):
      np.testing.assert_allclose(
        np.asarray(derivatives)[:, column],
        values[f'{name}_k{p}'],
        rtol=1e-5,
        atol=1e-30,
      )

  @parameterized.product(dtype=['f32', 'f64'])
  def test_trajectory(self, dtype):
    with np.load(EXCERPT) as npz:
      weights = section(npz, 'weights_mnist/')
      values = section(npz, f'trajectory/{dtype}/')
      shared = {k: npz[f'trajectory/{k}'] for k in ('W', 'y', 'x0')}
    with precision(dtype) as kind:
      task = {
        'w': jnp.asarray(shared['W'], kind),
        'y': jnp.asarray(shared['y'], kind),
      }
      x0 = jnp.asarray(shared['x0'], kind)
      optimizee = quadratic(batch=16)
      opt = coordinatewise(log_and_sign(5.0), lstm_cell(scale=0.01)).transform(
        to_theta(weights, kind)
      )
      (_, state), trajectory = jax.jit(
        lambda x, task: unroll(
          lambda x, key: optimizee.loss(x, task, key),
          opt,
          x,
          opt.init(x),
          jax.random.split(jax.random.key(0), 101),
          record=lambda step: step.params,
        )
      )(x0, task)
    rtol = 1e-9 if dtype == 'f64' else 1e-5
    self.assert_close(trajectory.losses, values['f'], rtol)
    self.assert_close(trajectory.record[::20], values['x'][:5], rtol)
    for layer in (0, 1):
      for i, name in enumerate('hc'):
        self.assert_close(
          state.cell[0][layer][i].reshape(20, -1).T,
          values[f'{name}{layer + 1}'],
          10 * rtol,
          f'{name}{layer + 1}',
        )

  @parameterized.product(
    dtype=['f32', 'f64'],
    how=['plain', 'second', 'blocks'],
    start=['cold', 'warm'],
    tag=['ident_init', 'logsign_init'],
  )
  def test_meta_gradient(self, dtype, how, start, tag):
    second = how == 'second'
    weights, w, y, values = metagrad(tag, start, dtype, second)
    with precision(dtype) as kind:
      task = {'w': jnp.asarray(w, kind), 'y': jnp.asarray(y, kind)}
      theta = to_theta(weights, kind)
      x = jnp.asarray(values['x_start'], kind)
      learned, run = meta_gradient(tag, how, dtype)
      box = lambda s: s.reshape(20, -1)  # [H, coordinates]
      cell = jax.tree.map(box, start_state(values, kind))
      state = initial_state(learned, theta, x)._replace(cell=(cell,))
      with mock.patch.object(blocks, 'BLOCK', 60):
        (loss, (params, _, losses)), grad = run(theta, task, x, state)
    forward, backward = (1e-9, 1e-9) if dtype == 'f64' else (1e-5, 1e-4)
    self.assert_close(loss, values['loss'], forward)
    self.assert_close(losses[0], values['fx'], forward)
    self.assert_close(params[0], values['x_final'], forward)
    want = to_theta(
      {
        name.removeprefix('grad/'): value
        for name, value in values.items()
        if name.startswith('grad/')
      },
      np.float64,
    )
    for path, g in jax.tree.leaves_with_path(grad):
      expected = want
      for entry in path:
        expected = expected[getattr(entry, 'key', getattr(entry, 'idx', None))]
      np.testing.assert_allclose(
        g,
        expected,
        rtol=0,
        atol=backward * np.abs(expected).max(),
        err_msg=jax.tree_util.keystr(path),
      )


if __name__ == '__main__':
  absltest.main()
