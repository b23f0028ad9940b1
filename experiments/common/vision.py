"""Trained nets whose activations neural art compares, and pictures."""

import itertools
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from experiments.common import images
from experiments.common.settings import UsageError
from l2o_jax.cpu import convolve
from l2o_jax.datasets import one_line
from l2o_jax.files import open_regular

HERE = pathlib.Path(__file__).parents[1] / 'pictures'
SQUEEZENET = HERE / 'squeezenet.npz'
STYLES = ('starry_night', 'great_wave')
SIDE = 128  # of the largest contents
NUM_TEST = 23  # of the packaged photographs, the last
_HOW = 'an .npz of a SqueezeNet 1.1 or a VGG-19; see experiments/pictures'

# What torchvision calls the convolutions of VGG-19 in its `features`, and after
# which of them it pools.
_TORCHVISION = {
  'conv1_1': 0, 'conv1_2': 2, 'conv2_1': 5, 'conv2_2': 7,
  'conv3_1': 10, 'conv3_2': 12, 'conv3_3': 14, 'conv3_4': 16,
  'conv4_1': 19, 'conv4_2': 21, 'conv4_3': 23, 'conv4_4': 25,
  'conv5_1': 28,
}  # fmt: skip
_POOLED = ('conv1_2', 'conv2_2', 'conv3_4', 'conv4_4')


def read_net(path=None) -> Callable:
  """(pixels [1, H, W, 3] -> (content activations, style's)), a Partial.

  Args:
    path: of an .npz with the weights of SqueezeNet 1.1 (`conv1/w`,
      `fire2/squeeze1x1/w` ...), of the VGG-19 of Gatys et al. in normalised
      form (`conv1_1/w` ..., `mean_bgr`) or of torchvision's VGG-19
      (`features.0.weight` ...).  VGG-19 may end early, after conv3_1 at least.
      None: the first five layers of SqueezeNet, which come with this file.

  Raises:
    UsageError: there is no such file, or it holds none of these.
  """
  path = pathlib.Path(path or SQUEEZENET)
  try:
    with (
      one_line(f'--net_weights={path} cannot be read'),
      open_regular(path) as f,
    ):
      with np.load(f, allow_pickle=False) as npz:
        weights = {name: npz[name] for name in npz.files}
  except ValueError as error:
    raise UsageError(f'{error}; it must be {_HOW}') from None
  for make in _squeezenet, _normalised_vgg, _torchvision_vgg:
    if net := make(weights):
      _try(path, net)
      return net
  found = ', '.join(sorted(weights)[:3]) or 'nothing'
  raise UsageError(f'--net_weights={path} holds {found} ...; it must be {_HOW}')


def _try(path, net):
  """Raises UsageError where the weights do not fit each other."""
  pixels = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
  try:
    jax.eval_shape(net, pixels)
  except (TypeError, ValueError, KeyError) as error:
    reason = str(error).splitlines()[0]
    raise UsageError(
      f'--net_weights={path} has a wrong layout: {reason:.120}'
    ) from None


def _pool(x, size):
  """The largest of size x size pixels, every second; ends are cut off."""
  window = 1, size, size, 1
  return jax.lax.reduce_window(
    x, -jnp.inf, jax.lax.max, window, (1, 2, 2, 1), 'VALID'
  )


def _layer(weights, name, x, stride=1):
  w, b = weights[name + '/w'], weights[name + '/b']
  return jax.nn.relu(convolve(x, w, stride) + b)


def _squeezenet(weights):
  """Content from fire3; style from conv1, fire2, fire3, fire4 and fire5."""
  fires = [f'fire{i}' for i in range(2, 6)]
  parts = [f'{f}/{p}' for f in fires for p in ('squeeze1x1', 'expand1x1')]
  parts += [f'{f}/expand3x3' for f in fires]
  names = [f'{n}/{k}' for n in ('conv1', *parts) for k in 'wb']
  if not set(names) <= set(weights):
    return None

  def apply(weights, pixels):
    mean = jnp.array([103.939, 116.779, 123.68])  # blue, green, red
    x = 255 * pixels[..., ::-1] - mean
    x = _layer(weights, 'conv1', x, 2)
    style = [x]
    for fire in fires:
      if fire in ('fire2', 'fire4'):
        x = _pool(x, 3)
      x = _layer(weights, f'{fire}/squeeze1x1', x)
      sides = [
        _layer(weights, f'{fire}/{p}', x) for p in ('expand1x1', 'expand3x3')
      ]
      x = jnp.concatenate(sides, -1)
      style.append(x)
    return style[2], style

  return Partial(apply, {n: jnp.asarray(weights[n], 'float32') for n in names})


def _vgg(weights, names):
  """Content from conv4_2 or else the last; style from every conv*_1.

  weights: '<layer>/w', '<layer>/b' and 'factor', 'shift' [3], which make the
  net's input of red, green and blue in [0, 1].
  """
  middle = 'conv4_2' if 'conv4_2' in names else names[-1]

  def apply(weights, pixels):
    x = pixels * weights['factor'] + weights['shift']
    style, content = [], None
    for name in names:
      x = _layer(weights, name, x)
      if name.endswith('_1'):
        style.append(x)
      if name == middle:
        content = x
      if name in _POOLED:
        x = _pool(x, 2)
    return content, style

  return Partial(
    apply, {k: jnp.asarray(v, 'float32') for k, v in weights.items()}
  )


def _first_layers(found):
  """Layers of VGG-19 up to the first not found; conv3_1 at least."""
  names = list(itertools.takewhile(found, _TORCHVISION))
  return names if 'conv3_1' in names else []


def _normalised_vgg(weights):
  has = lambda name: f'{name}/w' in weights and f'{name}/b' in weights
  names = _first_layers(has)
  if not names or 'mean_bgr' not in weights:
    return None
  own = {f'{n}/{k}': weights[f'{n}/{k}'] for n in names for k in 'wb'}
  own['conv1_1/w'] = own['conv1_1/w'][:, :, ::-1]  # from blue, green, red
  shift = -np.float32(weights['mean_bgr'][::-1])
  return _vgg({**own, 'factor': np.float32(255), 'shift': shift}, names)


def _torchvision_vgg(weights):
  of = lambda name, part: f'features.{_TORCHVISION[name]}.{part}'
  names = _first_layers(lambda name: of(name, 'weight') in weights)
  if not names:
    return None
  own = {}
  for name in names:
    w, b = weights[of(name, 'weight')], weights.get(of(name, 'bias'))
    if w.ndim != 4 or b is None:
      return None
    own |= {f'{name}/w': w.transpose(2, 3, 1, 0), f'{name}/b': b}
  mean = np.array([0.485, 0.456, 0.406], np.float32)
  std = np.array([0.229, 0.224, 0.225], np.float32)
  return _vgg({**own, 'factor': 1 / std, 'shift': -mean / std}, names)


def _open(path, what):
  import PIL.Image
  import PIL.ImageOps

  try:
    with one_line(f'{what}={path} cannot be read'):
      with open_regular(path) as f:
        picture = PIL.ImageOps.exif_transpose(PIL.Image.open(f))
        if picture.mode.startswith('I'):  # grey, of 16 bits as a rule
          grey = np.asarray(picture, np.float64)
          grey = np.clip(grey / (257 if grey.max() > 255 else 1), 0, 255)
          picture = PIL.Image.fromarray(grey.round().astype(np.uint8))
        if picture.has_transparency_data:
          picture = picture.convert('RGBA')
          white = PIL.Image.new('RGBA', picture.size, 'white')
          picture = PIL.Image.alpha_composite(white, picture)
        return picture.convert('RGB')
  except ValueError as error:
    raise UsageError(str(error)) from None


def _square(picture, side, what):
  """The middle of a picture, uint8 [side, side, 3]."""
  import PIL.Image

  short = min(picture.size)
  if short < side:
    size = f'{picture.size[0]} x {picture.size[1]}'
    raise UsageError(f'{what} is {size} pixels, smaller than {side} x {side}')
  left, top = ((size - short) // 2 for size in picture.size)
  box = left, top, left + short, top + short
  return np.asarray(picture.resize((side, side), PIL.Image.LANCZOS, box))


def read_style(name: str, side: int, what: str = '--style') -> np.ndarray:
  """A painting, uint8 [side, side, 3]: one of `STYLES`, or a file."""
  path = HERE / f'{name}.jpg' if name in STYLES else pathlib.Path(name)
  return _square(_open(path, what), side, f'{what}={path}')


def read_contents(directory=None) -> tuple[np.ndarray, np.ndarray]:
  """Photographs uint8 [N, SIDE, SIDE, 3] to train on, and to test on.

  Args:
    directory: of pictures; a fifth of them, the last by name, are for the
      test.  None: 60 and 23 in the public domain that come with this file.

  Raises:
    UsageError: a picture cannot be read or is too small, or there are fewer
      than 5.
  """
  if directory is None:
    sheet = np.asarray(_open(HERE / 'photographs.jpg', '--contents'))
    rows, columns = (size // SIDE for size in sheet.shape[:2])
    tiles = sheet.reshape(rows, SIDE, columns, SIDE, 3).swapaxes(1, 2)
    photos = tiles.reshape(-1, SIDE, SIDE, 3)[: 60 + NUM_TEST]
    return photos[:-NUM_TEST], photos[-NUM_TEST:]
  what = f'--contents={directory}'
  try:
    paths = images.pictures(pathlib.Path(directory).iterdir())
  except OSError as error:
    raise UsageError(f'{what} cannot be read: {error.strerror}') from None
  if len(paths) < 5:
    raise UsageError(f'{what} has {len(paths)} pictures; 5 or more are needed')
  photos = [_square(_open(p, '--contents'), SIDE, str(p)) for p in paths]
  last = -(len(paths) // 5)
  return np.stack(photos[:last]), np.stack(photos[last:])
