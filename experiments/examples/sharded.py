"""Large parameters over several devices, and meta-training over several.

  python -m experiments.examples.sharded

Eight devices are simulated on the CPU.  First, a matrix that is sharded over
them: the optimizer's state is made where the parameters are, and an update
needs no communication, since each coordinate is on its own.  Second, an epoch
of meta-training with its optimizees over the devices: theta is on all of them,
a meta-step adds up its gradient and the loss (two all-reduces), and the result
is the same as on one device.
"""

import collections
import re

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import l2o_jax

COLLECTIVES = 'all-reduce|all-gather|reduce-scatter|all-to-all|collective'


def collectives(compiled):
  """{kind of communication between devices: how often in the program}."""
  calls = re.findall(rf' ({COLLECTIVES})[a-z-]*\(', compiled.as_text())
  return dict(collections.Counter(calls))


def sharded_parameters(mesh, shape=(64, 32)):
  """A step of a matrix whose rows are spread over the devices."""
  rows = NamedSharding(mesh, PartitionSpec('devices', None))
  params = {'w': jax.device_put(jnp.ones(shape), rows)}
  learned = l2o_jax.lstm_log_and_sign()
  theta = learned.init(jax.random.key(0))
  state = jax.jit(learned.transform(theta).init)(params)

  @jax.jit
  def step(theta, params, state):
    grads = jax.grad(lambda params: jnp.sum(params['w'] ** 2))(params)
    updates, state = learned.transform(theta).update(grads, state, params)
    return optax.apply_updates(params, updates), state

  compiled = step.lower(theta, params, state).compile()
  params, state = compiled(theta, params, state)
  arrays = jax.tree.leaves((params, state))
  spread = all(len(x.sharding.device_set) == mesh.size for x in arrays)
  whole = sum(x.sharding.is_fully_replicated for x in arrays)
  print(f'parameters  {params["w"].sharding.spec} of shape {shape}')
  print(f'state       {len(arrays) - 1} arrays, {whole} of them not sharded')
  print(f'step        communication: {collectives(compiled) or "none"}')
  return spread and not whole, collectives(compiled)


def sharded_meta_training(mesh):
  """An epoch with 16 optimizees, on one device and on all."""
  optimizee = l2o_jax.optimizees.quadratic(10)
  learned = l2o_jax.lstm_raw()

  def epoch(sharding):
    trainer = l2o_jax.truncated_bptt(
      learned,
      optax.adam(1e-3),
      unroll_length=10,
      num_unrolls=2,
      num_optimizees=16,
      sharding=sharding,
    )
    state = trainer.init(jax.random.key(0))
    if sharding:  # theta and the meta-optimizer's state, on every device
      state = jax.device_put(state, NamedSharding(mesh, PartitionSpec()))
    args = state, optimizee, jax.random.key(1)
    compiled = jax.jit(trainer.step).lower(*args).compile()
    state, info = compiled(*args)
    return state.theta, info.meta_loss, collectives(compiled)

  theta, one, _ = epoch(None)
  theta_8, all_devices, calls = epoch(
    NamedSharding(mesh, PartitionSpec('devices'))
  )
  print(f'meta-loss   on one device {one}, on {mesh.size} {all_devices}')
  print(f'meta-step   communication: {calls}')
  gap = jax.tree.map(lambda a, b: abs(a - b).max(), theta, theta_8)
  return max(map(float, jax.tree.leaves(gap))), calls


def main(num_devices=8):
  jax.config.update('jax_num_cpu_devices', num_devices)
  types = (AxisType.Auto,)  # the compiler moves data where it must
  mesh = jax.make_mesh((num_devices,), ('devices',), axis_types=types)
  return sharded_parameters(mesh), sharded_meta_training(mesh)


if __name__ == '__main__':
  main()
