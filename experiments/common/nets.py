"""Networks of other kinds than the papers': (init, apply) each, no library.

`init(key) -> params` and `apply(params, x [N, inputs]) -> [N, outputs]`, as
`classifier` takes them.  Weights start as N(0, gain² / fan in) with a
gain of 1 unless a net says otherwise, biases at 0.
"""

import math

import jax
import jax.numpy as jnp

from l2o_jax.cpu import convolve

_EPSILON = 1e-5


def _draw(key, shapes, gain=1.0):
  """{name: weights}; matrices and kernels [..., in, out] normal, vectors 0."""
  sizes = [math.prod(shape) for shape in shapes.values()]
  drawn, params, end = jax.random.normal(key, (sum(sizes),)), {}, 0
  for (name, shape), size in zip(shapes.items(), sizes):
    part, end = drawn[end : end + size].reshape(shape), end + size
    fan_in = math.prod(shape[:-1])
    params[name] = gain * part / fan_in**0.5 if len(shape) > 1 else 0 * part
  return params


def _normalised(x, axes):
  mean = x.mean(axes, keepdims=True)
  return (x - mean) * jax.lax.rsqrt(x.var(axes, keepdims=True) + _EPSILON)


def dense(sizes, activation='relu', gain=1.0, norm=lambda x: x):
  """A fully connected net: x <- activation(norm(x w + b))."""
  f, last = getattr(jax.nn, activation), len(sizes) - 2

  def init(key):
    shapes = {}
    for i, (a, b) in enumerate(zip(sizes, sizes[1:])):
      shapes |= {f'w{i}': (a, b), f'b{i}': (b,)}
    return _draw(key, shapes, gain)

  def apply(params, x):
    for i in range(last):
      x = f(norm(x @ params[f'w{i}'] + params[f'b{i}']))
    return x @ params[f'w{last}'] + params[f'b{last}']

  return init, apply


def normalised(inputs, outputs, hidden):
  """A dense net with layer normalisation before every gelu."""
  norm = lambda x: _normalised(x, -1)
  return dense((inputs, *hidden, outputs), 'gelu', norm=norm)


def _tower(inputs, outputs, width, inner, blocks):
  """Shapes of a layer in, blocks of one layer from width to inner, one out."""
  shapes = {'in': (inputs, width), 'out': (width, outputs), 'bias': (outputs,)}
  for i in range(blocks):
    shapes |= {f'w{i}': (width, inner), f'b{i}': (inner,)}
  return shapes


def residual(inputs, outputs):
  """A residual net: x <- x + gelu(norm(x) w + b), with layer normalisation."""
  width, blocks = 32, 3

  def init(key):
    return _draw(key, _tower(inputs, outputs, width, width, blocks))

  def apply(params, x):
    x = x @ params['in']
    for i in range(blocks):
      y = _normalised(x, -1) @ params[f'w{i}'] + params[f'b{i}']
      x = x + jax.nn.gelu(y)
    return _normalised(x, -1) @ params['out'] + params['bias']

  return init, apply


def highway(inputs, outputs):
  """A highway net: x <- gate tanh(x w + b) + (1 - gate) x."""
  width, blocks = 32, 4

  def init(key):
    return _draw(key, _tower(inputs, outputs, width, 2 * width, blocks))

  def apply(params, x):
    x = jnp.tanh(x @ params['in'])
    for i in range(blocks):
      y, gate = jnp.split(x @ params[f'w{i}'] + params[f'b{i}'], 2, -1)
      gate = jax.nn.sigmoid(gate - 1)
      x = gate * jnp.tanh(y) + (1 - gate) * x
    return x @ params['out'] + params['bias']

  return init, apply


def conv(side, outputs, channels=(8, 16), batch_norm=True):
  """Convolutions of stride 2, each batch-normalised, then a linear layer.

  Batch normalisation uses the statistics of the batch at hand.
  """
  end = side
  for _ in channels:
    end = -(-end // 2)

  def init(key):
    shapes, a = {}, 1
    for i, b in enumerate(channels):
      shapes |= {f'w{i}': (3, 3, a, b), f'b{i}': (b,), f'log_scale{i}': (b,)}
      a = b
    shapes |= {'out': (end * end * a, outputs), 'bias': (outputs,)}
    return _draw(key, shapes, 2**0.5)

  def apply(params, x):
    x = x.reshape(-1, side, side, 1)
    for i in range(len(channels)):
      x = convolve(x, params[f'w{i}'], 2)
      if batch_norm:
        x = _normalised(x, (0, 1, 2)) * jnp.exp(params[f'log_scale{i}'])
      x = jax.nn.relu(x + params[f'b{i}'])
    return x.reshape(len(x), -1) @ params['out'] + params['bias']

  return init, apply


def resnet(side, outputs, channels=(8, 16, 32)):
  """ResNet-8: a convolution, three residual blocks of two, a linear layer."""

  def init(key):
    shapes, a = {'in': (3, 3, 1, channels[0])}, channels[0]
    for i, b in enumerate(channels):
      shapes |= {f'u{i}': (3, 3, a, b), f'v{i}': (3, 3, b, b)}
      shapes |= {f'skip{i}': (1, 1, a, b), f'b{i}': (b,), f'c{i}': (b,)}
      a = b
    return _draw(key, shapes | {'out': (a, outputs), 'bias': (outputs,)})

  def apply(params, x):
    norm = lambda x: _normalised(x, (0, 1, 2))
    x = norm(convolve(x.reshape(-1, side, side, 1), params['in']))
    for i in range(len(channels)):
      stride = 1 if i == 0 else 2
      y = norm(convolve(x, params[f'u{i}'], stride)) + params[f'b{i}']
      y = norm(convolve(jax.nn.relu(y), params[f'v{i}'])) + params[f'c{i}']
      x = jax.nn.relu(convolve(x, params[f'skip{i}'], stride) + y)
    return x.mean((1, 2)) @ params['out'] + params['bias']

  return init, apply


def rows_gru(side, outputs, hidden=24):
  """A gated recurrent net that reads an image row by row."""

  def init(key):
    size = side + hidden
    shapes = {'gates': (size, 2 * hidden), 'gates_bias': (2 * hidden,)}
    shapes |= {'new': (size, hidden), 'new_bias': (hidden,)}
    return _draw(key, shapes | {'out': (hidden, outputs), 'bias': (outputs,)})

  def apply(params, x):
    rows = jnp.swapaxes(x.reshape(-1, side, side), 0, 1)  # [side, N, side]

    def step(h, row):
      gates = jnp.concatenate([row, h], -1) @ params['gates']
      reset, keep = jnp.split(
        jax.nn.sigmoid(gates + params['gates_bias']), 2, -1
      )
      new = jnp.concatenate([row, reset * h], -1) @ params['new']
      return keep * h + (1 - keep) * jnp.tanh(new + params['new_bias']), None

    h, _ = jax.lax.scan(step, jnp.zeros((rows.shape[1], hidden)), rows)
    return h @ params['out'] + params['bias']

  return init, apply


def char_lstm(symbols, hidden=32):
  """An LSTM over characters: [N, L] -> logits [N, L, symbols]."""

  def init(key):
    gates = (symbols + hidden, 4 * hidden)
    shapes = {'w': gates, 'b': gates[1:], 'out': (hidden, symbols)}
    return _draw(key, shapes | {'bias': (symbols,)})

  def apply(params, text):
    inputs = jax.nn.one_hot(text.T, symbols)  # [L, N, symbols]

    def step(state, x):
      h, c = state
      gates = jnp.concatenate([x, h], -1) @ params['w'] + params['b']
      i, j, f, o = jnp.split(gates, 4, -1)
      c = jax.nn.sigmoid(f + 1) * c + jax.nn.sigmoid(i) * jnp.tanh(j)
      h = jax.nn.sigmoid(o) * jnp.tanh(c)
      return (h, c), h @ params['out'] + params['bias']

    zero = jnp.zeros((len(text), hidden))
    _, logits = jax.lax.scan(step, (zero, zero), inputs)
    return jnp.swapaxes(logits, 0, 1)

  return init, apply


def transformer(symbols, length, width=32, layers=2, heads=2):
  """A causal transformer over characters: [N, L] -> logits [N, L, symbols]."""

  def init(key):
    shapes = {'embed': (symbols, width), 'place': (length, width)}
    for i in range(layers):
      shapes |= {f'qkv{i}': (width, 3 * width), f'mix{i}': (width, width)}
      shapes |= {f'up{i}': (width, 2 * width), f'up_bias{i}': (2 * width,)}
      shapes |= {f'down{i}': (2 * width, width)}
    return _draw(key, shapes | {'out': (width, symbols), 'bias': (symbols,)})

  def attend(x, qkv, mix):
    N, L, _ = x.shape
    parts = (x @ qkv).reshape(N, L, 3, heads, -1)
    q, k, v = jnp.moveaxis(parts, 2, 0)  # [N, L, heads, width / heads]
    seen = jax.nn.dot_product_attention(q, k, v, is_causal=True)
    return seen.reshape(N, L, -1) @ mix

  def apply(params, text):
    x = params['embed'][text] + params['place'][: text.shape[1]]
    for i in range(layers):
      x += attend(_normalised(x, -1), params[f'qkv{i}'], params[f'mix{i}'])
      up = _normalised(x, -1) @ params[f'up{i}'] + params[f'up_bias{i}']
      x += jax.nn.gelu(up) @ params[f'down{i}']
    return _normalised(x, -1) @ params['out'] + params['bias']

  return init, apply
