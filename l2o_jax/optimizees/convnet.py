"""The convolutional net of the CIFAR-10 experiment, for `classifier`."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from l2o_jax.checks import positive, require
from l2o_jax.cpu import convolve, draw_all

EPSILON = 1e-3  # of batch normalisation, as in the released code


def convnet(
  image_shape: Sequence[int],
  outputs: int,
  channels: Sequence[int] = (16, 16, 16),
  hidden: int = 32,
  size: int = 5,
  initial_std: float = 0.1,
):
  """Convolutions, then fully connected layers (Andrychowicz et al., 3.3).

      x <- max_pool(relu(norm(x * w_l) + b_l))    for each l, 2 x 2 pools
      x <- relu(norm(x w) + b_h); logits = x v + c

  `norm` is batch normalisation without a scale, as in the released code.  It
  takes mean and variance over the batch that it sees, in training and in test:
  there are no running averages, so the objective is over all images at once.

  Args:
    image_shape: (height, width[, channels]).
    outputs: classes.
    channels: of each convolution.
    hidden: units of the fully connected layer.
    size: k of the k x k kernels.
    initial_std: all weights start as N(0, initial_std^2), offsets at 0; where
      they are normalised, the scale does not matter to what the net computes.

  Returns:
    (init: key -> params, apply: params, images [N, height width channels] ->
    logits [N, outputs]); params = {'conv': [{'w': [k, k, in, out], 'b':
    [out]}, ...], 'fc': [{'w': [in, out], 'b': [out]}, ...]}.  The two keys are
    the two groups of the paper: `labels={'conv': 'conv', 'fc': 'fc'}`.

  Raises:
    ValueError: an image has neither two nor three sizes or is too small to be
      halved so often, or a size is not positive.
  """
  form = f'(height, width) or (height, width, channels), got {image_shape!r}'
  require(len(image_shape) in (2, 3), f'convnet: image_shape must be {form}')
  positive('convnet', image_shape=tuple(image_shape))
  height, width, depth = (*image_shape, 1)[:3]
  sizes = {'outputs': outputs, 'hidden': hidden, 'size': size}
  positive('convnet', channels=tuple(channels) or 0, **sizes)
  halvings = len(channels)
  small = f'convnet: {height} x {width} images are too small to be halved'
  require(min(height, width) >= 2**halvings, f'{small} {halvings} times')
  seen = (height >> halvings) * (width >> halvings) * channels[-1]
  ins = depth, *channels
  kernels = [(size, size, a, b) for a, b in zip(ins, channels)]
  shapes = [*kernels, (seen, hidden), (hidden, outputs)]

  def init(key):
    keys = jax.random.split(key, len(shapes))
    drawn = draw_all(jax.random.normal, keys, shapes)
    layer = lambda w: {'w': initial_std * w, 'b': jnp.zeros(w.shape[-1])}
    layers = list(map(layer, drawn))
    return {'conv': layers[:halvings], 'fc': layers[halvings:]}

  def apply(params, images):
    x = images.reshape(-1, height, width, depth)
    for layer in params['conv']:
      x = _normalised(convolve(x, layer['w'])) + layer['b']
      x = _halved(jax.nn.relu(x))
    first, last = params['fc']
    x = x.reshape(len(x), -1) @ first['w']  # [N, hidden]
    x = jax.nn.relu(_normalised(x) + first['b'])
    return x @ last['w'] + last['b']

  return init, apply


def _normalised(x):
  """Mean 0 and variance 1 over all but the last axis."""
  axes = tuple(range(x.ndim - 1))
  mean, variance = x.mean(axes), x.var(axes)
  return (x - mean) * jax.lax.rsqrt(variance + EPSILON)


def _halved(x):
  """The largest of each 2 x 2 pixels, [N, H, W, C] -> [N, H/2, W/2, C]."""
  N, H, W, C = x.shape
  x = x[:, : H // 2 * 2, : W // 2 * 2]
  return x.reshape(N, H // 2, 2, W // 2, 2, C).max((2, 4))
