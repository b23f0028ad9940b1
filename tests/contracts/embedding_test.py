"""The pretrained optimizer where users are: inside of other libraries."""

import functools
import itertools
import pathlib
import tempfile

import chex
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from absl.testing import absltest, parameterized
from flax.core import freeze

import l2o_jax
from experiments.examples.in_your_library import LIBRARIES
from tests import quick

TX = l2o_jax.pretrained_optimizer()


@flax.struct.dataclass
class Registered:
  """A container that a user's library has registered."""

  w: chex.Array
  b: chex.Array


TREES = {
  'dict': {'w': jnp.ones((3, 2)), 'b': jnp.zeros(2)},
  'frozen': freeze({'layer': {'w': jnp.ones((3, 2))}, 'b': jnp.zeros(2)}),
  'registered': Registered(jnp.ones((3, 2)), jnp.zeros(2)),
  'list': [jnp.ones(2), (jnp.zeros(()), None)],
}
AROUND = {
  'chain': lambda tx: optax.chain(optax.clip_by_global_norm(1.0), tx),
  'named_chain': lambda tx: optax.named_chain(
    ('clip', optax.clip(1.0)), ('l', tx)
  ),
  'masked': lambda tx: optax.masked(tx, lambda p: jax.tree.map(jnp.ndim, p)),
  'partition': lambda tx: optax.partition(
    {True: tx, False: optax.sgd(0.1)},
    lambda p: jax.tree.map(lambda x: x.ndim > 1, p),
  ),
  'inject_hyperparams': lambda tx: optax.inject_hyperparams(
    lambda learning_rate: l2o_jax.pretrained_optimizer('robust', learning_rate)
  )(learning_rate=0.5),
  'apply_if_finite': lambda tx: optax.apply_if_finite(tx, 3),
  'MultiSteps': lambda tx: optax.MultiSteps(tx, 2).gradient_transformation(),
  'flatten': optax.flatten,
  'weight_decay': lambda tx: optax.chain(tx, optax.add_decayed_weights(-1e-3)),
  'schedule': lambda tx: l2o_jax.pretrained_optimizer(
    'robust', optax.cosine_decay_schedule(1.0, 20)
  ),
}


def descend(loss, params, tx=TX, num_steps=8):
  """Losses of a user's own loop."""

  @quick.jit
  def step(params, state):
    value, grads = jax.value_and_grad(loss)(params)
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state, value

  state, losses = tx.init(params), []
  for _ in range(num_steps):
    params, state, value = step(params, state)
    losses.append(float(value))
  return losses


class OptaxTest(parameterized.TestCase):
  @parameterized.named_parameters((name, name) for name in AROUND)
  def test_inside_of(self, name):
    params = {'w': jnp.ones((3, 2)), 'b': jnp.ones(2)}
    loss = lambda p: jnp.sum(p['w'] ** 2) + jnp.sum((p['b'] - 2) ** 2)
    losses = descend(loss, params, AROUND[name](TX))
    self.assertLess(losses[-1], losses[0])

  def test_lookahead(self):
    tx = optax.lookahead(TX, 2, 0.5)
    params = optax.LookaheadParams.init_synced({'w': jnp.ones(3)})
    state = tx.init(params)
    update = quick.jit(tx.update)
    for _ in range(4):
      grads = jax.tree.map(lambda x: 2 * x, params.fast)
      updates, state = update(grads, state, params)
      params = optax.apply_updates(params, updates)
    self.assertLess(float(params.slow['w'].max()), 1.0)

  @parameterized.named_parameters((name, name) for name in TREES)
  def test_containers_and_map_params(self, name):
    params = TREES[name]
    state = TX.init(params)
    grads = jax.tree.map(lambda x: x + 1, params)
    updates, new = quick.jit(TX.update)(grads, state, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(new, state)
    doubled = optax.tree.map_params(TX, lambda x: 2 * x, new)
    pairs = zip(jax.tree.leaves(new), jax.tree.leaves(doubled))
    self.assertTrue(any(np.any(a != b) for a, b in pairs))

  @parameterized.parameters(jnp.bfloat16, jnp.float16, jnp.float32)
  def test_types(self, dtype):
    mixed = {'a': jnp.ones(3, dtype), 'b': jnp.ones(2, jnp.float32)}
    updates, _ = TX.update(mixed, TX.init(mixed), mixed)
    chex.assert_trees_all_equal_dtypes(updates, mixed)

  def test_jit_scan_vmap_donation_and_cond(self):
    x = jnp.ones((4, 3))
    loss = lambda x: jnp.sum(x**2)
    traces = []

    @functools.partial(quick.jit, donate_argnums=(0, 1))
    def step(x, state):
      traces.append(1)
      go = lambda: TX.update(jax.grad(loss)(x), state, x)
      stay = lambda: (jnp.zeros_like(x), state)
      updates, new = jax.lax.cond(loss(x) > -1, go, stay)
      return x + updates, new

    x, state = step(x, TX.init(x))
    for _ in range(3):
      x, state = step(x, state)
    self.assertLen(traces, 1)  # no recompilation

    def scanned(x):
      body = lambda carry, _: (step.__wrapped__(*carry), None)
      (x, _), _ = jax.lax.scan(body, (x, TX.init(x)), None, 4)
      return x

    ones = jnp.ones((4, 3))
    np.testing.assert_allclose(quick.jit(scanned)(ones), x, rtol=1e-6)
    # Each of these functions has a leaf of its own, of three coordinates.
    rows = quick.jit(jax.vmap(scanned))(ones)
    of_one = quick.jit(scanned)(ones[0])
    np.testing.assert_allclose(rows, jnp.stack([of_one] * 4), rtol=1e-6)


class LibrariesTest(parameterized.TestCase):
  @parameterized.parameters(*itertools.chain(*LIBRARIES.values()))
  def test_trains_a_net(self, loop):
    losses, averaged = loop(TX, l2o_jax.pretrained()[1], 8)
    self.assertLess(losses[-1], 0.9 * losses[0])
    self.assertLess(averaged, 0.9 * losses[0])
    self.assertNotEqual(averaged, losses[-1])

  def test_all_of_the_example(self):
    self.assertLen(list(itertools.chain(*LIBRARIES.values())), 4)


class ResumeTest(absltest.TestCase):
  def test_the_state_is_restored_bitwise(self):
    """By `l2o_jax.save` and by orbax, in the middle of a user's own loop."""
    folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
    params = {'w': jnp.linspace(-1, 1, 6).reshape(3, 2)}

    @quick.jit
    def step(params, state):
      grads = jax.tree.map(jnp.sin, params)
      updates, state = TX.update(grads, state, params)
      return optax.apply_updates(params, updates), state

    middle = params, TX.init(params)
    for _ in range(3):
      middle = step(*middle)
    end = middle
    for _ in range(3):
      end = step(*end)

    l2o_jax.save(folder / 'run.npz', middle)
    with ocp.StandardCheckpointer() as checkpointer:
      checkpointer.save(folder / 'orbax', middle)
      checkpointer.wait_until_finished()
      by_orbax = checkpointer.restore(folder / 'orbax', middle)
    for found in (l2o_jax.load(folder / 'run.npz', middle), by_orbax):
      chex.assert_trees_all_equal(found, middle)
      for _ in range(3):
        found = step(*found)
      chex.assert_trees_all_equal(found, end)


if __name__ == '__main__':
  absltest.main()
