"""Speed and memory, side by side with what a user could run instead.

Copy and paste:
  python -m experiments.benchmark
  python -m experiments.benchmark --threads=2 --workloads=quadratics
  pip install torch==2.13.0; python -m experiments.benchmark   # with PyTorch

Workloads: an epoch of meta-training (100 steps) on 128 ten-dimensional
quadratics, on a 784-20-10 net for MNIST, and on 1 and 16 small nets; one
application of the optimizer to many parameters.  The first row of each is the
shortest program; ratios are to it.  All implementations of a
workload take turns within one process.  Prints tables and writes benchmark.json
to --workdir.
"""

import functools
import os
import pathlib
import time
from collections.abc import Callable
from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import l2o_jax
from experiments import mnist, quadratics
from experiments.common import bptt, cli, peers, run, settings
from l2o_jax import blocks, gradient, log_and_sign
from l2o_jax.optimizees import classifier, mlp, quadratic

WORKLOADS = ('quadratics', 'mnist', 'nets', 'update')
XLA_FLAGS = {
  'xla_cpu_prefer_vector_width': '512',
  'xla_cpu_copy_insertion_use_region_analysis': True,
  'xla_cpu_enable_fast_math': True,
}


class Benchmark(NamedTuple):
  """What is measured.

  Attributes:
    workloads: What to run, a flag for each.
    threads: Cores that all implementations share, >= 1; Linux only.
    runs: Runs of each implementation, >= 1; the median counts.
    coordinates: Parameters of the workload update, >= 1; some 320 bytes of
      memory for each.
    xla_flags: Compile with options of XLA that save time on processors with
      AVX-512: vectors of 512 bits, fast math, analysis of copies.
    workdir: Where benchmark.json goes.
  """

  workloads: tuple[Literal[WORKLOADS], ...] = WORKLOADS
  threads: Annotated[int, 1, 1024] = 1
  runs: Annotated[int, 1, 1000] = 5
  coordinates: settings.Count = 1_000_000
  xla_flags: bool = False
  workdir: str = 'runs/benchmark'


class Settings(NamedTuple):
  """All flags."""

  run: Benchmark = Benchmark()


def check(s: Settings) -> None:
  """Before anything is measured."""
  if s.run.threads > (count := run.cores()):
    wrong = f'--threads={s.run.threads}: this process has {count} cores'
    raise settings.UsageError(wrong)
  file = pathlib.Path(s.run.workdir) / 'benchmark.json'
  try:
    file.parent.mkdir(parents=True, exist_ok=True)
    if not file.exists():
      run.write(file, '{}\n')
  except OSError as error:
    raise settings.UsageError(f'--workdir: {error}') from None


EXPERIMENT = settings.Experiment(
  'benchmark', Settings(), {'default': {}}, __doc__, check=check
)


class Measured(NamedTuple):
  """An implementation: work done once, seconds to compile, bytes at most."""

  run: Callable[[], None]
  compile_seconds: float | None
  peak_bytes: int | None


def compiled(function, *arguments, donate=(), options=None) -> Measured:
  """`function` under jit; its second result replaces what was donated."""
  started = time.monotonic()
  lowered = jax.jit(function, donate_argnums=donate).lower(*arguments)
  program = lowered.compile(compiler_options=options)
  seconds = time.monotonic() - started
  memory = program.memory_analysis()
  peak = memory.argument_size_in_bytes + memory.output_size_in_bytes
  peak += memory.temp_size_in_bytes - memory.alias_size_in_bytes
  arguments = list(arguments)

  def once():
    out = jax.block_until_ready(program(*arguments))
    for i in donate:
      arguments[i] = out[1]

  return Measured(once, seconds, peak)


def shortest(features, **how) -> l2o_jax.LearnedOptimizer:
  """The LSTM of a few lines."""
  return l2o_jax.coordinatewise(features, l2o_jax.lstm_cell(), **how)


def epoch(learned, optimizee, options=None, **how) -> Measured:
  """One epoch of meta-training."""
  how |= peers.EPOCH
  trainer = l2o_jax.truncated_bptt(learned, optax.adam(1e-3), **how)
  return of_trainer(trainer, optimizee, options)


def of_trainer(trainer, optimizee, options) -> Measured:
  state = jax.jit(trainer.init)(jax.random.key(0))
  key = jax.random.key(1)
  return compiled(trainer.step, state, optimizee, key, options=options)


def of_preset(experiment, learned, optimizee, options) -> Measured:
  """One epoch of what a bare command of an experiment runs."""
  s = settings.preset(experiment)
  how = s.bptt, s.run.num_epochs, [s.run.num_steps]
  (trainer,) = bptt.make_trainers(learned, *how)
  return of_trainer(trainer, optimizee, options)


def with_peers(rows, features, optimizee, options, *data):
  """Adds plain JAX and, where it is installed, PyTorch (without options)."""
  plain = peers.plain_jax(features, 0.1)
  rows['plain JAX'] = epoch(plain, optimizee, remat=False, options=options)
  for name, how in (('PyTorch', False), ('torch.compile', True)):
    if peers.has_torch:
      once = peers.torch_epoch(how, *data)
      started = time.monotonic()
      once()  # PyTorch compiles in its first run
      rows[name] = Measured(once, time.monotonic() - started, None)
  return rows


def of_quadratics(options) -> dict[str, Measured]:
  """128 functions of 10 coordinates."""
  one = quadratic(batch=128, reduction='sum')
  preset = quadratic(batch=8, reduction='sum')
  many = {'num_optimizees': 128}
  learned = l2o_jax.lstm_raw(0.1)
  of_experiment = quadratics.EXPERIMENT, learned, preset, options
  plain = shortest(gradient())
  rows = {
    'shortest program': epoch(plain, quadratic(), options, **many),
    'one optimizee that sums them': epoch(plain, one, options),
    'experiments.quadratics': of_preset(*of_experiment),
  }
  return with_peers(rows, gradient(), one, options)


def of_mnist(options) -> dict[str, Measured]:
  """A net of 15,910 coordinates."""
  data = l2o_jax.datasets.load('mnist_5k', 'train', None)
  optimizee = classifier(*data, mlp((784, 20, 10)))
  learned = l2o_jax.lstm_log_and_sign()
  of_experiment = mnist.EXPERIMENT, learned, optimizee, options
  plain = shortest(log_and_sign())
  rows = {
    'shortest program': epoch(plain, optimizee, options),
    'blocks.unroll': epoch(plain, optimizee, options, unroll=blocks.unroll),
    'experiments.mnist': of_preset(*of_experiment),
  }
  return with_peers(rows, log_and_sign(), optimizee, options, *data)


def of_nets(options) -> dict[str, Measured]:
  """1 and 16 nets 100-20-10 of 2,230 coordinates."""
  random = np.random.default_rng(0)
  images = random.normal(size=(1000, 100)).astype(np.float32)
  labels = random.integers(0, 10, 1000)
  optimizee = classifier(images, labels, mlp((100, 20, 10)))
  plain = shortest(log_and_sign())
  return {
    f'{b} nets at once': epoch(plain, optimizee, options, num_optimizees=b)
    for b in (1, 16)
  }


def of_update(n: int, options) -> dict[str, Measured]:
  """One application to n parameters."""
  plain = shortest(log_and_sign())
  half = shortest(log_and_sign(), state_dtype=jnp.bfloat16)
  adam = l2o_jax.LearnedOptimizer(lambda _: 0.0, lambda _: optax.adam(1e-3))
  x = jnp.ones(n)

  def one(learned):
    step = lambda theta, g, *rest: learned.transform(theta).update(g, *rest)
    theta = jax.jit(learned.init)(jax.random.key(0))
    start = jax.jit(lambda theta, x: learned.transform(theta).init(x))
    arguments = theta, 0.1 * x, start(theta, x), x
    return compiled(step, *arguments, donate=(2,), options=options)

  # All at once takes the memory of all gates, 1 kB a coordinate.
  rows = {'shortest program': one(plain)} if n <= 2e6 else {}
  rows['blocks.chunked'] = one(blocks.chunked(plain))
  rows['blocks.chunked, bfloat16 state'] = one(blocks.chunked(half))
  rows['robust'] = one(l2o_jax.robust_optimizer())
  alone = {'agreement': None, 'warmup': 0.0}
  rows['robust_coordinatewise'] = one(l2o_jax.robust_optimizer(**alone))
  return {**rows, 'optax.adam': one(adam)}


def measure(found: dict[str, Measured], runs: int) -> dict[str, dict]:
  """{name: seconds, ...}; they take turns, in another order each time."""
  # The threads of one are busy for a while after its end.
  wall, cpu = {name: [] for name in found}, {name: [] for name in found}
  for one in found.values():
    one.run()
  random = np.random.default_rng(0)
  for _ in range(runs):
    for name in random.permutation(list(found)):
      started = time.monotonic(), time.process_time()
      found[name].run()
      wall[name].append(time.monotonic() - started[0])
      cpu[name].append(time.process_time() - started[1])
  return {
    name: {
      'seconds': float(np.median(wall[name])),
      'least': min(wall[name]),
      'most': max(wall[name]),
      'processor_seconds': float(np.median(cpu[name])),
      'compile_seconds': one.compile_seconds,
      'peak_bytes': one.peak_bytes,
    }
    for name, one in found.items()
  }


def table(title: str, rows: dict[str, dict], n: int | None) -> str:
  """A workload's rows; times in ns per parameter where n is given."""
  unit, factor, digits = ('ns/param', 1e9 / n, 1) if n else ('s/epoch', 1.0, 3)
  head = f'{unit:>10}{"least … most":>18}{"processor":>11}{"compile s":>11}'
  lines = [f'\n{title:<32}{head}{"peak MB":>9}{"ratio":>8}']
  show = lambda value, digits, scale=1.0: (
    '-' if value is None else f'{value * scale:.{digits}f}'
  )
  first = next(iter(rows.values()))['seconds']
  for name, row in rows.items():
    times = ('seconds', 'least', 'most', 'processor_seconds')
    median, least, most, cpu = (show(row[k], digits, factor) for k in times)
    compile_s = show(row['compile_seconds'], 1)
    peak, ratio = show(row['peak_bytes'], 0, 1e-6), row['seconds'] / first
    line = f'{name:<32}{median:>10}{f"{least} … {most}":>18}{cpu:>11}'
    lines.append(f'{line}{compile_s:>11}{peak:>9}{ratio:>8.2f}')
  return '\n'.join(lines)


def pin(s: Settings) -> None:
  """Shares out the cores, before JAX counts them."""
  if hasattr(os, 'sched_setaffinity'):
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[: s.run.threads])
  if peers.has_torch:
    import torch

    torch.set_num_threads(s.run.threads)


def main(s: Settings) -> None:
  """Measures and prints, workload by workload."""
  own = s.run
  options = XLA_FLAGS if own.xla_flags else None
  found = {**run.provenance(), 'threads': own.threads, 'runs': own.runs}
  cli.say(f'{found["device"]}, {own.threads} threads, {own.runs} runs')
  if not peers.has_torch:
    cli.say('PyTorch is not installed: pip install torch==2.13.0 adds its rows')
  makers = {'quadratics': of_quadratics, 'mnist': of_mnist, 'nets': of_nets}
  makers['update'] = functools.partial(of_update, own.coordinates)
  for workload in own.workloads:
    n = own.coordinates if workload == 'update' else None
    title = f'update, {n:,} parameters' if n else workload
    found[title] = measure(makers[workload](options), own.runs)
    run.write_json(pathlib.Path(own.workdir) / 'benchmark.json', found)
    cli.say(table(title, found[title], n))
  cli.say(f'\nwritten: {own.workdir}/benchmark.json')


if __name__ == '__main__':
  cli.run(main, EXPERIMENT, pin)
