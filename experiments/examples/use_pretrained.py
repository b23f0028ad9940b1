"""Train a net of your own with a learned optimizer of this repository.

  python -m experiments.examples.use_pretrained

Given theta, its weights, a learned optimizer is an optax transformation.  This
one was meta-trained on a net of 20 sigmoid units and all of MNIST.  Here it
trains 32 units on 4,000 digits, beside Adam at three learning rates.

A net may compute in bfloat16, but its parameters must stay in float32: many
steps are smaller than the spacing of bfloat16.
"""

import functools
import pathlib

import jax
import jax.numpy as jnp
import optax

import l2o_jax

RESULTS = pathlib.Path(__file__).parents[1] / 'results'
RATES = (0.01, 0.03, 0.1)


def init(key):
  """A net 784-32-10; small weights, as in meta-training."""
  keys = jax.random.split(key)
  w = 0.01 * jax.random.normal(keys[0], (784, 32))
  v = 0.01 * jax.random.normal(keys[1], (32, 10))
  return {'w': w, 'b': jnp.zeros(32), 'v': v, 'c': jnp.zeros(10)}


def loss(params, images, labels):
  hidden = jax.nn.sigmoid(images @ params['w'] + params['b'])
  logits = hidden @ params['v'] + params['c']
  losses = optax.softmax_cross_entropy_with_integer_labels
  return jnp.mean(losses(logits, labels))


def loss_in_bfloat16(params, images, labels):
  """Casts inside, so that gradients and parameters stay in float32."""
  params, images = optax.tree.cast((params, images), jnp.bfloat16)
  return loss(params, images, labels).astype(jnp.float32)


@functools.partial(jax.jit, static_argnums=(0, 1))
def step(loss, make, weights, params, opt_state, images, labels):
  opt = make(weights)  # inside the traced function: theta is an argument
  grads = jax.grad(loss)(params, images, labels)
  updates, opt_state = opt.update(grads, opt_state, params)
  return optax.apply_updates(params, updates), opt_state


def train(make, weights, images, labels, num_steps=100, loss=loss):
  """The loss on all images after training with the optimizer make(weights)."""
  params = init(jax.random.key(0))
  opt_state = make(weights).init(params)
  for key in jax.random.split(jax.random.key(1), num_steps):
    rows = jax.random.randint(key, (128,), 0, len(images))
    batch = images[rows], labels[rows]
    params, opt_state = step(loss, make, weights, params, opt_state, *batch)
  return float(loss(params, images, labels))


def main(num_steps=100):
  images, labels = l2o_jax.datasets.load('mnist_5k', 'train')
  images = images.reshape(len(images), -1) / jnp.float32(255)
  labels = jnp.asarray(labels)

  learned, theta = l2o_jax.load_learned(RESULTS / 'mnist/quick/theta.npz')
  data = images, labels, num_steps
  ours = train(learned.transform, theta, *data)
  half = train(learned.transform, theta, *data, loss_in_bfloat16)
  adam = {rate: train(optax.adam, rate, *data) for rate in RATES}
  print(f'loss on all digits after {num_steps} steps')
  print(f'learned optimizer   {ours:.4f}, {half:.4f} in bfloat16')
  for rate, value in adam.items():
    print(f'Adam, rate {rate:5}    {value:.4f}')
  return ours, half, min(adam.values())


if __name__ == '__main__':
  main()
