"""NTM-BFGS: with heads set by hand it is BFGS, DFP and L-BFGS."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from l2o_jax.cells.ntm_bfgs import BFGS, ntm_bfgs_cell
from l2o_jax.coordinatewise import coordinatewise
from l2o_jax.features import gradient
from tests import quick
from tests.contracts.subjects import theta_of

N, SCALE, STEPS = 6, 0.3, 14
DFP = (1.0, 0.0, 1.0, -1.0, 1.0)


def function(seed=0):
  """A and x_0 of f(x) = x^T A x / 2 with curvatures from 0.5 to 6."""
  rng = np.random.default_rng(seed)
  q = np.linalg.qr(rng.normal(size=(N, N)))[0]
  return q * np.geomspace(0.5, 6, N) @ q.T, rng.normal(size=N)


def learned_of(**arguments):
  cell = ntm_bfgs_cell((4,), SCALE, averaged=2, **arguments)
  return coordinatewise(gradient(), cell)


def by_hand(learned, heads):
  """theta whose heads always emit these numbers."""
  theta = theta_of(learned)
  zero = 0 * theta['heads']['w']
  theta['heads'] = {'w': zero, 'b': jnp.array(heads, jnp.float32)}
  return theta


def run(opt, a, x, steps=STEPS):
  """x_0 ... x_T, and the states before each step."""

  def step(carry, _):
    x, state = carry
    updates, new = opt.update(a @ x, state, x)
    return (x + updates, new), (x, state)

  return jax.lax.scan(step, (x, opt.init(x)), length=steps)[1]


def dense(a, x, rule):
  """x_0 ... x_T of a quasi-Newton method with unit steps, as in textbooks."""
  h, xs = SCALE * np.eye(N), []
  for _ in range(STEPS):
    xs.append(x)
    s = -h @ (a @ x)
    x, y = x + s, a @ s
    if rule == 'bfgs':
      left = np.eye(N) - np.outer(s, y) / (y @ s)
      h = left @ h @ left.T + np.outer(s, s) / (y @ s)
    else:
      of_y = h @ y
      h = h + np.outer(s, s) / (s @ y) - np.outer(of_y, of_y) / (y @ of_y)
  return np.array(xs)


class NtmBfgsTest(parameterized.TestCase):
  @parameterized.parameters(('bfgs', BFGS), ('dfp', DFP))
  def test_heads_by_hand_against_a_dense_reference(self, rule, heads):
    """To the rounding of float64: numpy's matrices know nothing of heads."""
    a, x = function()
    want = dense(a, x, rule)
    with jax.enable_x64(True):
      learned = learned_of()
      theta = jax.tree.map(
        lambda w: jnp.asarray(w, jnp.float64), by_hand(learned, heads)
      )
      opt = learned.transform(theta)
      got, _ = quick.jit(lambda: run(opt, jnp.asarray(a), jnp.asarray(x)))()
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-9)
    self.assertLess(np.abs(want[-1]).max(), 1e-2 * np.abs(x).max())

  @parameterized.parameters(2, 4)
  def test_last_pairs_are_the_memory_of_lbfgs(self, pairs):
    """Against optax, long after the first pairs have been forgotten."""
    a, x = function(1)
    learned = learned_of(pairs=pairs)
    ours = learned.transform(by_hand(learned, BFGS))
    first = optax.scale(SCALE)  # the first matrix is scale I
    theirs = optax.chain(
      first, optax.scale_by_lbfgs(pairs, scale_init_precond=False)
    )
    theirs = optax.chain(theirs, optax.scale(-1.0))
    a, x = jnp.asarray(a, jnp.float32), jnp.asarray(x, jnp.float32)
    got, want = quick.jit(lambda: (run(ours, a, x)[0], run(theirs, a, x)[0]))()
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4)

  def test_enough_pairs_are_a_whole_memory(self):
    """With heads that move; theta is the same for both."""
    a, x = (jnp.asarray(v, jnp.float32) for v in function(2))
    whole, last = learned_of(), learned_of(pairs=STEPS)
    theta = theta_of(whole)
    theta['heads'] = {'w': 0.3 * theta['heads']['w'], 'b': jnp.array(BFGS)}
    both = lambda: [run(o.transform(theta), a, x)[0] for o in (whole, last)]
    one, two = quick.jit(both)()
    np.testing.assert_allclose(one, two, rtol=1e-3, atol=1e-4)
    fixed = learned_of().transform(by_hand(whole, BFGS))
    plain = quick.jit(lambda: run(fixed, a, x)[0])()
    self.assertGreater(np.abs(one - plain).max(), 0.01)

  def test_memory_stays_positive(self):
    """Whatever the heads say: no direction of M z leads uphill."""
    a, x = (jnp.asarray(v, jnp.float32) for v in function(3))
    learned = learned_of()
    theta = theta_of(learned)
    theta['heads']['w'] *= 3
    opt = learned.transform(theta)
    _, states = quick.jit(lambda: run(opt, a, x))()
    memory = np.asarray(states.cell[0].memory, np.float64)
    np.testing.assert_allclose(memory, memory.swapaxes(1, 2), rtol=1e-3)
    lowest = np.linalg.eigvalsh(memory)[:, 0]
    self.assertGreater((lowest / np.abs(memory).max((1, 2))).min(), -1e-5)

  def test_steep_flat_and_none(self):
    """It stays finite and comes down; where there is no slope, it rests."""
    learned = learned_of()
    opt = learned.transform(by_hand(learned, BFGS))
    of = lambda curvatures: run(opt, jnp.diag(jnp.array(curvatures)), x, 60)[0]
    x, loss = jnp.ones(3), lambda a, x: (jnp.array(a) * x**2).sum(-1)
    for curvatures in ([1e4, 10.0, 1e2], [1.0, 1e-7, 1e-12], [0.0] * 3):
      xs = quick.jit(of)(curvatures)
      losses = np.asarray(loss(curvatures, xs))
      self.assertTrue(np.isfinite(xs).all())
      self.assertLessEqual(losses[-1], 1e-2 * losses[0])
    np.testing.assert_array_equal(xs, np.ones((60, 3)))

  def test_after_the_minimum_and_far_from_it(self):
    """At the minimum theta's gradient stays finite, far away the state."""
    learned = learned_of()

    def loss(theta):
      xs, _ = run(learned.transform(theta), jnp.eye(3), jnp.ones(3), 20)
      return jnp.sum(xs**2)

    slope = quick.jit(jax.grad(loss))(theta_of(learned))
    self.assertTrue(np.isfinite(optax.tree.norm(slope)))
    opt, x = learned.transform(by_hand(learned, BFGS)), jnp.zeros(3)
    update, state = quick.jit(opt.update), opt.init(jnp.zeros(3))
    for g in [3e38, 1.0, -1.0], [1.0, 1.0, -1.0], [-1e20, 2.0, 1.0]:
      step, state = update(jnp.array(g), state, x)
      for leaf in jax.tree.leaves((step, state)):
        self.assertTrue(np.isfinite(leaf).all())

  @parameterized.parameters(
    ({'hidden': ()}, 'hidden must be positive'),
    ({'hidden': (4, 0)}, 'hidden must be positive, got 0'),
    ({'hidden': (3, 3.5)}, 'hidden must be a whole number, got 3.5'),
    ({'scale': 0.0}, 'scale must be positive, got 0.0'),
    ({'averaged': 21}, 'averaged must fit'),
    ({'averaged': 0.1}, 'averaged must be a whole number, got 0.1'),
    ({'pairs': 0}, 'pairs must be positive, got 0'),
    ({'pairs': -2}, 'pairs must be positive, got -2'),
  )
  def test_bad_arguments(self, arguments, message):
    with self.assertRaisesRegex(ValueError, message):
      ntm_bfgs_cell(**arguments)


if __name__ == '__main__':
  absltest.main()
