"""An optimizer for a task of your own: from a loss to theta, figure and tx.

  python -m experiments.examples.your_task

`fine_tune` is all it takes.  It starts from the package's `robust`,
meta-trains it on runs of the task, draws it beside tuned Adam, and returns an
optax transformation; `l2o_jax.load_learned('flax.npz')` has theta for
`eval_params`.  Theta is for runs of about as many steps: judge it on held-out
data, with weight decay in front of it.  A task is an Optimizee: here a net of
Flax with batch norm, and a net of Equinox.  Writes flax.npz, flax.png,
equinox.npz and equinox.png.
"""

import functools
import importlib.util

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax
import tqdm
from jax.tree_util import Partial

import l2o_jax

RATES = (0.001, 0.003, 0.01, 0.03, 0.1)


def fine_tune(task, name, num_steps=100, num_epochs=40):
  learned, theta = l2o_jax.pretrained('robust')
  how = {'unroll_length': num_steps, 'num_unrolls': 1, 'num_optimizees': 8}
  trainer = l2o_jax.evolution(
    learned, optax.adam(0.01), std=0.1, of_loss=jnp.log, **how
  )
  state, step = trainer.init(jax.random.key(0)), jax.jit(trainer.step)
  state = state._replace(theta=theta)
  for key in tqdm.tqdm(jax.random.split(jax.random.key(1), num_epochs), name):
    state, info = step(state, task, key)
  l2o_jax.save_learned(f'{name}.npz', learned, state.theta)
  return compare(task, name, learned.transform(state.theta), num_steps)


def compare(task, name, tx, num_steps):
  """Draws mean losses from 16 new starts; returns tx and where they end."""
  keys = jax.random.split(jax.random.key(2), 16)
  end = lambda curve: float(curve[-10:].mean())  # minibatches are noisy

  @functools.partial(jax.jit, static_argnums=1)
  def mean(task, make, *args):
    opt = make(*args)
    return l2o_jax.learning_curves(task, opt, keys, num_steps).mean(0)

  curves = {
    'fine-tuned': mean(task, lambda: tx),
    'robust': mean(task, l2o_jax.pretrained_optimizer),
    'Adam, tuned': min(
      (mean(task, optax.adam, rate) for rate in RATES), key=end
    ),
  }
  figure, axis = plt.subplots()
  for label, curve in curves.items():
    axis.semilogy(curve, label=label)
  axis.set(xlabel='step', ylabel='mean loss of the minibatch')
  axis.legend()
  figure.savefig(f'{name}.png')
  return tx, {label: end(curve) for label, curve in curves.items()}


def digits():
  """7 x 7 pixels and labels."""
  images, labels = l2o_jax.datasets.load('mnist_5k', 'train')
  images = images[:, ::4, ::4].reshape(len(images), -1) / jnp.float32(255)
  return jnp.asarray(images), jnp.asarray(labels)


def minibatch(x, y, key, size=64):
  rows = jax.random.randint(key, (size,), 0, len(x))
  return x[rows], y[rows]


cross_entropy = optax.softmax_cross_entropy_with_integer_labels


def flax_task():
  """Batch norm with the statistics of the minibatch."""
  from flax import linen as nn

  norm = functools.partial(nn.BatchNorm, use_running_average=False)
  net = nn.Sequential([nn.Dense(20), norm(), nn.relu, nn.Dense(10)])

  def init(key):
    return net.init(key, jnp.zeros((1, 49)))['params'], ()

  def loss(x, y, params, task, key):
    x, y = minibatch(x, y, key)
    logits, _ = net.apply({'params': params}, x, mutable='batch_stats')
    return cross_entropy(logits, y).mean()

  # Partial makes the data an argument of the compiled program.
  return l2o_jax.Optimizee(init, Partial(loss, *digits()))


def equinox_task():
  """What is not an array of floats is the same in all nets."""
  import equinox as eqx

  make = lambda key: eqx.nn.MLP(49, 10, 20, 2, key=key)
  _, static = eqx.partition(make(jax.random.key(0)), eqx.is_inexact_array)

  def init(key):
    return eqx.filter(make(key), eqx.is_inexact_array), ()

  def loss(x, y, params, task, key):
    x, y = minibatch(x, y, key)
    return cross_entropy(jax.vmap(eqx.combine(params, static))(x), y).mean()

  return l2o_jax.Optimizee(init, Partial(loss, *digits()))


def main(**how):
  found = {}
  for name, make in {'flax': flax_task, 'equinox': equinox_task}.items():
    if importlib.util.find_spec(name) is None:
      print(f'{name} is not installed')
      continue
    _, found[name] = fine_tune(make(), name, **how)
    ends = ', '.join(f'{k} {v:.3f}' for k, v in found[name].items())
    print(f'{name}: {ends}')
  return found


if __name__ == '__main__':
  main()
