"""What a user could run instead, for the benchmark: plain JAX and PyTorch.

Both are the same optimizer (two LSTM layers of 20 units on every coordinate)
and the same epoch (5 unrolls of 20 steps, a step of Adam on theta after each,
the optimizee's gradient held constant), written as one would at first.
"""

import importlib.util

import jax
import jax.numpy as jnp
import optax

from l2o_jax.base import Features, LearnedOptimizer
from l2o_jax.cells.lstm import lstm_cell

EPOCH = {'num_unrolls': 5, 'unroll_length': 20}
has_torch = importlib.util.find_spec('torch') is not None


def plain_jax(features: Features, scale: float) -> LearnedOptimizer:
  """The coordinates as leading axis: state [n, H], gates [n, 4H]."""
  cell = lstm_cell(scale=scale)

  def layer(theta, x, state):
    h, c = state
    gates = jnp.concatenate([x, h], axis=1) @ theta['w'] + theta['b']
    i, j, f, o = jnp.split(gates, 4, axis=1)
    c = jax.nn.sigmoid(f + 1) * c + jax.nn.sigmoid(i) * jnp.tanh(j)
    return jax.nn.sigmoid(o) * jnp.tanh(c), c

  def transform(theta):
    def init(x):
      zero = jnp.zeros((x.size, 20))
      return ((zero, zero),) * len(theta['lstm'])

    def update(g, state, x=None):
      _, seen = features.update((), x, g, None)
      new = []
      for weights, one in zip(theta['lstm'], state, strict=True):
        new.append(layer(weights, seen, one))
        seen = new[-1][0]
      step = seen @ theta['linear']['w'] + theta['linear']['b']
      return scale * step[:, 0], tuple(new)

    return optax.flatten(optax.GradientTransformation(init, update))

  return LearnedOptimizer(lambda key: cell.init(key, features.size), transform)


def _torch_optimizer(num_features: int):
  import torch  # heavy, and not a dependency

  class Optimizer(torch.nn.Module):
    def __init__(self):
      super().__init__()
      self.first = torch.nn.LSTMCell(num_features, 20)
      self.second = torch.nn.LSTMCell(20, 20)
      self.linear = torch.nn.Linear(20, 1)

    def forward(self, g, state):
      seen = g[:, None]
      if num_features == 2:
        size = torch.log(g.abs() + torch.finfo(g.dtype).eps) / 10
        sign = (g * 22026.465794806718).clamp(-1, 1)
        seen = torch.stack([size.clamp(min=-1), sign], -1)
      first = self.first(seen, state[0])
      second = self.second(first[0], state[1])
      return 0.1 * self.linear(second[0])[:, 0], (first, second)

  return Optimizer()


def _torch_quadratics():
  """(features, coordinates, () -> task, (x, task) -> loss)."""
  import torch

  def loss(x, task):
    w, y = task
    return ((torch.bmm(w, x.view(128, 10, 1))[..., 0] - y) ** 2).sum()

  task = lambda: (torch.rand(128, 10, 10), torch.rand(128, 10))
  return 1, 1280, task, loss


def _torch_mnist(device, images, labels):
  """(features, coordinates, () -> task, (x, task) -> loss)."""
  import torch

  sizes = [784 * 20, 20, 20 * 10, 10]
  images = torch.from_numpy(images).reshape(len(images), -1).to(device)
  labels = torch.from_numpy(labels).long().to(device)

  def loss(x, task):
    del task
    rows = torch.randint(0, len(images), (128,))
    w1, b1, w2, b2 = x.split(sizes)
    hidden = torch.sigmoid(images[rows].float() / 255 @ w1.view(784, 20) + b1)
    logits = hidden @ w2.view(20, 10) + b2
    return torch.nn.functional.cross_entropy(logits, labels[rows])

  return 2, sum(sizes), tuple, loss


def torch_epoch(compiled: bool, *data):
  """A function that runs one epoch in PyTorch, with `LSTMCell`.

  It runs where JAX runs.

  Args:
    compiled: whether the optimizer goes through `torch.compile`.
    *data: images, uint8 [N, 28, 28, 1], and labels [N] of MNIST; without them
      it is an epoch on quadratics.
  """
  import torch

  on_gpu = jax.default_backend() == 'gpu' and torch.cuda.is_available()
  device = torch.device('cuda' if on_gpu else 'cpu')
  made = _torch_mnist(device, *data) if data else _torch_quadratics()
  num_features, n, task, loss = made
  net = _torch_optimizer(num_features)
  net.to(device)
  forward = torch.compile(net, dynamic=False) if compiled else net
  meta_optimizer = torch.optim.Adam(net.parameters(), 1e-3)

  def epoch():
    with device:
      train()
    if on_gpu:
      torch.cuda.synchronize()

  def train():
    f = task()
    x = 0.01 * torch.randn(n)
    state = tuple((torch.zeros(n, 20), torch.zeros(n, 20)) for _ in range(2))
    for _ in range(EPOCH['num_unrolls']):
      x = x.detach().requires_grad_()
      state = tuple((h.detach(), c.detach()) for h, c in state)
      total = 0
      for _ in range(EPOCH['unroll_length']):
        value = loss(x, f)
        (gradient,) = torch.autograd.grad(value, x, retain_graph=True)
        total = total + value
        step, state = forward(gradient.detach(), state)
        x = x + step
      meta_optimizer.zero_grad()
      (total + loss(x, f)).backward()
      meta_optimizer.step()

  return epoch
