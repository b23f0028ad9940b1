"""Neural networks that classify images, trained on minibatches."""

import functools
import math
from collections.abc import Callable, Sequence

import chex
import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial

from l2o_jax.base import Optimizee
from l2o_jax.checks import finite, given, one_of, positive, require
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
  one_of('mlp', ACTIVATIONS, activation=activation)
  require(len(sizes) > 1, f'mlp: sizes must be at least two: {sizes}')
  positive('mlp', sizes=sizes)
  finite('mlp', 0, initial_std=initial_std)

  def init(key):
    shapes = []
    for fan_in, fan_out in zip(sizes, sizes[1:]):
      shapes += [(fan_in, fan_out), (fan_out,)]
    keys = jax.random.split(key, len(shapes) // 2)
    keys = jax.vmap(jax.random.split)(keys)  # [layers, 2]
    keys = keys.reshape(-1, *keys.shape[2:])
    drawn = draw_all(jax.random.normal, keys, shapes)
    drawn = [initial_std * x for x in drawn]
    return [{'w': w, 'b': b} for w, b in zip(drawn[::2], drawn[1::2])]

  def apply(params, x):
    for layer in params[:-1]:
      x = ACTIVATIONS[activation](x @ layer['w'] + layer['b'])
    return x @ params[-1]['w'] + params[-1]['b']

  return init, apply


def _check(images, labels, net):
  kind = f'{images.dtype} {tuple(images.shape)}'
  right = images.dtype in (jnp.uint8, jnp.float32) and images.ndim > 1
  require(right, f'classifier: images must be uint8 or float32, got {kind}')
  wanted, found = images.shape[:1], tuple(labels.shape)
  same = f'classifier: labels must have shape {wanted}, got {found}'
  require(found == wanted and wanted[0], same)
  whole = jnp.issubdtype(labels.dtype, jnp.integer)
  require(whole, f'classifier: labels must be integers, got {labels.dtype}')
  params = jax.eval_shape(net[0], jax.random.key(0))
  size = math.prod(images.shape[1:])
  one = jax.ShapeDtypeStruct((1, size), jnp.float32)
  try:
    classes = jax.eval_shape(net[1], params, one).shape[-1]
  except (TypeError, ValueError) as error:
    reason = str(error).splitlines()[0]
    takes = f'classifier: the net does not take {size} inputs'
    raise ValueError(f'{takes}: {reason}') from None
  low, high = int(labels.min(initial=0)), int(labels.max(initial=0))
  within = f'classifier: labels must lie in 0 ... {classes - 1}'
  require(0 <= low <= high < classes, f'{within}, got {low} ... {high}')


def _log_uniform(key, low, high):
  """An integer in low ... high whose logarithm is uniform; None: high."""
  if low is None:
    return jnp.asarray(high, jnp.int32)
  low = math.log(min(low, high))
  log = jax.random.uniform(key, (), minval=low, maxval=math.log(high))
  return jnp.minimum(jnp.round(jnp.exp(log)), high).astype(jnp.int32)


def _cross_entropy(apply, params, images, labels):
  """Of each image."""
  x = images.reshape(images.shape[0], -1)
  if images.dtype == jnp.uint8:
    x = x.astype(jnp.float32) / 255
  logits = apply(params, x)
  return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def classifier(
  images: chex.Array,
  labels: chex.Array,
  net: tuple[Callable, Callable],
  batch_size: int = 128,
  objective_size: int | None = None,
  smallest_part: int | None = None,
  smallest_batch: int | None = None,
) -> Optimizee:
  """f(x) = mean cross-entropy of a net on a fresh random minibatch.

  Value and gradient of a step are of one minibatch, which the step's key draws
  uniformly with replacement (Andrychowicz et al., section 3.2, and its code).
  The functions differ only in x_0 and the minibatches.

  Args:
    images: uint8 [N, ...]; they become floats in [0, 1], flattened, only inside
      the loss.  Or float32, as they are: inputs that are not pixels.
    labels: integers [N].
    net: (init, apply), for example of `mlp`.
    batch_size: images per minibatch.
    objective_size: `objective` is the mean over the first `objective_size`
      images, or over a part that has fewer; None: over all.
    smallest_part: k: every f has only a part of the images, n of them from a
      random place on, with log n uniform in log k ... log N.  A net can learn
      a small part by heart, so that f goes to 0.  None: all f have all images.
    smallest_batch: k: every f has minibatches of a size of its own, with its
      logarithm uniform in log k ... log batch_size.  None: all have batch_size.
      A smaller one is repeated up to batch_size, so that some of its images
      count once more than others.

  Returns:
    Optimizee with task (), or (where, n, size of minibatches) if f's have parts
    or minibatches of their own.

  Raises:
    ValueError: images are neither uint8 nor float32, the net does not take
      them, labels are not as many as images, at least one, or not integers
      among the net's outputs, or a size is not positive.
  """
  labels = jnp.asarray(labels)
  _check(images, labels, net)
  own = given(smallest_part=smallest_part, smallest_batch=smallest_batch)
  others = given(objective_size=objective_size, **own)
  positive('classifier', batch_size=batch_size, **others)
  init_net, apply = net
  cross_entropy = functools.partial(_cross_entropy, apply)

  def init(key):
    if not own:
      return init_net(key), ()
    key_net, key_start, key_n, key_size = jax.random.split(key, 4)
    N = images.shape[0]
    start = jax.random.randint(key_start, (), 0, N)
    n = _log_uniform(key_n, smallest_part, N)
    size = _log_uniform(key_size, smallest_batch, batch_size)
    return init_net(key_net), (start, n, size)

  def loss(images, labels, params, task, key):
    start, n, size = task or (0, images.shape[0], batch_size)
    rows = jax.random.randint(key, (batch_size,), 0, n)
    if task:  # the first `size` again and again
      rows = rows[jnp.arange(batch_size) % size]
      rows = (start + rows) % images.shape[0]
    return jnp.mean(cross_entropy(params, images[rows], labels[rows]))

  def objective(images, labels, params, task):
    rows = slice(objective_size)
    if not task:
      return jnp.mean(cross_entropy(params, images[rows], labels[rows]))
    start, n, _ = task
    N = images.shape[0]
    rows = jnp.arange(N)[rows]
    ours = rows < n
    rows = (start + rows % n) % N  # the net sees no image of others
    losses = cross_entropy(params, images[rows], labels[rows])
    return jnp.mean(losses, where=ours)

  data = jnp.asarray(images), labels
  return Optimizee(init, Partial(loss, *data), Partial(objective, *data))
