"""Meta-train an optimizer for a model of your own, here a Flax net.

  python -m experiments.examples.train_your_own

An optimizee is two functions: `init(key) -> params, task` draws a start, and
`loss(params, task, key) -> f` evaluates a minibatch, which the key draws.  The
LSTM optimizer is meta-trained by back-propagation through 100 steps of training
the net.  Then it trains the net from 32 new starts, beside Adam.  Its weights
are written to my_optimizer.npz.
"""

import jax
import jax.numpy as jnp
import optax

import l2o_jax

try:
  from flax import linen as nn
except ModuleNotFoundError:
  raise SystemExit('this example needs Flax: pip install flax') from None

RATES = (0.003, 0.01, 0.03, 0.1)


def flax_optimizee(batch_size=64):
  """A ReLU net on the packaged digits, reduced to 7 x 7 pixels."""
  net = nn.Sequential([nn.Dense(20), nn.relu, nn.Dense(10)])
  images, labels = map(jnp.asarray, l2o_jax.datasets.load('mnist_5k', 'train'))
  images = images[:, ::4, ::4].reshape(len(images), -1) / 255.0

  def loss(params, task, key):
    rows = jax.random.randint(key, (batch_size,), 0, len(images))
    logits = net.apply(params, images[rows])
    losses = optax.softmax_cross_entropy_with_integer_labels
    return losses(logits, labels[rows]).mean()

  return l2o_jax.Optimizee(lambda key: (net.init(key, images), ()), loss)


def main(num_epochs=120, path='my_optimizer.npz'):
  optimizee = flax_optimizee()
  learned = l2o_jax.lstm_log_and_sign(scale=0.03)
  trainer = l2o_jax.truncated_bptt(
    learned, optax.adam(3e-3), unroll_length=20, num_unrolls=5
  )
  state, step = trainer.init(jax.random.key(0)), jax.jit(trainer.step)
  for key in jax.random.split(jax.random.key(1), num_epochs):
    state, info = step(state, optimizee, key)
  l2o_jax.save_learned(path, learned, state.theta)

  def curve(make, weights):  # the mean loss at steps 0, 20 ... 100
    keys = jax.random.split(jax.random.key(2), 32)
    curves = l2o_jax.learning_curves(optimizee, make(weights), keys, 100)
    return curves.mean(0)[::20]

  curve = jax.jit(curve, static_argnums=0)
  learned, theta = l2o_jax.load_learned(path)
  ours = curve(learned.transform, theta)
  adam = min((curve(optax.adam, r) for r in RATES), key=lambda c: c[-1])
  print('step    ', *(f'{20 * i:5}' for i in range(6)))
  print('learned ', *(f'{f:.3f}' for f in ours))
  print('Adam    ', *(f'{f:.3f}' for f in adam), '(best of four rates)')
  return ours, adam


if __name__ == '__main__':
  main()
