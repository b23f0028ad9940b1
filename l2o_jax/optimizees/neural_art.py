"""Neural art: a picture with the content of one and the style of another."""

import math
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from l2o_jax.base import Optimizee
from l2o_jax.checks import require

_UNIT = 64 * 64  # with this many pixels the factor H W / 64² of f is 1
# Pixels x are in units in which most lie between -1 and 1.
_MIDDLE, _RANGE = 0.5, 0.25


def to_pixels(x: chex.Array) -> chex.Array:
  """Red, green and blue of parameters [..., 3]; a screen shows [0, 1]."""
  return _MIDDLE + _RANGE * x


def neural_art(
  contents: chex.Array,
  style: chex.Array,
  net: Callable,
  *,
  content_weight: float = 1.0,
  style_weight: float = 1.0,
  smoothness: float = 0.1,
  initial_std: float = 0.3,
) -> Optimizee:
  r"""f(x) = H W / 64² (α content + β style + γ smoothness), (2016, 3.4).

      content    = mean (F(x) - F(c))² / mean F(c)²
      style      = mean over layers of |G_l(x) - G_l(s)|² / |G_l(s)|²
      smoothness = mean (x - below)² + mean (x - right)², its neighbours

  F are activations of one layer of a trained net, G_l = A_l^T A_l / (H W) the
  Gram matrix of layer l's activations A_l [H W, C] (Gatys et al. 2015). Content
  and style are relative, so that weights mean the same for every net and
  picture; the paper does not give its weights. f grows with the number of
  pixels, as sums over them do, so that the gradient of a pixel does not depend
  on the size.

  x_0 is noise, and the task of a run is a content picture, drawn at random:
  (its number, F(c)).

  Args:
    contents: uint8 [N, H, W, 3].
    style: uint8 [H', W', 3].
    net: pixels [1, H, W, 3], of a picture in [0, 1] -> (F, [A_l [1, H_l, W_l,
      C_l], ...]); a `Partial`, if its weights are to be arguments of a jitted
      function.
    content_weight: α >= 0.
    style_weight: β >= 0.
    smoothness: γ >= 0.
    initial_std: x_0 ~ N(0, initial_std²).  x = 0 is a pixel of 0.5, and a unit
      of x is 0.25.

  Returns:
    Optimizee of parameters [H, W, 3]; `to_pixels` makes a picture of them.

  Raises:
    ValueError: pictures are not uint8 of three colours and at least 2 x 2
      pixels, there is no content, or a weight is negative or not finite.
  """
  _check('contents', contents, 4, '[N, H, W, 3]')
  _check('style', style, 3, '[H, W, 3]')
  weights = content_weight, style_weight, smoothness
  named = f'neural_art: weights must be finite and >= 0, got {weights}'
  require(all(0 <= weight < math.inf for weight in weights), named)
  size = contents.shape[1:]
  net = net if isinstance(net, Partial) else Partial(net)

  def activations(net, pixels):
    content, layers = net(pixels[None])
    return content, [_gram(a) for a in layers]

  def init(net, contents, key):
    key_which, key_x = jax.random.split(key)
    which = jax.random.randint(key_which, (), 0, contents.shape[0])
    content, _ = net(contents[which][None].astype(jnp.float32) / 255)
    x = initial_std * jax.random.normal(key_x, (size[0] * size[1] * 3,))
    return x.reshape(size), (which, content)

  def loss(net, grams, x, task, key):
    del key
    content, found = activations(net, to_pixels(x))
    styles = [_relative(g, to) for g, to in zip(found, grams)]
    rough = [jnp.mean(jnp.diff(x, axis=axis) ** 2) for axis in (0, 1)]
    parts = _relative(content, task[1]), sum(styles) / len(styles), sum(rough)
    total = sum(weight * part for weight, part in zip(weights, parts))
    return size[0] * size[1] / _UNIT * total

  _, grams = jax.jit(activations)(net, jnp.asarray(style) / 255)
  init = Partial(init, net, jnp.asarray(contents))
  return Optimizee(init, Partial(loss, net, grams))


def _check(name, x, ndim, shape):
  right = x.dtype == jnp.uint8 and x.ndim == ndim and x.shape[-1] == 3
  right = right and x.shape[0] > 0 and min(x.shape[-3:-1]) > 1
  found = f'{x.dtype} {tuple(x.shape)}'
  require(right, f'neural_art: {name} must be uint8 {shape}, got {found}')


def _gram(a):
  """[1, H, W, C] -> [C, C]."""
  a = a.reshape(-1, a.shape[-1])
  return a.T @ a / len(a)


def _relative(found, wanted):
  """Mean squared error over the mean square of what is wanted."""
  return jnp.mean((found - wanted) ** 2) / jnp.mean(wanted**2)
