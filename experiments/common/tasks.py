"""Tasks on which optimizers are judged, by name.

Of them only the net of `sigmoid` is in the meta-training of `robust`, in random
units.
"""

import pathlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial

from experiments.common import hard, nets
from experiments.common.settings import UsageError
from l2o_jax import datasets, optimizees
from l2o_jax.base import Optimizee

TEXT = pathlib.Path(__file__).with_name('text.txt')
LENGTH = 32  # characters that a net reads at a time
SIDE, CLASSES = 14, 10
_IMAGES, _TEXTS = 64, 32  # in a minibatch


class Data(NamedTuple):
  """Images as floats [N, side, side] and labels [N], or symbols [N]."""

  x: np.ndarray
  y: np.ndarray | None = None


class Task(NamedTuple):
  """An optimizee, and what its result is worth elsewhere.

  Attributes:
    optimizee: trained on.
    held_out: params -> (loss, accuracy) on data that were not trained on; None
      where there are none.
  """

  optimizee: Optimizee
  held_out: Callable | None = None


def digits(split, dataset='mnist_5k', data_dir=None, side=SIDE) -> Data:
  """Images of any size and colour, averaged to grey squares, standardised."""
  x, y = datasets.load(dataset, split, data_dir)
  if y.max() >= CLASSES:
    raise UsageError(f'--dataset={dataset} has more than {CLASSES} classes')
  x = np.asarray(x, np.float32)
  x = x.mean(-1) if x.ndim == 4 else x
  grid = np.linspace(0, x.shape[1], side + 1).round().astype(int)
  for axis in (1, 2):
    sums = np.add.reduceat(x, grid[:-1], axis)
    shape = [-1 if i == axis else 1 for i in range(3)]
    x = sums / np.diff(grid).astype(np.float32).reshape(shape)
  return Data((x - x.mean()) / x.std(), y.astype(np.int32))


def text(split: str) -> Data:
  """The book of Genesis in the King James Version, as symbols."""
  letters = TEXT.read_text()
  symbols = {letter: i for i, letter in enumerate(sorted(set(letters)))}
  x = np.array([symbols[letter] for letter in letters], np.int32)
  train = len(x) * 9 // 10
  return Data(x[:train] if split == 'train' else x[train:])


def with_data(init, loss, objective, data) -> Optimizee:
  """One whose loss and objective are given `data` first, as leaves.

  Args:
    init: key -> params.
    loss: (data, params, task, key) -> [].
    objective: (data, params, task) -> [].
    data: arrays.
  """
  return Optimizee(
    lambda key: (init(key), ()), Partial(loss, data), Partial(objective, data)
  )


def _judged(optimizee, judge, data: Data) -> Task:
  """With `judge`, (data, params) -> (loss, accuracy), on data held out."""
  return Task(optimizee, Partial(judge, jax.tree.map(jnp.asarray, data)))


def _digits(net, batch_size=_IMAGES, scale=1.0):
  _, apply = net

  def judge(data, params):
    logits = apply(params, data.x.reshape(len(data.x), -1))
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, data.y)
    right = jnp.argmax(logits, -1) == data.y
    return scale * jnp.mean(losses), jnp.mean(right)

  def make(*where):
    train, test = digits('train', *where), digits('test', *where)
    f = optimizees.classifier(*train, net, batch_size, objective_size=2000)
    if scale != 1.0:
      times = lambda g, *args: scale * g(*args)
      loss, objective = Partial(times, f.loss), Partial(times, f.objective)
      f = f._replace(loss=loss, objective=objective)
    return _judged(f, judge, test)

  return make


def _text(net):
  init, apply = net

  def cross_entropy(params, windows):  # [N, LENGTH + 1]
    logits, y = apply(params, windows[:, :-1]), windows[:, 1:]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
    return jnp.mean(losses), jnp.mean(jnp.argmax(logits, -1) == y)

  def windows(x, starts):
    return x[starts[:, None] + jnp.arange(LENGTH + 1)]

  def judge(data, params):
    starts = jnp.linspace(0, data.x.shape[0] - LENGTH - 1, 256).astype(int)
    return cross_entropy(params, windows(data.x, starts))

  def loss(data, params, task, key):
    last = data.x.shape[0] - LENGTH
    starts = jax.random.randint(key, (_TEXTS,), 0, last)
    return cross_entropy(params, windows(data.x, starts))[0]

  def make(*where):
    train = jax.tree.map(jnp.asarray, text('train'))
    objective = lambda data, params, task: judge(data, params)[0]
    f = with_data(init, loss, objective, train)
    return _judged(f, judge, text('test'))

  return make


def _autoencoder(*where):
  init, apply = nets.dense((SIDE * SIDE, 32, 8, 32, SIDE * SIDE), 'tanh')
  error = lambda params, x: jnp.mean((apply(params, x) - x) ** 2)
  flat = lambda data: data.x.reshape(len(data.x), -1)
  judge = lambda data, params: (error(params, flat(data)), jnp.nan)

  def loss(x, params, task, key):
    rows = jax.random.randint(key, (_IMAGES,), 0, x.shape[0])
    return error(params, x[rows])

  objective = lambda x, params, task: error(params, x[:2000])
  train = jnp.asarray(flat(digits('train', *where)))
  f = with_data(init, loss, objective, train)
  return _judged(f, judge, digits('test', *where))


def _alone(make):
  return lambda *where: Task(make())


def _sines(*where):
  return Task(hard.sines(digits('train', *where).x[10]))


def _warm_start(*where):
  f, held_out = KINDS['wide'](*where)
  return Task(hard.trained_on(f, 1000), held_out)


_mlp = lambda *hidden, **how: nets.dense((SIDE * SIDE, *hidden, CLASSES), **how)
_symbols = len(set(TEXT.read_text()))
# (name of a data set, where it is) -> Task.
KINDS = {
  # Near those that `robust` is trained on.
  'sigmoid': _digits(_mlp(20, activation='sigmoid'), 128),
  'relu': _digits(_mlp(20), 128),
  # One axis off.
  'wide': _digits(_mlp(128)),
  'deep': _digits(_mlp(32, 32, 32, 32)),
  'batch_8': _digits(_mlp(32), 8),
  'batch_1024': _digits(_mlp(32), 1024),
  'small_start': _digits(_mlp(32, 32, gain=0.1)),
  'large_start': _digits(_mlp(32, 32, activation='tanh', gain=4.0)),
  'loss_x_1000': _digits(_mlp(32), scale=1000.0),
  'softmax': _digits(_mlp(), 16),
  'quadratic_50': _alone(lambda: optimizees.quadratic(50, 'normal', 1.0)),
  # The family off.
  'logistic': _alone(optimizees.logistic_regression),
  'robust_regression': _alone(optimizees.robust_regression),
  'residual': _digits(nets.residual(SIDE * SIDE, CLASSES)),
  'highway': _digits(nets.highway(SIDE * SIDE, CLASSES)),
  'conv_norm': _digits(nets.conv(SIDE, CLASSES)),
  'resnet': _digits(nets.resnet(SIDE, CLASSES)),
  'char_lstm': _text(nets.char_lstm(_symbols)),
  'transformer': _text(nets.transformer(_symbols, LENGTH)),
  'autoencoder': _autoencoder,
  # Picked because `robust` did badly.
  'unlike_units': _alone(hard.unlike_units),
  'embeddings': _alone(hard.embeddings),
  'factorisation': _alone(hard.factorisation),
  'sines': _sines,
  'warm_start': _warm_start,
  # Larger.
  'large_dense': _digits(_mlp(512, 512, 512)),
  'large_resnet': _digits(nets.resnet(SIDE, CLASSES, (32, 64, 128))),
  'large_char_lstm': _text(nets.char_lstm(_symbols, 256)),
  'large_transformer': _text(nets.transformer(_symbols, LENGTH, 128, 4, 4)),
}


def make(name: str, dataset='mnist_5k', data_dir=None) -> Task:
  """A task of `KINDS`; digits may be any image data set."""
  return KINDS[name](dataset, data_dir)
