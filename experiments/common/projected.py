"""Nets on randomly projected images, as in the 2017 paper of Li and Malik."""

import io
import itertools
import math
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.common import small_functions
from experiments.common.conjugate_gradient import conjugate_gradient
from l2o_jax import datasets
from l2o_jax.optimizees.classifier import classifier, mlp
from l2o_jax.unroll import unroll

_RATES = tuple(np.geomspace(1e-3, 3.2, 15))

# {name: (setting -> optimizer, settings)}; all with a fixed step, as there.
OPTIMIZERS = {
  'SGD': (optax.sgd, [(rate,) for rate in _RATES]),
  'momentum': (
    lambda rate, m: optax.sgd(rate, momentum=m),
    list(itertools.product(_RATES, (0.5, 0.8, 0.9, 0.95))),
  ),
  'CG': (
    conjugate_gradient,
    list(itertools.product(_RATES, ('fletcher_reeves', 'polak_ribiere'))),
  ),
  'L-BFGS': (
    lambda rate, memory: optax.lbfgs(rate, memory_size=memory, linesearch=None),
    list(itertools.product(_RATES, (5, 10))),
  ),
  # optax's default, a sum of squares that begins at 0.1, is much worse.
  'AdaGrad': (
    lambda rate: optax.adagrad(rate, initial_accumulator_value=0.0),
    [(rate,) for rate in _RATES],
  ),
  'ADAM': (optax.adam, [(rate,) for rate in _RATES]),
  'RMSprop': (
    lambda rate, decay: optax.rmsprop(rate, decay=decay),
    list(itertools.product(_RATES, (0.9, 0.99))),
  ),
  # Not in the paper: a rate that falls as 1 / sqrt(t) (Kingma & Ba 2015,
  # section 4), for --initial; BUILD_NOTES.md says how it was chosen.
  'ADAM_decaying': (
    lambda rate: optax.adam(lambda t: rate / jnp.sqrt(1 + t / 10), 0.5, 0.99),
    [(rate,) for rate in _RATES],
  ),
}
PAPER_BASELINES = tuple(name for name in OPTIMIZERS if name != 'ADAM_decaying')


def load(name: str, data_dir=None):
  """(images [N, ...], labels [N]) to train on.

  Args:
    name: of `datasets.NAMES`, or the path of an .npz with 'train_images' and
      'train_labels', or with images as contact sheets: 'train_sheet_000' ...
      (bytes of picture files), 'train_sheets' (how many), 'train_shape' and
      'train_label'.
    data_dir: see `datasets.load`.

  Raises:
    DatasetError: there is no such data.
  """
  if not name.endswith('.npz'):
    return datasets.load(name, 'train', data_dir)
  try:
    with np.load(name, allow_pickle=False) as z:
      if 'train_images' in z:
        return z['train_images'], z['train_labels'].astype(np.int32)
      return _sheets(z), z['train_label'].astype(np.int32)
  except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
    raise datasets.DatasetError(f'{name} cannot be read: {error}') from None


def _sheets(z):
  from PIL import Image

  n, h, w, c = (int(v) for v in z['train_shape'])
  images = []
  for i in range(int(z['train_sheets'])):
    sheet = np.asarray(
      Image.open(io.BytesIO(z[f'train_sheet_{i:03d}'].tobytes())).convert('RGB')
    )
    rows, columns = sheet.shape[0] // h, sheet.shape[1] // w
    sheet = sheet.reshape(rows, h, columns, w, 3).swapaxes(1, 2)
    images.append(sheet.reshape(-1, h, w, 3)[..., :c])
  return np.concatenate(images)[:n]


def project(images: np.ndarray, size: int, seed: int) -> np.ndarray:
  """Random Gaussian projections, each of mean 0 and variance 1, [N, size]."""
  matrix = (
    np.random.default_rng(seed)
    .normal(size=(math.prod(images.shape[1:]), size))
    .astype(np.float32)
  )
  x = images.reshape(len(images), -1).astype(np.float32) / 255 @ matrix
  return (x - x.mean(0)) / np.maximum(x.std(0), 1e-6)


def problem(
  data,
  inputs,
  hidden,
  batch_size,
  *,
  seed=0,
  initial_std=0.1,
  objective_size=None,
):
  """A net with one layer of ReLUs on projected images, as an optimizee."""
  images, labels = data
  net = mlp((inputs, hidden, int(labels.max()) + 1), 'relu', initial_std)
  return classifier(
    project(images, inputs, seed), labels, net, batch_size, objective_size
  )


def every(num_steps):
  """Steps between two evaluations of the objective, some 50 a run."""
  return next(
    k for k in range(max(num_steps // 50, 1), 0, -1) if num_steps % k == 0
  )


def curves(optimizee, opt, keys, num_steps, period=None):
  """Objective (not of minibatches) at steps 0, period, 2 period ... num_steps.

  Args:
    optimizee: `problem`.
    opt: optimizer.
    keys: of the runs, [B].
    num_steps: T.
    period: a divisor of it; `every(num_steps)` by default.

  Returns:
    [B, num_steps / period + 1].
  """
  period = period or every(num_steps)
  chunks = num_steps // period

  def run(key):
    key_init, key_loss = jax.random.split(key)
    params, task = optimizee.init(key_init)
    loss = lambda params, key: optimizee.loss(params, task, key)

    def chunk(carry, keys):
      carry, _ = unroll(loss, opt, *carry, keys)
      return carry, optimizee.objective(carry[0], task)

    keys = jax.random.split(key_loss, (chunks, period + 1))
    _, values = jax.lax.scan(chunk, (params, opt.init(params)), keys)
    return jnp.append(optimizee.objective(params, task), values)

  return jax.lax.map(run, keys)


def tune(optimizee, keys, name, num_steps):
  """The setting of a hand-designed optimizer with the lowest mean objective."""
  run = lambda data, opt: curves(data[0], opt, data[1], num_steps)
  return small_functions.tune(run, (optimizee, keys), *OPTIMIZERS[name])[0]
