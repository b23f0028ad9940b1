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

NUM_UNROLLS, UNROLL_LENGTH = 5, 20
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


def torch_epoch(workload: str, compiled: bool, images=None, labels=None):
  """A function that runs one epoch in PyTorch, with `LSTMCell`.

  It runs where JAX runs.

  Args:
    workload: 'quadratics' or 'mnist'.
    compiled: whether the optimizer goes through `torch.compile`.
    images: uint8 [N, 28, 28, 1], for 'mnist'.
    labels: [N].
  """
  import torch  # heavy, and not a dependency

  on_gpu = jax.default_backend() == 'gpu' and torch.cuda.is_available()
  device = torch.device('cuda' if on_gpu else 'cpu')

  class Optimizer(torch.nn.Module):
    def __init__(self, num_features, scale):
      super().__init__()
      self.first = torch.nn.LSTMCell(num_features, 20)
      self.second = torch.nn.LSTMCell(20, 20)
      self.linear = torch.nn.Linear(20, 1)
      self.num_features, self.scale = num_features, scale

    def forward(self, g, state):
      if self.num_features == 2:
        eps = torch.finfo(g.dtype).eps
        seen = torch.stack(
          [
            (torch.log(g.abs() + eps) / 10).clamp(min=-1),
            (g * 22026.465794806718).clamp(-1, 1),
          ],
          -1,
        )
      else:
        seen = g[:, None]
      first = self.first(seen, state[0])
      second = self.second(first[0], state[1])
      return self.scale * self.linear(second[0])[:, 0], (first, second)

  if workload == 'quadratics':
    net, n, task = (
      Optimizer(1, 0.1),
      1280,
      lambda: (torch.rand(128, 10, 10), torch.rand(128, 10)),
    )

    def loss(x, task):
      w, y = task
      return ((torch.bmm(w, x.view(128, 10, 1))[..., 0] - y) ** 2).sum()
  else:
    net, n, task = Optimizer(2, 0.1), 784 * 20 + 20 + 20 * 10 + 10, tuple
    images = torch.from_numpy(images).reshape(len(images), -1).to(device)
    labels = torch.from_numpy(labels).long().to(device)

    def loss(x, task):
      del task
      rows = torch.randint(0, len(images), (128,))
      w1, b1, w2, b2 = x.split([784 * 20, 20, 20 * 10, 10])
      hidden = torch.sigmoid(images[rows].float() / 255 @ w1.view(784, 20) + b1)
      return torch.nn.functional.cross_entropy(
        hidden @ w2.view(20, 10) + b2, labels[rows]
      )

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
    for _ in range(NUM_UNROLLS):
      x = x.detach().requires_grad_()
      state = tuple((h.detach(), c.detach()) for h, c in state)
      total = 0
      for _ in range(UNROLL_LENGTH):
        value = loss(x, f)
        (gradient,) = torch.autograd.grad(value, x, retain_graph=True)
        total = total + value
        step, state = forward(gradient.detach(), state)
        x = x + step
      meta_optimizer.zero_grad()
      (total + loss(x, f)).backward()
      meta_optimizer.step()

  return epoch


def set_torch_threads(threads: int) -> None:
  import torch

  torch.set_num_threads(threads)
