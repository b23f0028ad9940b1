"""Tasks that were picked because `robust` did badly on them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial

from l2o_jax.base import Optimizee
from l2o_jax.unroll import unroll

_BATCH = 32


def unlike_units() -> Optimizee:
  """Logistic regression on 20 inputs in units of 1e-3 to 1e3; 500 examples."""

  def init(key):
    key_x, key_w, key_noise = jax.random.split(key, 3)
    x = jax.random.normal(key_x, (500, 20))
    noise = 0.5 * jax.random.normal(key_noise, (500,))
    labels = x @ jax.random.normal(key_w, (20,)) + noise > 0
    params = {'w': jnp.zeros(20), 'b': jnp.zeros(())}
    return params, (x * jnp.logspace(-3, 3, 20), labels)

  def objective(params, task):
    x, labels = task
    logits = x @ params['w'] + params['b']
    return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, labels))

  def loss(params, task, key):
    rows = jax.random.randint(key, (_BATCH,), 0, len(task[1]))
    return objective(params, jax.tree.map(lambda x: x[rows], task))

  return Optimizee(init, loss, objective)


def embeddings(words=2000, size=16, topics=40) -> Optimizee:
  """Skip-grams with negative samples (Mikolov et al. 2013): sparse gradients.

  Word i has a frequency of 1 / (i + 1) and the topic i mod `topics`; its
  contexts are words of its topic.  A minibatch of 32 words moves few rows of
  the two matrices.
  """
  frequency = 1 / jnp.arange(1.0, words + 1)
  of_topic = 1 / jnp.arange(0.5, words // topics)

  def init(key):
    start = 0.1 * jax.random.normal(key, (2, words, size))
    return {'words': start[0], 'contexts': start[1]}, ()

  def of_batch(params, key, batch):
    keys = jax.random.split(key, 3)
    # It looks the words up; `categorical` would draw a number for each word.
    draw = lambda key, p, *shape: jax.random.choice(
      key, len(p), (batch, *shape), p=p / p.sum()
    )
    word = draw(keys[0], frequency)
    near = word % topics + topics * draw(keys[1], of_topic)
    far = draw(keys[2], frequency**0.75, 4)
    of_word = params['words'][word]  # [batch, size]
    score = lambda context: jnp.einsum(
      'bd,b...d->b...', of_word, params['contexts'][context]
    )
    negative = jnp.sum(jax.nn.softplus(score(far)), -1)
    return jnp.mean(jax.nn.softplus(-score(near)) + negative)

  loss = lambda params, task, key: of_batch(params, key, _BATCH)
  objective = lambda params, task: of_batch(params, jax.random.key(0), 1024)
  return Optimizee(init, loss, objective)


def factorisation(rows=300, columns=200, rank=8) -> Optimizee:
  """A matrix of low rank from 256 of its entries a step; f goes to 0."""

  def init(key):
    keys = jax.random.split(key, 4)
    normal = lambda key, size: jax.random.normal(key, (size, rank))
    u, v = map(normal, keys, (rows, columns))
    start = {'u': 0.1 * normal(keys[2], rows)}
    start['v'] = 0.1 * normal(keys[3], columns)
    return start, u @ v.T / rank**0.5

  def loss(params, matrix, key):
    i = jax.random.randint(key, (256,), 0, rows)
    j = jax.random.randint(jax.random.fold_in(key, 1), (256,), 0, columns)
    found = jnp.sum(params['u'][i] * params['v'][j], -1)
    return jnp.mean((found - matrix[i, j]) ** 2)

  def objective(params, matrix):
    return jnp.mean((params['u'] @ params['v'].T - matrix) ** 2)

  return Optimizee(init, loss, objective)


def sines(picture: np.ndarray, hidden=48, frequency=30.0) -> Optimizee:
  """A net of sines that draws one picture [side, side] (Sitzmann et al. 2020).

  f is over all pixels and goes to 0.
  """
  side = len(picture)
  line = jnp.linspace(-1, 1, side)
  places = jnp.stack(jnp.meshgrid(line, line), -1).reshape(-1, 2)
  sizes = 2, hidden, hidden, 1

  def init(key):
    params = []
    for i, key_w in enumerate(jax.random.split(key, 3)):
      bound = (6 / sizes[i]) ** 0.5 / frequency if i else 1 / sizes[i]
      shape = sizes[i], sizes[i + 1]
      w = jax.random.uniform(key_w, shape, minval=-bound, maxval=bound)
      params.append({'w': w, 'b': jnp.zeros(sizes[i + 1])})
    return params, ()

  def loss(pixels, params, task, key):
    del task, key
    x = places
    for layer in params[:-1]:
      x = jnp.sin(frequency * (x @ layer['w'] + layer['b']))
    x = x @ params[-1]['w'] + params[-1]['b']
    return jnp.mean((x[:, 0] - pixels) ** 2)

  return Optimizee(init, Partial(loss, jnp.asarray(picture).reshape(-1)))


def trained_on(f: Optimizee, num_steps: int) -> Optimizee:
  """The same, from where Adam with a rate of 1e-3 is after some steps."""

  @jax.jit
  def train(f, key):
    params, task = f.init(key)
    loss = lambda x, key: f.loss(x, task, key)
    opt, keys = optax.adam(1e-3), jax.random.split(key, num_steps + 1)
    (params, _), _ = unroll(loss, opt, params, opt.init(params), keys)
    return params

  start = train(f, jax.random.key(0))
  return f._replace(init=Partial(lambda start, key: (start, ()), start))
