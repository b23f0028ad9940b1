"""Speed and memory, side by side with what a user could run instead.

Copy and paste:
  python -m experiments.benchmark
  python -m experiments.benchmark --threads=2 --workloads=quadratics
  pip install torch==2.13.0; python -m experiments.benchmark   # with PyTorch

Workloads: an epoch of meta-training (5 unrolls of 20 steps) on 128
ten-dimensional quadratics and on a 784-20-10 net for MNIST; one application of
the optimizer to many parameters; what a state in bfloat16 does to the losses of
trained optimizers; and how the cost grows.  All implementations take turns
within one process.  "l2o_jax" has remat='blocks' unless it says otherwise; "XLA
flags" are some for CPUs, which README.md has.  Prints a table and writes
benchmark.json to --workdir.
"""

import logging
import os
import pathlib
import platform
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags

from experiments.common import peers
from experiments.common.run import write_json
from l2o_jax import checkpoint, datasets
from l2o_jax.base import LearnedOptimizer, Optimizee
from l2o_jax.cells.lstm import lstm_cell
from l2o_jax.coordinatewise import chunked, coordinatewise, grouped
from l2o_jax.evaluation import learning_curves
from l2o_jax.features import gradient, log_and_sign
from l2o_jax.learned_optimizers import flattened, lstm_raw
from l2o_jax.optimizees.classifier import classifier, mlp
from l2o_jax.optimizees.quadratic import quadratic
from l2o_jax.truncated_bptt import truncated_bptt

WORKLOADS = ('quadratics', 'mnist', 'update', 'precision', 'growth')
RESULTS = pathlib.Path(__file__).parent / 'results'
# What README.md sets in the environment variable XLA_FLAGS.
XLA_FLAGS = {
  'xla_cpu_prefer_vector_width': '512',
  'xla_cpu_copy_insertion_use_region_analysis': True,
  'xla_cpu_enable_fast_math': True,
}

flags.DEFINE_multi_enum(
  'workloads', list(WORKLOADS), list(WORKLOADS), 'What to run, a flag for each.'
)
flags.DEFINE_integer(
  'threads',
  1,
  'Cores that all implementations share, >= 1; Linux only.',
  lower_bound=1,
  upper_bound=1024,
)
flags.DEFINE_integer(
  'runs',
  5,
  'Runs of each implementation, >= 1; the median counts.',
  lower_bound=1,
  upper_bound=1000,
)
flags.DEFINE_multi_integer(
  'coordinates',
  [10_000, 1_000_000],
  'Parameters of the workload update, a '
  'flag for each; 320 bytes of memory for each parameter.',
  lower_bound=1,
)
flags.DEFINE_string('workdir', 'runs/benchmark', 'Where benchmark.json goes.')


class Measured(NamedTuple):
  """One implementation at one workload.

  Attributes:
    run: does the work once and waits for its end.
    compile_seconds: before the first run; None where it cannot be told apart.
    peak_bytes: arguments, results and scratch of the compiled program.
  """

  run: Callable[[], None]
  compile_seconds: float | None
  peak_bytes: int | None


def compiled(function, *arguments, donate=(), options=None) -> Measured:
  """`function` under jit; its second result replaces what was donated."""
  started = time.monotonic()
  program = (
    jax.jit(function, donate_argnums=donate)
    .lower(*arguments)
    .compile(compiler_options=options)
  )
  seconds = time.monotonic() - started
  memory = program.memory_analysis()
  arguments = list(arguments)

  def run():
    out = jax.block_until_ready(program(*arguments))
    for i in donate:
      arguments[i] = out[1]

  return Measured(
    run,
    seconds,
    memory.argument_size_in_bytes
    + memory.output_size_in_bytes
    - memory.alias_size_in_bytes
    + memory.temp_size_in_bytes,
  )


def epoch(
  learned: LearnedOptimizer, optimizee: Optimizee, xla_flags=None, **options
):
  """One epoch of meta-training."""
  trainer = truncated_bptt(
    learned,
    optax.adam(1e-3),
    **{
      'unroll_length': peers.UNROLL_LENGTH,
      'num_unrolls': peers.NUM_UNROLLS,
      'remat': 'blocks',
      **options,
    },
  )
  state = jax.jit(trainer.init)(jax.random.key(0))
  return compiled(
    trainer.step, state, optimizee, jax.random.key(1), options=xla_flags
  )


def interrupted_by_compilation(run: Callable[[], None]) -> Measured:
  """PyTorch compiles in its first run."""
  started = time.monotonic()
  run()
  return Measured(run, time.monotonic() - started, None)


def meta_training(workload: str) -> dict[str, Measured]:
  """All implementations of an epoch."""
  images, labels = datasets.load('mnist_5k', 'train', None)
  if workload == 'quadratics':
    optimizee = quadratic(batch=128, reduction='sum')
    features = gradient()
  else:
    optimizee = classifier(images, labels, mlp((784, 20, 10)))
    features = log_and_sign()
  ours = flattened(coordinatewise(features, lstm_cell(scale=0.1)))
  found = {
    'l2o_jax': epoch(ours, optimizee),
    'l2o_jax, XLA flags': epoch(ours, optimizee, XLA_FLAGS),
    'l2o_jax, remat=True': epoch(ours, optimizee, remat=True),
    "l2o_jax, remat='segments'": epoch(ours, optimizee, remat='segments'),
    'l2o_jax, remat=False': epoch(ours, optimizee, remat=False),
    'l2o_jax, second derivatives': epoch(
      ours, optimizee, remat=True, second_derivatives=True
    ),
    'plain JAX': epoch(peers.plain_jax(features, 0.1), optimizee, remat=False),
  }
  if peers.has_torch:
    for name, how in (('PyTorch', False), ('torch.compile', True)):
      found[name] = interrupted_by_compilation(
        peers.torch_epoch(workload, how, images, labels)
      )
  return found


def update(n: int) -> dict[str, Measured]:
  """All implementations of one application to n parameters."""
  base = coordinatewise(log_and_sign(), lstm_cell())
  half = coordinatewise(log_and_sign(), lstm_cell(), state_dtype=jnp.bfloat16)
  adam = LearnedOptimizer(lambda key: 0.0, lambda theta: optax.adam(1e-3))
  vectors = 0.1 * jnp.ones(n), jnp.ones(n)

  def one(learned, options=None):
    theta = jax.jit(learned.init)(jax.random.key(0))
    state = jax.jit(lambda theta, x: learned.transform(theta).init(x))(
      theta, vectors[1]
    )
    return compiled(
      lambda theta, g, state, x: learned.transform(theta).update(g, state, x),
      theta,
      vectors[0],
      state,
      vectors[1],
      donate=(2,),
      options=options,
    )

  # All at once takes the memory of all gates, 1 kB a coordinate.
  whole = {'l2o_jax': one(base)} if n <= 2e6 else {}
  return {
    **whole,
    'l2o_jax, chunked': one(chunked(base)),
    'l2o_jax, chunked, XLA flags': one(chunked(base), XLA_FLAGS),
    'l2o_jax, chunked, bfloat16 state': one(chunked(half)),
    'optax.adam': one(adam),
  }


def precision() -> dict[str, dict]:
  """{'workload, type of the state': losses of the trained optimizer}."""
  images, labels = datasets.load('mnist_5k', 'test', None)
  found = {}
  print(
    f'\n{"type of the state":<32}{"final mean":>12}{"± s.e.":>10}{"sum":>10}'
  )
  for workload, features, scale, optimizee, tasks in (
    ('quadratics', gradient(), 0.1, quadratic(), 2048),
    (
      'mnist',
      log_and_sign(7.0),
      0.01,
      classifier(images, labels, mlp((784, 20, 10), initial_std=0.1)),
      64,
    ),
  ):
    keys = jax.random.split(jax.random.key(3_000_003), tasks)
    for dtype in (jnp.float32, jnp.bfloat16):
      learned = flattened(
        coordinatewise(features, lstm_cell(scale=scale), state_dtype=dtype)
      )
      theta = checkpoint.load(
        RESULTS / workload / 'best.npz', learned.init(jax.random.key(0))
      )
      run = jax.jit(
        lambda theta, optimizee, keys, learned=learned: learning_curves(
          optimizee,
          learned.transform(theta),
          keys,
          100,
          1 if workload == 'mnist' else None,
        )
      )
      losses = np.asarray(run(theta, optimizee, keys), np.float64)
      row = {
        'final': float(losses[:, -1].mean()),
        'stderr': float(losses[:, -1].std() / tasks**0.5),
        'sum': float(losses.sum(1).mean()),
      }
      name = f'{workload}, {jnp.dtype(dtype).name}'
      found[name] = row
      print(
        f'{name:<32}{row["final"]:>12.4g}{row["stderr"]:>10.2g}'
        f'{row["sum"]:>10.4g}',
        flush=True,
      )
  return found


def measure(found: dict[str, Measured], runs: int) -> dict[str, dict]:
  """{name: seconds of all runs, ...}; the implementations take turns.

  In another order each time: the threads of one are busy for a while after
  its end, and would always slow down the same next one.
  """
  wall = {name: [] for name in found}
  cpu = {name: [] for name in found}
  for one in found.values():
    one.run()
  random = np.random.default_rng(0)
  for _ in range(runs):
    for name in random.permutation(list(found)):
      one = found[name]
      started = time.monotonic(), time.process_time()
      one.run()
      wall[name].append(time.monotonic() - started[0])
      cpu[name].append(time.process_time() - started[1])
  return {
    name: {
      'seconds': float(np.median(wall[name])),
      'least': min(wall[name]),
      'most': max(wall[name]),
      'processor_seconds': float(np.median(cpu[name])),
      'runs': runs,
      'compile_seconds': one.compile_seconds,
      'peak_bytes': one.peak_bytes,
    }
    for name, one in found.items()
  }


def matrix_rate(runs: int) -> float:
  """FLOP/s of a float32 product of two matrices of 1,024 rows."""
  x = jnp.ones((1024, 1024))
  one = measure({'product': compiled(jnp.matmul, x, x)}, max(runs, 20))
  return 2 * 1024**3 / one['product']['least']


def arithmetic(workload: str, n: int | None) -> float:
  """FLOP of the LSTM's products: of an epoch, or of an update of n parameters.

  A coordinate's step takes 2 (F + H + 1) 4H for each layer and 2 (H + 1) for
  the output; the backward pass twice that.
  """
  num_features = 1 if workload == 'quadratics' else 2
  step = 2 * (80 * (num_features + 21) + 80 * 41 + 21)
  if n is not None:
    return step * n
  coordinates = 1280 if workload == 'quadratics' else 15_910
  return 3 * step * coordinates * peers.NUM_UNROLLS * peers.UNROLL_LENGTH


def separable(n: int) -> Optimizee:
  """f(x) = ||x||^2 with n coordinates."""
  return Optimizee(
    jax.tree_util.Partial(lambda key: (jnp.ones(n), ())),
    jax.tree_util.Partial(lambda x, task, key: jnp.sum(x**2)),
  )


def growth(runs: int) -> dict[str, dict]:
  """{what grows: {'values', 'seconds', 'compile_seconds', 'exponent'}}."""
  once = {'num_unrolls': 1}
  groups = lambda number: (
    flattened(lstm_raw(0.1))
    if number == 1
    else grouped(
      coordinatewise(gradient(), lstm_cell()),
      lambda params: [str(i) for i in range(len(params))],
      [str(i) for i in range(number)],
    )
  )
  split = lambda number: Optimizee(
    jax.tree_util.Partial(
      lambda key: ([jnp.ones(1024 // number)] * number, ())
    ),
    jax.tree_util.Partial(
      lambda x, task, key: sum(jnp.sum(part**2) for part in x)
    ),
  )
  axes = {
    'unroll length': (
      (5, 20, 100, 300, 1000),
      lambda length: epoch(
        lstm_raw(0.1), separable(1280), unroll_length=length, **once
      ),
    ),
    'coordinates': (
      (100, 1_000, 10_000, 100_000, 1_000_000),
      lambda n: epoch(lstm_raw(0.1), separable(n), unroll_length=5, **once),
    ),
    'optimizees': (
      (1, 4, 16, 64, 256, 1024),
      lambda number: epoch(
        lstm_raw(0.1), quadratic(), num_optimizees=number, **once
      ),
    ),
    'LSTM layers': (
      (1, 2, 4, 8),
      lambda depth: epoch(
        coordinatewise(gradient(), lstm_cell((20,) * depth)),
        separable(1280),
        **once,
      ),
    ),
    'groups': (
      (1, 2, 4, 8),
      lambda number: epoch(groups(number), split(number), remat=True, **once),
    ),
  }
  found = {}
  for name, (values, make) in axes.items():
    seconds, compilation = [], []
    for value in values:
      one = measure({'l2o_jax': make(value)}, runs)['l2o_jax']
      seconds.append(one['seconds'])
      compilation.append(one['compile_seconds'])
    half = len(values) // 2  # small sizes are mostly overhead
    found[name] = {
      'values': values,
      'seconds': seconds,
      'compile_seconds': compilation,
      'exponent': float(
        np.polyfit(np.log(values[half:]), np.log(seconds[half:]), 1)[0]
      ),
    }
    print(
      f'\n{name}: seconds ~ {name}^{found[name]["exponent"]:.2f} in the '
      'upper half'
    )
    for value, time_of, compile_of in zip(values, seconds, compilation):
      print(
        f'  {value:>9,}  {time_of:9.4f} s, compiled in {compile_of:.1f} s',
        flush=True,
      )
  return found


def table(workload: str, rows: dict[str, dict], n: int | None) -> str:
  """A workload's rows; times in ns per parameter where n is given."""
  unit, factor = ('ns/param', 1e9 / n) if n else ('s/epoch', 1.0)
  lines = [
    f'\n{workload:<32}{unit:>10}{"least … most":>20}{"processor":>11}'
    f'{"compile s":>11}{"peak MB":>9}{"ratio":>8}'
  ]
  ours = rows.get('l2o_jax', rows.get('l2o_jax, chunked'))['seconds']
  show = lambda value, digits, scale=1.0: (
    '-' if value is None else f'{value * scale:.{digits}f}'
  )
  for name, row in rows.items():
    digits = 3 if not n else 1
    between = ' … '.join(
      show(row[k], digits, factor) for k in ('least', 'most')
    )
    lines.append(
      f'{name:<32}{show(row["seconds"], digits, factor):>10}{between:>20}'
      f'{show(row["processor_seconds"], digits, factor):>11}'
      f'{show(row["compile_seconds"], 1):>11}'
      f'{show(row["peak_bytes"], 0, 1e-6):>9}'
      f'{row["seconds"] / ours:>8.2f}'
    )
  return '\n'.join(lines)


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments: {" ".join(argv[1:])}')
  logging.getLogger('jax').setLevel('WARNING')  # tells of TPUs missed
  args = flags.FLAGS
  if hasattr(os, 'sched_setaffinity'):  # before JAX counts the cores
    cores = sorted(os.sched_getaffinity(0))
    if args.threads > len(cores):
      raise app.UsageError(f'--threads={args.threads}: there are {len(cores)}')
    os.sched_setaffinity(0, cores[: args.threads])
  if peers.has_torch:
    peers.set_torch_threads(args.threads)
  else:
    print('PyTorch is not installed: pip install torch==2.13.0 adds its rows')
  device = jax.devices()[0]
  rate = matrix_rate(args.runs)
  found = {
    'device': f'{device.platform}: {device.device_kind}',
    'machine': platform.processor() or platform.machine(),
    'threads': args.threads,
    'jax': jax.__version__,
    'matrix_rate': rate,
    'workloads': {},
    'arithmetic_seconds': {},
  }
  print(
    f'{found["device"]}, {args.threads} threads, jax {jax.__version__}, '
    f'{args.runs} runs of each in turn; products of matrices at '
    f'{rate / 1e9:.0f} GFLOP/s'
  )
  for workload in args.workloads:
    if workload in ('growth', 'precision'):
      found[workload] = (
        growth(args.runs) if workload == 'growth' else precision()
      )
      continue
    sizes = args.coordinates if workload == 'update' else [None]
    for n in sizes:
      title = workload if n is None else f'{workload}, {n:,} parameters'
      rows = measure(
        meta_training(workload) if n is None else update(n), args.runs
      )
      found['workloads'][title] = rows
      print(table(title, rows, n), flush=True)
      least = arithmetic(workload, n) / rate
      best = min(
        row['seconds']
        for name, row in rows.items()
        if name.startswith('l2o_jax')
      )
      found['arithmetic_seconds'][title] = least
      print(
        f'arithmetic alone, at the rate of matrix products: '
        f'{least * (1e9 / n if n else 1):.3g} '
        f'{"ns/param" if n else "s/epoch"}, {least / best:.0%} of the '
        'time taken',
        flush=True,
      )
  workdir = pathlib.Path(args.workdir)
  workdir.mkdir(parents=True, exist_ok=True)
  write_json(workdir / 'benchmark.json', found)
  print(f'\nwritten: {workdir}/benchmark.json')


if __name__ == '__main__':
  app.run(main)
