"""Small random regression and classification problems (Li & Malik 2016).

Every function has its own few data points, drawn once: they are the task, and
the loss is over all of them.  x_0 ~ N(0, I), as in the authors' released code
for logistic regression.
"""

import functools

import jax
import jax.numpy as jnp
import optax

from l2o_jax.base import Optimizee
from l2o_jax.checks import above_zero, positive, require
from l2o_jax.cpu import draw_all

_normals = functools.partial(draw_all, jax.random.normal)


def _gaussians(key, count, points, dimension, random_covariance):
  """[count · points, d]: mean ~ N(0, I), covariance S S^T, S ~ N(0, 1)."""
  shapes = [(count, size, dimension) for size in (1, dimension, points)]
  mean, root, x = _normals(jax.random.split(key, 3), shapes)
  if random_covariance:
    x = jnp.einsum('cij,cpj->cpi', root, x)
  return (mean + x).reshape(count * points, dimension)


def logistic_regression(
  dimension: int = 3, points: int = 50, decay: float = 5e-4
) -> Optimizee:
  """f(w, b) = mean log(1 + exp(-y (w·x + b))) + λ/2 ‖w‖² (section 5.1).

  The points of each class y = ±1 come from one Gaussian with random mean and
  covariance S S^T.  Convex; the bias is not regularized.

  Args:
    dimension: d; 3 in the paper.
    points: of each class; 50.
    decay: λ.

  Returns:
    Optimizee with params {'w': [d], 'b': [1]} and task {'x': [2 points, d],
    'y': [2 points]}.

  Raises:
    ValueError: a size is not positive.
  """
  positive('logistic_regression', dimension=dimension, points=points)

  def init(key):
    keys = jax.random.split(key, 3)
    x = _gaussians(keys[0], 2, points, dimension, True)
    y = jnp.repeat(jnp.array([1.0, -1.0]), points)
    w, b = _normals(keys[1:], [(dimension,), (1,)])
    return {'w': w, 'b': b}, {'x': x, 'y': y}

  def loss(params, task, key):
    del key
    logits = task['x'] @ params['w'] + params['b'][0]
    error = jnp.mean(jax.nn.softplus(-task['y'] * logits))
    return error + decay / 2 * jnp.sum(params['w'] ** 2)

  return Optimizee(init, loss)


def robust_regression(
  dimension: int = 3, points: int = 25, clusters: int = 4, scale: float = 1.0
) -> Optimizee:
  """f(w, b) = mean r² / (c² + r²), r = w·x + b - y (section 5.2).

  Geman & McClure's loss: not convex, and flat far from the data.  The points
  are of four Gaussians with random means and covariance I; y = v·x + u + noise,
  with v, u and the noise N(0, 1), v and u the same for all points.

  Args:
    dimension: d; 3 in the paper.
    points: of each Gaussian; 25.
    clusters: Gaussians; 4.
    scale: c; 1.

  Returns:
    Optimizee with params {'w': [d], 'b': [1]} and task {'x', 'y'}.

  Raises:
    ValueError: a size or c is not positive.
  """
  sizes = {'dimension': dimension, 'points': points, 'clusters': clusters}
  positive('robust_regression', **sizes)
  above_zero('robust_regression', scale=scale)

  def init(key):
    keys = jax.random.split(key, 5)
    x = _gaussians(keys[0], clusters, points, dimension, False)
    shapes = [(dimension + 1,), x.shape[:1], (dimension,), (1,)]
    line, noise, w, b = _normals(keys[1:], shapes)
    y = x @ line[:-1] + line[-1] + noise
    return {'w': w, 'b': b}, {'x': x, 'y': y}

  def loss(params, task, key):
    del key
    square = (task['x'] @ params['w'] + params['b'][0] - task['y']) ** 2
    return jnp.mean(square / (scale**2 + square))

  return Optimizee(init, loss)


def small_net(
  dimension: int = 2,
  hidden: int = 2,
  classes: int = 2,
  points: int = 25,
  clusters: int = 4,
  decay: float = 5e-4,
) -> Optimizee:
  """f = mean cross-entropy of U relu(W x + b) + c + λ/2 (‖W‖² + ‖U‖²).

  (Section 5.3.)  The points are of four Gaussians with random means and
  covariances; each Gaussian has a random label 0 or 1, not all the same.

  Args:
    dimension: d; 2 in the paper.
    hidden: h; 2.
    classes: p >= 2; 2.  Labels are 0 and 1 whatever p.
    points: of each Gaussian; 25.
    clusters: Gaussians, 2 ... 30; 4.
    decay: λ.

  Returns:
    Optimizee with params {'w1': [d, h], 'b1': [h], 'w2': [h, p], 'b2': [p]}
    (12 numbers in the paper) and task {'x', 'y'}.

  Raises:
    ValueError: a size is out of its bounds.
  """
  sizes = {'dimension': dimension, 'hidden': hidden, 'points': points}
  positive('small_net', **sizes, classes=classes, clusters=clusters)
  two = classes > 1 and 1 < clusters <= 30
  found = f'got {classes} and {clusters}'
  bounds = 'classes must be at least 2 and clusters 2 ... 30'
  require(two, f'small_net: {bounds}, {found}')
  shapes = {'w1': (dimension, hidden), 'b1': (hidden,)}
  shapes |= {'w2': (hidden, classes), 'b2': (classes,)}

  def init(key):
    key_data, key_labels, key_x = jax.random.split(key, 3)
    x = _gaussians(key_data, clusters, points, dimension, True)
    code = jax.random.randint(key_labels, (), 1, 2**clusters - 1)
    labels = (code >> jnp.arange(clusters)) & 1
    keys = jax.random.split(key_x, len(shapes))
    params = dict(zip(shapes, _normals(keys, shapes.values()), strict=True))
    return params, {'x': x, 'y': jnp.repeat(labels, points)}

  def loss(params, task, key):
    del key
    h = jax.nn.relu(task['x'] @ params['w1'] + params['b1'])
    logits = h @ params['w2'] + params['b2']
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels
    error = jnp.mean(cross_entropy(logits, task['y']))
    squares = jnp.sum(params['w1'] ** 2) + jnp.sum(params['w2'] ** 2)
    return error + decay / 2 * squares

  return Optimizee(init, loss)
