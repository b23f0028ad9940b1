"""Nets on randomly projected images, as in the 2017 paper of Li and Malik."""

import math
import pathlib
from collections.abc import Sequence

import numpy as np

from experiments.common.images import read
from l2o_jax.base import Optimizee
from l2o_jax.optimizees.classifier import classifier, mlp


def load_all(names: Sequence[str], data_dir: str | None = None) -> dict:
  """{short name: data}; a path by its stem, unless two have the same."""
  stems = [pathlib.Path(name).stem for name in names]
  titles = [
    stem if stems.count(stem) == 1 else name for stem, name in zip(stems, names)
  ]
  data = [read(name, data_dir=data_dir) for name in names]
  return dict(zip(titles, data))


def few(data, count: int = 0, classes: int = 0, seed: int = 0):
  """So many images at random, of the first so many classes; 0: all.

  A net can learn a few hundred images by heart: the loss goes to 0.

  Args:
    data: (images, labels).
    count: of images.
    classes: of labels.
    seed: of the draw.
  """
  if not (count or classes):
    return data
  images, labels = data
  rows = np.random.default_rng(seed).permutation(len(labels))
  if classes:
    rows = rows[labels[rows] < classes]
  rows = rows[: count or None]
  return images[rows], labels[rows]


def project(images: np.ndarray, size: int, seed: int) -> np.ndarray:
  """Random Gaussian projections, each of mean 0 and variance 1, [N, size]."""
  shape = math.prod(images.shape[1:]), size
  matrix = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
  x = images.reshape(len(images), -1).astype(np.float32) / 255 @ matrix
  return (x - x.mean(0)) / np.maximum(x.std(0), 1e-6)


def make_optimizee(
  data, inputs, hidden, batch_size, *, seed=0, std=0.1, **parts
) -> Optimizee:
  """A net with one layer of ReLUs on projected images.

  Args:
    data: (images, labels).
    inputs: projections of an image.
    hidden: units.
    batch_size: images per minibatch.
    seed: of the projection.
    std: standard deviation of initial weights and biases.
    **parts: how many images make the exact objective; every f has parts or
      minibatches of its own; see `classifier`.
  """
  images, labels = data
  net = mlp((inputs, hidden, int(labels.max()) + 1), 'relu', std)
  x = project(images, inputs, seed)
  return classifier(x, labels, net, batch_size, **parts)


def every(num_steps: int) -> int:
  """Steps between two evaluations of the objective, some 50 a run."""
  most = max(num_steps // 50, 1)
  return next(k for k in range(most, 0, -1) if num_steps % k == 0)
