"""Checks a wheel's members, and the package that was installed from it."""

import pathlib
import sys
import time
import zipfile

import jax
import optax

import l2o_jax

names = zipfile.ZipFile(sys.argv[1]).namelist()
tops = {name.split('/')[0].split('-')[0] for name in names}
assert tops == {'l2o_jax'}, tops
for name in (
  'py.typed',
  'datasets/mnist_5k.npz',
  'datasets/README.md',
  'pretrained/robust.npz',
  'pretrained/README.md',
):
  assert f'l2o_jax/{name}' in names, f'{name} is not in the wheel'

where = pathlib.Path(l2o_jax.__file__)
assert where.is_relative_to(sys.prefix), f'imported from {where}'
images, labels = l2o_jax.datasets.load('mnist_5k', 'train')
net = l2o_jax.optimizees.mlp((784, 20, 10))
trainer = l2o_jax.truncated_bptt(
  l2o_jax.lstm_log_and_sign(), optax.adam(1e-3), unroll_length=5, num_unrolls=2
)
state, info = jax.jit(trainer.step)(
  trainer.init(jax.random.key(0)),
  l2o_jax.optimizees.classifier(images, labels, net),
  jax.random.key(1),
)
assert not info.skipped.any(), info
print(f'{pathlib.Path(sys.argv[1]).name}: {len(images)} digits, one epoch')
print(f'of meta-training: loss {info.losses[0, 0, 0]:.3f}')

tx, x = l2o_jax.pretrained_optimizer(), 1.0
state = tx.init(x)
for _ in range(50):
  updates, state = tx.update(2 * x, state, x)
  x = optax.apply_updates(x, updates)
assert abs(x) < 0.2, x
began = time.monotonic()
l2o_jax.pretrained('robust')
print(f'pretrained: loaded in {1000 * (time.monotonic() - began):.0f} ms')
