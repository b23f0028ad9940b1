"""The pretrained optimizer in Flax (linen and nnx), Equinox and Haiku.

  python -m experiments.examples.in_your_library

Each function is the shortest form of a training loop in that library.  At its
end it judges the average of the iterates, which is what to use.  Training goes
on from the parameters: never write the average into a net that is trained on.
Without that line `tx` may be any optax optimizer.
"""

import importlib.util

import jax
import jax.numpy as jnp

import l2o_jax

X = jnp.linspace(-1, 1, 64)[:, None]
Y = jnp.sin(3 * X)


def flax_linen(tx, theta, num_steps):
  from flax import linen as nn
  from flax.training.train_state import TrainState

  net = nn.Sequential([nn.Dense(16), nn.tanh, nn.Dense(1)])
  params = net.init(jax.random.key(0), X)
  state = TrainState.create(apply_fn=net.apply, params=params, tx=tx)
  loss = lambda params: jnp.mean((net.apply(params, X) - Y) ** 2)

  @jax.jit
  def step(state):
    value, grads = jax.value_and_grad(loss)(state.params)
    return state.apply_gradients(grads=grads), value

  losses = []
  for _ in range(num_steps):
    state, value = step(state)
    losses.append(float(value))
  average = l2o_jax.eval_params(theta, state.opt_state, state.params)
  return losses, float(loss(average))


def flax_nnx(tx, theta, num_steps):
  from flax import nnx

  rngs = nnx.Rngs(0)
  first, last = nnx.Linear(1, 16, rngs=rngs), nnx.Linear(16, 1, rngs=rngs)
  net = nnx.Sequential(first, nnx.tanh, last)
  optimizer = nnx.Optimizer(net, tx, wrt=nnx.Param)
  loss = lambda net: jnp.mean((net(X) - Y) ** 2)

  @nnx.jit
  def step(net, optimizer):
    value, grads = nnx.value_and_grad(loss)(net)
    optimizer.update(net, grads)
    return value

  losses = [float(step(net, optimizer)) for _ in range(num_steps)]
  params, average = nnx.state(net, nnx.Param), nnx.clone(net)
  nnx.update(average, l2o_jax.eval_params(theta, optimizer.opt_state, params))
  return losses, float(loss(average))


def equinox(tx, theta, num_steps):
  import equinox as eqx

  net = eqx.nn.MLP(1, 1, 16, 1, jnp.tanh, key=jax.random.key(0))
  state = tx.init(eqx.filter(net, eqx.is_inexact_array))
  loss = lambda net: jnp.mean((jax.vmap(net)(X) - Y) ** 2)

  @eqx.filter_jit
  def step(net, state):
    value, grads = eqx.filter_value_and_grad(loss)(net)
    params = eqx.filter(net, eqx.is_inexact_array)
    updates, state = tx.update(grads, state, params)
    return eqx.apply_updates(net, updates), state, value

  losses = []
  for _ in range(num_steps):
    net, state, value = step(net, state)
    losses.append(float(value))
  average = l2o_jax.eval_params(theta, state, net)
  return losses, float(loss(average))


def haiku(tx, theta, num_steps):
  import haiku as hk
  import optax

  net = hk.transform(lambda x: hk.nets.MLP([16, 1], activation=jnp.tanh)(x))
  net = hk.without_apply_rng(net)
  params = net.init(jax.random.key(0), X)
  state = tx.init(params)
  loss = lambda params: jnp.mean((net.apply(params, X) - Y) ** 2)

  @jax.jit
  def step(params, state):
    value, grads = jax.value_and_grad(loss)(params)
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state, value

  losses = []
  for _ in range(num_steps):
    params, state, value = step(params, state)
    losses.append(float(value))
  average = l2o_jax.eval_params(theta, state, params)
  return losses, float(loss(average))


LIBRARIES = {
  'flax': (flax_linen, flax_nnx),
  'equinox': (equinox,),
  'haiku': (haiku,),
}


def main(num_steps=200):
  learned, theta = l2o_jax.pretrained('robust')
  tx, found = learned.transform(theta), {}
  for library, loops in LIBRARIES.items():
    if importlib.util.find_spec(library) is None:
      print(f'{library} is not installed')
      continue
    for loop in loops:
      losses, averaged = found[loop.__name__] = loop(tx, theta, num_steps)
      last = f'{losses[-1]:.2e}, at the average {averaged:.2e}'
      print(f'{loop.__name__:<12} {losses[0]:.4f} -> {last}')
  return found


if __name__ == '__main__':
  main()
