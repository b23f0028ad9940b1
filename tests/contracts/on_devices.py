"""Learned optimizers on eight devices: `python -m tests.contracts.on_devices`.

State is made where the parameters are and stays there, and coordinates that do
not communicate never do.  Those of `robust` exchange two numbers a leaf.  A
program of its own, as the number of devices is fixed once a process has any.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from tests import quick
from tests.contracts.subjects import LEARNED, theta_of

SUBJECTS = (
  'linear',
  'gru',
  'small',
  'predicted_step_descent',
  'robust',
  'gated',
)
OF_LEAVES = ('robust', 'gated')  # they keep some numbers of a leaf
SPECS = {'w': PartitionSpec('a', 'b'), 'b': PartitionSpec('b')}
COLLECTIVES = ('all-gather', 'all-reduce', 'all-to-all', 'collective-permute')


def step(theta, params, state, name):
  opt = LEARNED[name].transform(theta)
  return opt.update(params, state, params, value=1.0)


def check(name, mesh, explicit):
  learned = LEARNED[name]
  theta = jax.device_put(
    theta_of(learned), NamedSharding(mesh, PartitionSpec())
  )
  place = lambda spec: NamedSharding(mesh, spec)
  params = jax.device_put(
    {'w': jnp.ones((8, 6)), 'b': jnp.ones(6)},
    {k: place(spec) for k, spec in SPECS.items()},
  )
  init = lambda params: learned.transform(theta).init(params)
  jitted = quick.jit(init)(params)
  for how, state in (('eager', init(params)), ('jitted', jitted)):
    for path, leaf in jax.tree.leaves_with_path(state):
      spec = SPECS[jax.tree_util.keystr(path[-1:], simple=True)]
      leading = (None,) * (leaf.ndim - len(spec))
      of_leaf = name in OF_LEAVES and leaf.ndim == 0
      want = place(PartitionSpec(*(() if of_leaf else (*leading, *spec))))
      found = leaf.sharding
      assert found.is_equivalent_to(want, leaf.ndim), (name, how, path, found)
  update = quick.jit(step, static_argnums=3)
  compiled = update.lower(theta, params, jitted, name).compile()
  text = compiled.as_text()
  exchanged = []
  if name == 'robust':
    exchanged = re.findall(r' = (.*) all-reduce\(', text)
    for shape in exchanged:  # scalars, perhaps several at once
      assert not re.search(r'\[\d', shape), (name, shape)
    assert exchanged
  for collective in COLLECTIVES:
    allowed = exchanged and collective == 'all-reduce'
    assert allowed or collective not in text, (name, explicit, collective)
  updates, new = compiled(theta, params, jitted)
  pairs = zip(*map(jax.tree.leaves, ((updates, new), (params, jitted))))
  for got, want in pairs:
    assert got.sharding.is_equivalent_to(want.sharding, got.ndim), (name, got)
  return updates


def main():
  jax.config.update('jax_num_cpu_devices', 8)
  devices = np.array(jax.devices()).reshape(4, 2)
  for name in SUBJECTS:
    found = []
    for kind in (AxisType.Auto, AxisType.Explicit):
      mesh = jax.sharding.Mesh(devices, ('a', 'b'), axis_types=(kind,) * 2)
      with jax.set_mesh(mesh):
        found.append(check(name, mesh, kind == AxisType.Explicit))
    learned, theta = LEARNED[name], theta_of(LEARNED[name])
    # On another device, and with everything there.
    third = jax.devices()[3]
    params = {'w': jnp.ones((8, 6)), 'b': jnp.ones(6)}
    theta, there = jax.device_put((theta, params), third)
    state = learned.transform(theta).init(there)
    updates, new = quick.jit(step, static_argnums=3)(theta, there, state, name)
    for leaf in jax.tree.leaves((state, updates, new)):
      assert leaf.devices() == {third}, (name, leaf.devices())
    for sharded in found:
      for key, want in updates.items():
        np.testing.assert_allclose(sharded[key], want, rtol=1e-5)
    what = 'two numbers a leaf' if name == 'robust' else 'nothing'
    print(f'{name}: where the parameters are, exchanges {what}', flush=True)


if __name__ == '__main__':
  main()
