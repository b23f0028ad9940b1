"""Write a cell of your own and meta-train it.

  python -m experiments.examples.new_cell

A cell is the program that every coordinate of the parameters runs: it maps
features of the gradient to a step.  Here it is a GRU, written for one
coordinate; `coordinatewise` makes of it an optimizer for parameters of any
shape.  It is meta-trained on quadratics of 10 coordinates and compared with
gradient descent at its best learning rate on functions that neither has seen.
"""

import jax
import jax.numpy as jnp
import optax

import l2o_jax
from l2o_jax.cells.layers import linear, linear_init

RATES = (0.01, 0.015, 0.02, 0.025, 0.03, 0.04)


def gru_cell(hidden=20, scale=0.1):
  def init(key, num_features):
    keys = jax.random.split(key, 3)
    inputs = num_features + hidden
    gates = linear_init(keys[0], inputs, 2 * hidden)
    candidate = linear_init(keys[1], inputs, hidden)
    output = linear_init(keys[2], hidden, 1)
    return {'gates': gates, 'candidate': candidate, 'linear': output}

  def initial_state():
    return jnp.zeros(hidden)

  def step(theta, x, h):  # x [F], h [H]
    gates = linear(theta['gates'], jnp.concatenate([x, h]))
    reset, keep = jnp.split(jax.nn.sigmoid(gates), 2)
    x = jnp.concatenate([x, reset * h])
    h = keep * h + (1 - keep) * jnp.tanh(linear(theta['candidate'], x))
    return scale * linear(theta['linear'], h)[0], h

  return l2o_jax.Cell(init, initial_state, step)


def main(num_epochs=150, num_test=256):
  optimizee = l2o_jax.optimizees.quadratic(10)
  learned = l2o_jax.coordinatewise(l2o_jax.gradient(), gru_cell())
  trainer = l2o_jax.truncated_bptt(
    learned,
    optax.adam(1e-2),
    unroll_length=20,
    num_unrolls=5,
    num_optimizees=128,
  )
  state = trainer.init(jax.random.key(0))
  step = jax.jit(trainer.step)
  for epoch, key in enumerate(jax.random.split(jax.random.key(1), num_epochs)):
    state, info = step(state, optimizee, key)
    if epoch % 25 == 0:
      final = info.losses[-1, :, -1].mean()
      print(f'epoch {epoch:3}: f after 100 steps, in training {final:.3f}')

  def final(opt):
    keys = jax.random.split(jax.random.key(2), num_test)
    curves = l2o_jax.learning_curves(optimizee, opt, keys, 100)
    return float(curves[:, -1].mean())

  ours = final(learned.transform(state.theta))
  sgd = {rate: final(optax.sgd(rate)) for rate in RATES}
  best = min(sgd, key=sgd.get)
  print(f'on {num_test} new functions, f after 100 steps:')
  print(f'  GRU                          {ours:.3f}')
  print(f'  gradient descent, rate {best:.3f} {sgd[best]:.3f}')
  return ours, sgd[best]


if __name__ == '__main__':
  main()
