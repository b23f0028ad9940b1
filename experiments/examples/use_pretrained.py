"""Train a net of your own with the learned optimizer of the package.

  python -m experiments.examples.use_pretrained

`robust` is an optax transformation without a learning rate to tune.
Here it trains 32 sigmoid units on 4,000 digits, beside Adam at three learning
rates.

A net may compute in bfloat16, but its parameters must stay in float32: many
steps are smaller than the spacing of bfloat16.
"""

import jax
import jax.numpy as jnp
import optax

import l2o_jax

RATES = (0.01, 0.03, 0.1)


def init(key):
  """A net 784-32-10 with small weights."""
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


def train(tx, images, labels, num_steps=100, loss=loss):
  """The loss on all images after training with any optax optimizer."""

  @jax.jit
  def step(params, state, images, labels):
    grads = jax.grad(loss)(params, images, labels)
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  params = init(jax.random.key(0))
  state = tx.init(params)
  for key in jax.random.split(jax.random.key(1), num_steps):
    rows = jax.random.randint(key, (128,), 0, len(images))
    params, state = step(params, state, images[rows], labels[rows])
  return float(loss(params, images, labels))


def main(num_steps=100):
  images, labels = l2o_jax.datasets.load('mnist_5k', 'train')
  images = images.reshape(len(images), -1) / jnp.float32(255)
  labels = jnp.asarray(labels)

  data = images, labels, num_steps
  robust = l2o_jax.pretrained_optimizer('robust')
  ours = train(robust, *data)
  half = train(robust, *data, loss_in_bfloat16)
  adam = {rate: train(optax.adam(rate), *data) for rate in RATES}
  print(f'loss on all digits after {num_steps} steps')
  print(f'robust              {ours:.4f}, {half:.4f} in bfloat16')
  for rate, value in adam.items():
    print(f'Adam, rate {rate:5}    {value:.4f}')
  return ours, half, min(adam.values())


if __name__ == '__main__':
  main()
