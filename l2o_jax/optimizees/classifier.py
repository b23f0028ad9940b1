"""Neural networks that classify images, trained on minibatches."""

from collections.abc import Callable, Sequence

import chex
import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial

from l2o_jax.base import Optimizee
from l2o_jax.cpu import draw_all

ACTIVATIONS = {
  'sigmoid': jax.nn.sigmoid,
  'tanh': jnp.tanh,
  'relu': jax.nn.relu,
  'elu': jax.nn.elu,
}


def mlp(
  sizes: Sequence[int], activation: str = 'sigmoid', initial_std: float = 0.01
):
  """A fully connected net: x_{l+1} = activation(x_l w_l + b_l).

  Args:
    sizes: (inputs, hidden ..., outputs).
    activation: 'sigmoid', 'tanh', 'relu' or 'elu'; none after the last layer.
    initial_std: all weights and biases start as N(0, initial_std^2), as in the
      released code of Andrychowicz et al. (the paper only says Gaussian).

  Returns:
    (init: key -> params, apply: params, images [N, inputs] -> logits
    [N, outputs]); params = [{'w': [in, out], 'b': [out]}, ...].

  Raises:
    ValueError: unknown activation, or fewer than two positive sizes.
  """
  sizes = tuple(sizes)
  if activation not in ACTIVATIONS:
    raise ValueError(
      f'mlp: activation must be one of {sorted(ACTIVATIONS)}, '
      f'got {activation!r}'
    )
  if len(sizes) < 2 or min(sizes) < 1:
    raise ValueError(
      f'mlp: sizes must be at least two positive numbers, got {sizes}'
    )

  def init(key):
    layers = list(zip(sizes, sizes[1:]))
    keys = jax.vmap(jax.random.split)(jax.random.split(key, len(layers)))
    drawn = draw_all(
      jax.random.normal,
      keys.reshape(-1),
      [
        shape
        for fan_in, fan_out in layers
        for shape in ((fan_in, fan_out), (fan_out,))
      ],
    )
    return [
      {'w': initial_std * w, 'b': initial_std * b}
      for w, b in zip(drawn[::2], drawn[1::2])
    ]

  def apply(params, x):
    for layer in params[:-1]:
      x = ACTIVATIONS[activation](x @ layer['w'] + layer['b'])
    return x @ params[-1]['w'] + params[-1]['b']

  return init, apply


def classifier(
  images: chex.Array,
  labels: chex.Array,
  net: tuple[Callable, Callable],
  batch_size: int = 128,
  objective_size: int | None = None,
) -> Optimizee:
  """f(x) = mean cross-entropy of a net on a fresh random minibatch.

  Value and gradient of a step are of one minibatch, drawn uniformly with
  replacement from the images by the step's key (Andrychowicz et al.,
  section 3.2, and its code).  f's differ only in x_0 and the minibatches.

  Args:
    images: uint8 [N, ...]; they become floats in [0, 1], flattened, only inside
      the loss.  Or float32, as they are: inputs that are not pixels.
    labels: integers [N].
    net: (init, apply), for example of `mlp`.
    batch_size: images per minibatch.
    objective_size: `objective` is the mean over so many images, the first; all
      by default.

  Returns:
    Optimizee with task ().

  Raises:
    ValueError: images are neither uint8 nor float32, labels are not as many as
      images, or a size is not positive.
  """
  if images.dtype not in (jnp.uint8, jnp.float32) or images.ndim < 2:
    raise ValueError(
      f'classifier: images must be uint8 or float32 [N, ...], '
      f'got {images.dtype} {tuple(images.shape)}'
    )
  if labels.shape != images.shape[:1]:
    raise ValueError(
      f'classifier: labels must have shape '
      f'({images.shape[0]},), got {tuple(labels.shape)}'
    )
  if batch_size < 1:
    raise ValueError(
      f'classifier: batch_size must be positive, got {batch_size}'
    )
  if objective_size is not None and objective_size < 1:
    raise ValueError(
      f'classifier: objective_size must be positive, got {objective_size}'
    )
  init_net, apply = net

  def init(key):
    return init_net(key), ()

  def cross_entropy(params, images, labels):
    x = images.reshape(images.shape[0], -1)
    if images.dtype == jnp.uint8:
      x = x.astype(jnp.float32) / 255
    return jnp.mean(
      optax.softmax_cross_entropy_with_integer_labels(apply(params, x), labels)
    )

  def loss(images, labels, params, task, key):
    del task
    rows = jax.random.randint(key, (batch_size,), 0, images.shape[0])
    return cross_entropy(params, images[rows], labels[rows])

  def objective(images, labels, params, task):
    del task
    return cross_entropy(
      params, images[:objective_size], labels[:objective_size]
    )

  data = jnp.asarray(images), jnp.asarray(labels)
  return Optimizee(
    Partial(init), Partial(loss, *data), Partial(objective, *data)
  )
