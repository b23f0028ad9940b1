"""Images: read by a name or from a file, split, reduced."""

import pathlib
from collections.abc import Iterable

import numpy as np

from experiments.common.settings import UsageError
from l2o_jax import datasets


def read(name: str, split: str = 'train', data_dir: str | None = None):
  """(images [N, ...], labels [N]).

  Args:
    name: of `datasets.NAMES`, or the path of an .npz; see `datasets.read_npz`.
    split: 'train' or 'test'.
    data_dir: see `datasets.load`.

  Raises:
    DatasetError: there is no such data.
  """
  if name.endswith('.npz'):
    return datasets.read_npz(name, split)
  return datasets.load(name, split, data_dir)


def pictures(paths: Iterable[pathlib.Path]) -> list[pathlib.Path]:
  """Those that are pictures by their names, sorted."""
  endings = ('.jpg', '.jpeg', '.png', '.webp')
  return sorted(path for path in paths if path.suffix.lower() in endings)


def split_off(data, part: int) -> tuple:
  """Images and labels without one part of so many, and that part, the last."""
  images, labels = data
  if len(images) < 2:
    raise UsageError(f'too few images: {len(images)}, at least 2 are needed')
  last = -max(len(images) // part, 1)
  return (images[:last], labels[:last]), (images[last:], labels[last:])


def averaged(images: np.ndarray, side: int) -> np.ndarray:
  """Means of squares of pixels, uint8 [N, H, H, C] -> [N, side, side, C].

  Raises:
    UsageError: side does not divide H and W.
  """
  N, H, W, C = images.shape
  if not side or side == H == W:
    return images
  if H % side or W % side:
    raise UsageError(f'--side={side} does not divide {H} x {W} pixels')
  squares = images.reshape(N, side, H // side, side, W // side, C)
  return np.round(squares.mean((2, 4))).astype(np.uint8)
