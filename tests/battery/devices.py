"""The same numbers on several devices and in several processes."""

import socket

import jax
import numpy as np
import optax

from l2o_jax import checkpoint
from l2o_jax.learned_optimizers import lstm_raw
from l2o_jax.optimizees.quadratic import quadratic
from l2o_jax.truncated_bptt import truncated_bptt
from tests.battery.programs import CONTEXT, ENVIRONMENT, quadratics


def _free_port():
  with socket.socket() as s:
    s.bind(('localhost', 0))
    return s.getsockname()[1]


def _theta_on_devices(path, count, epochs):
  """Meta-trains on so many virtual devices; saves theta."""
  jax.config.update('jax_num_cpu_devices', count)
  from experiments.common import bptt

  sharding = bptt.sharding(8) if count > 1 else None
  trainer = truncated_bptt(
    lstm_raw(0.1),
    optax.adam(1e-2),
    unroll_length=5,
    num_unrolls=2,
    num_optimizees=8,
    sharding=sharding,
  )
  step = jax.jit(trainer.step)
  optimizee = quadratic(dimension=4, batch=3, reduction='sum')
  state = trainer.init(jax.random.key(0))
  if sharding is not None:
    state = jax.device_put(
      state, sharding.update(spec=jax.sharding.PartitionSpec())
    )
  text = step.lower(state, optimizee, jax.random.key(0)).compile().as_text()
  for epoch in range(epochs):
    state, info = step(state, optimizee, jax.random.key(epoch))
  checkpoint.save(
    path,
    jax.tree.map(np.asarray, state.theta),
    metadata={
      'all_reduces': text.count(' all-reduce('),
      'all_gathers': text.count(' all-gather('),
      'devices': len(info.losses.sharding.device_set),
    },
  )


def _load_theta(path):
  return checkpoint.load(
    path, jax.tree.map(np.asarray, lstm_raw().init(jax.random.key(0)))
  )


def devices(directory, counts):
  """The same theta on any number of devices; one all-reduce a meta-step."""
  seen = {}
  for count in (1, *counts):
    path = directory / f'{count}.npz'
    process = CONTEXT.Process(target=_theta_on_devices, args=(path, count, 5))
    process.start()
    process.join(300)
    assert process.exitcode == 0, count
    seen[count] = checkpoint.metadata(path)
    assert seen[count]['devices'] == count
    if count > 1:
      assert seen[count]['all_gathers'] == 0, seen[count]
      jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        _load_theta(path),
        _load_theta(directory / '1.npz'),
      )
  return f'theta equal to rtol 1e-5 on {counts}; {seen}'


def processes(directory, times):
  """Two processes, one device each, against one process with two devices."""
  flags = ('--num_optimizees=2', '--num_problems=4', '--num_epochs=8')
  one = quadratics(
    directory / 'one',
    *flags,
    environment={
      'XLA_FLAGS': '--xla_force_host_platform_device_count=2 '
      + ENVIRONMENT.get('XLA_FLAGS', '')
    },
  )
  status, text = one.wait()
  assert status == 0, text
  for i in range(times):
    workdir, port = directory / f'two{i}', _free_port()
    both = [
      quadratics(
        workdir,
        *flags,
        '--multihost',
        f'--coordinator=localhost:{port}',
        '--num_processes=2',
        f'--process_id={k}',
        '--multihost_timeout=60',
      )
      for k in range(2)
    ]
    for program in both:
      status, text = program.wait()
      assert status == 0, text
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
      _load_theta(workdir / 'theta.npz'),
      _load_theta(directory / 'one' / 'theta.npz'),
    )
    assert len(list(workdir.glob('summary.json'))) == 1
  alone = quadratics(
    directory / 'alone',
    '--multihost',
    '--num_processes=2',
    f'--coordinator=localhost:{_free_port()}',
    '--process_id=0',
    '--multihost_timeout=2',
  )
  status, text = alone.wait()
  assert status == 2 and 'did not appear in 2 s' in text, (status, text)
  assert not (directory / 'alone').exists()
  return (
    f'{times} runs of 2 processes: theta as on one; one alone gives up '
    'with a line'
  )
