"""What `robust` is meta-trained on, and what its theta is selected by.

The two have no net in common.  Of the tasks of `tasks.py`, on which the result
is judged, one has a net that is trained on, in random units and on half of the
images: `sigmoid`.  All digits are of the packaged training set; validation has
the second half of them.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.common import nets, problems
from experiments.common.tasks import digits, with_data
from experiments.common.verdict import interquartile_mean
from l2o_jax import optimizees
from l2o_jax.base import LearnedOptimizer, Optimizee
from l2o_jax.evaluation import learning_curves
from l2o_jax.optimizees.rescaled import rescaled

_TRAINED, _CLASSES = 2000, 10
_RUNS = 16  # of the reference
FLOOR = 1e-4  # of losses, in ratios
HORIZONS = (100, 500, 2000)  # of validation


def _images(side, part):
  data = digits('train', side=side)
  return data.x[part], data.y[part]


def _noisy(data, net, batch_size, inputs=0.0, labels=0.0) -> Optimizee:
  """A classifier whose data nobody can learn by heart.

  Every minibatch adds N(0, inputs²) to the images and draws a part of the
  labels anew.  Losses stop at a level that the noise sets, as they do where
  there are more data than steps.  Over all data they are with one draw of the
  noise in the images, and expected over labels.
  """
  init, apply = net
  images, y = data
  x = jnp.asarray(images.reshape(len(images), -1))

  def cross_entropy(params, x, targets):
    log_p = jax.nn.log_softmax(apply(params, x))
    return -jnp.mean(jnp.sum(targets * log_p, -1))

  def seen(x, key):
    return x + inputs * jax.random.normal(key, x.shape)

  def loss(data, params, task, key):
    x, y = data
    keys = jax.random.split(key, 4)
    rows = jax.random.randint(keys[0], (batch_size,), 0, x.shape[0])
    anew = jax.random.bernoulli(keys[1], labels, (batch_size,))
    other = jax.random.randint(keys[2], (batch_size,), 0, _CLASSES)
    targets = jax.nn.one_hot(jnp.where(anew, other, y[rows]), _CLASSES)
    return cross_entropy(params, seen(x[rows], keys[3]), targets)

  def objective(data, params, task):
    x, y = data
    targets = (1 - labels) * jax.nn.one_hot(y, _CLASSES) + labels / _CLASSES
    return cross_entropy(params, seen(x, jax.random.key(0)), targets)

  return with_data(init, loss, objective, (x, jnp.asarray(y)))


def trained() -> tuple[Optimizee, ...]:
  """Small nets on 7 x 7 to 14 x 14 digits, quadratics; batches of 8 to 128.

  Four are in random units, three have data that cannot be learned by heart.
  """
  part = slice(0, _TRAINED)
  small, large = _images(7, part), _images(14, part)
  of = optimizees.classifier
  net = lambda *sizes, **how: nets.dense((*sizes, _CLASSES), **how)
  any_units = lambda f, r: rescaled(f, r, each='any')
  return (
    any_units(of(*large, net(196, 20, activation='sigmoid'), 128), 1.0),
    of(*small, net(49, 20, gain=0.5), 64),
    of(*large, net(196, 28, 28, activation='tanh'), 16),
    of(*small, net(49, 32, 32), 64),
    any_units(of(*_images(10, part), net(100), 16), 1.0),
    any_units(of(*small, nets.normalised(49, _CLASSES, (16, 16)), 128), 0.5),
    any_units(optimizees.quadratic(20, 'normal', 1.0), 1.0),
    of(*large, net(196, 24, activation='gelu'), 8),
    _noisy(small, net(49, 48), 64, inputs=0.5),
    _noisy(_images(10, part), net(100, gain=0.1), 16, inputs=1.0),
    _noisy(small, net(49, 16, 16), 32, labels=0.1),
    of(*small, net(49, 256, 256, gain=2**0.5), 64),
  )


def validation() -> dict[str, Optimizee]:
  """Other nets, sizes, starts and batches; most larger than in training."""
  part = slice(_TRAINED, None)
  small, middle, large = (_images(side, part) for side in (7, 14, 28))
  of = lambda data, net, batch: optimizees.classifier(*data, net, batch)
  net = lambda *sizes, **how: nets.dense((*sizes, _CLASSES), **how)
  mlp = lambda *sizes, **how: optimizees.mlp((*sizes, _CLASSES), **how)
  sigmoid = mlp(784, 20, activation='sigmoid', initial_std=0.1)
  tanh = net(196, 24, 24, activation='tanh')
  deep = nets.normalised(196, _CLASSES, (24, 24, 24))
  return {
    'sigmoid, 784 inputs': of(large, sigmoid, 128),
    'ReLU, 784 inputs': of(large, mlp(784, 20, activation='relu'), 128),
    'tanh': of(middle, net(196, 32, 32, activation='tanh'), 32),
    'four layers': of(small, net(49, 32, 32, 32), 128),
    'softmax regression': of(middle, net(196, gain=0.1), 8),
    'normalised': of(middle, nets.normalised(196, _CLASSES, (32, 32)), 64),
    'convolutions': of(middle, nets.conv(14, _CLASSES, batch_norm=False), 64),
    'recurrent': of(middle, nets.rows_gru(14, _CLASSES), 64),
    'quadratic': optimizees.quadratic(30, 'normal', 1.0),
    'noisy images': _noisy(middle, net(196, 32), 32, inputs=1.0),
    'noisy labels': _noisy(middle, tanh, 64, labels=0.2),
    'noisy, wide': _noisy(middle, net(196, 64), 64, inputs=0.4),
    'noisy, normalised': _noisy(middle, deep, 32, inputs=0.4),
    'noisy, batches of 8': _noisy(small, net(49, 32), 8, inputs=0.2),
    'wide layers': of(middle, net(196, 256, 256, gain=2**0.5), 32),
    'wide, recurrent': of(small, nets.rows_gru(7, _CLASSES, 128), 64),
  }


def reference():
  """What losses of validation are compared with: Adam with a falling rate."""
  return optax.adam(lambda t: 0.03 / jnp.sqrt(1 + t / 100), b2=0.95)


def reference_curves(optimizees, num_steps) -> list[jax.Array]:
  """For each family the mean of f(y_t) along the reference, [T + 1].

  f is of the minibatches.
  """
  keys = jax.random.split(jax.random.key(1_000_002), _RUNS)

  @jax.jit
  def curve(f):
    return jnp.mean(learning_curves(f, reference(), keys, num_steps), 0)

  return [curve(f) for f in optimizees]


def validate(learned: LearnedOptimizer, num_seeds: int):
  """theta -> logarithm of the losses over the reference's [3]; lower is better.

  For each of 100, 500 and 2,000 steps, the logarithm of the interquartile mean,
  over all families and seeds, of the ratios (f(x_t) + 1e-4) / (E f(y_t) + 1e-4)
  with y_t of the reference.  The tasks are judged by such a mean, too: it does
  not depend on the few runs that a rare minibatch has just thrown back.
  """
  held_out = list(validation().values())
  keys = problems.keys('validation', num_seeds)
  every = HORIZONS[0]
  at = jnp.array(HORIZONS) // every

  def run(opt, optimizee):  # [seeds, 3]
    how = {'objective': True, 'every': every}
    curves = learning_curves(optimizee, opt, keys, HORIZONS[-1], 1, **how)
    return curves[:, at] + FLOOR

  of_theta = jax.jit(lambda theta, f: run(learned.transform(theta), f))
  of_reference = jax.jit(lambda f: jnp.mean(run(reference(), f), 0))

  @functools.cache  # it is the same for all theta
  def known():  # [families, 3]
    return np.array([of_reference(f) for f in held_out])

  def score(theta):
    found = np.array([of_theta(theta, f) for f in held_out])
    ratios = found / known()[:, None]  # [families, seeds, 3]
    means = [interquartile_mean(column) for column in np.moveaxis(ratios, 2, 0)]
    return np.log(np.minimum(means, np.finfo(np.float32).max))

  return score
