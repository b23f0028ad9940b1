"""What the binaries share: flags, presets, and how errors reach the user."""

import logging as python_logging
import math
import os
import sys
import threading
from collections.abc import Callable

import jax
from absl import app, flags, logging

from experiments.common import signals
from l2o_jax.checkpoint import CheckpointError
from l2o_jax.datasets import DatasetError

# What does not change results.
_BOOKKEEPING = (
  'workdir',
  'resume',
  'data_dir',
  'max_nonfinite',
  'multihost',
  'coordinator',
  'num_processes',
  'process_id',
  'multihost_timeout',
)


class UsageError(ValueError):
  """What a user can mend; shown as one line, exit status 2."""


class NonFinite(Exception):
  """Meta-training found no finite meta-gradient any more."""


def define_flags(
  presets: dict[str, dict],
  default_workdir: str,
  bptt: bool = True,
  search: bool = True,
) -> None:
  """The flags of every experiment; names as in the original where it has them.

  Args:
    presets: {name: {flag: value}}; the first is the default.  A flag given on
      the command line wins over its preset.
    default_workdir: default of --workdir.
    bptt: with the flags of truncated back-propagation through time and of the
      comparison that goes with it.
    search: likewise with those of `harness.train`: random search of the meta
      learning rate, several hosts.
  """
  flags.DEFINE_enum(
    'preset',
    next(iter(presets)),
    list(presets),
    'Values of all flags that are not given: '
    + '; '.join(
      f'{name} = ' + ' '.join(f'--{k}={v}' for k, v in values.items())
      for name, values in presets.items()
    )
    + '.',
  )
  flags.DEFINE_string(
    'workdir', default_workdir, 'Run directory, made if missing.'
  )
  flags.DEFINE_enum(
    'resume',
    'auto',
    ['auto', 'never', 'must'],
    'auto: go on from the newest checkpoint in --workdir if there is one; '
    'never: refuse a --workdir with a run in it; must: refuse one without.',
  )
  flags.DEFINE_string(
    'theta',
    None,
    'File of the theta to start from, such as best.npz of '
    'another run; a random one by default.',
  )
  flags.DEFINE_integer(
    'seed',
    0,
    'Random seed, >= 0; fixes theta at the start and all tasks of '
    'meta-training.  Validation, tuning and test tasks do not depend on it.',
    lower_bound=0,
    upper_bound=2**32 - 1,
  )
  flags.DEFINE_integer(
    'num_epochs',
    1000,
    'Epochs of meta-training, >= 0; one epoch is one run '
    'of --num_steps; more is better and longer.',
    lower_bound=0,
    upper_bound=10**9,
  )
  flags.DEFINE_integer(
    'num_steps',
    100,
    'Optimizee steps per epoch and in validation, >= 1.',
    lower_bound=1,
    upper_bound=10**6,
  )
  flags.DEFINE_integer(
    'max_nonfinite',
    100,
    'Meta-steps in a row without a finite '
    'meta-gradient, >= 1, after which the run ends with status 3.  Each is '
    'skipped and counted.',
    lower_bound=1,
    upper_bound=10**9,
  )
  flags.DEFINE_integer(
    'evaluation_period',
    100,
    'Epochs between validations, each with a log line and a checkpoint, >= 1.',
    lower_bound=1,
    upper_bound=10**9,
  )
  flags.DEFINE_integer(
    'num_validation',
    128,
    'Validation tasks, >= 1; theta with the best mean '
    f'{"final loss" if bptt else "sum of losses"} on them is kept.',
    lower_bound=1,
    upper_bound=10**7,
  )
  flags.DEFINE_integer(
    'num_test',
    1024,
    'Unseen tasks of the final comparison, >= 1.',
    lower_bound=1,
    upper_bound=10**7,
  )
  if bptt:
    _define_bptt_flags()
  if bptt and search:
    _define_search_flags()
    _define_multihost_flags()


def _define_multihost_flags():
  flags.DEFINE_bool(
    'multihost',
    False,
    'Run with other processes: jax.distributed finds '
    'them on TPUs, Slurm and the like; elsewhere it needs --coordinator, '
    '--num_processes and --process_id.',
  )
  flags.DEFINE_string(
    'coordinator', None, 'With --multihost: host:port of process 0.'
  )
  flags.DEFINE_integer(
    'num_processes',
    None,
    'With --multihost: number of processes, >= 1.',
    lower_bound=1,
    upper_bound=10**5,
  )
  flags.DEFINE_integer(
    'process_id',
    None,
    'With --multihost: number of this process, from 0.',
    lower_bound=0,
    upper_bound=10**5,
  )
  flags.DEFINE_integer(
    'multihost_timeout',
    300,
    'With --multihost: seconds to wait for the other processes, >= 1.',
    lower_bound=1,
    upper_bound=10**5,
  )


def _define_bptt_flags():
  flags.DEFINE_integer(
    'num_tuning',
    64,
    "Tasks on which a baseline's learning rate is tuned, >= 1.",
    lower_bound=1,
    upper_bound=10**7,
  )
  flags.DEFINE_integer(
    'unroll_length',
    20,
    'Steps that the meta-gradient goes back, >= 1, a '
    'divisor of --num_steps; there is one meta-step per unroll.',
    lower_bound=1,
    upper_bound=10**6,
  )
  flags.DEFINE_float(
    'learning_rate',
    3e-3,
    'Meta learning rate of Adam, > 0.',
    lower_bound=1e-12,
    upper_bound=1e3,
  )
  flags.DEFINE_enum(
    'learning_rate_schedule',
    'cosine',
    ['cosine', 'constant'],
    'cosine: the meta learning rate falls to 1 % over the run; constant: as '
    'the released code.',
  )
  flags.DEFINE_float(
    'clip_norm',
    1.0,
    'Global norm to which a meta-gradient is clipped, '
    '>= 0; 0: never, as the released code.',
    lower_bound=0.0,
    upper_bound=1e30,
  )
  flags.DEFINE_float(
    'clip_each',
    0.0,
    "Norm to which each optimizee's own meta-gradient is "
    'clipped before the mean over --num_optimizees, >= 0; 0: never.  Takes '
    'about twice the time.',
    lower_bound=0.0,
    upper_bound=1e30,
  )
  flags.DEFINE_enum(
    'weights',
    'all',
    ['all', 'rising', 'final'],
    'Weights w_t of the losses '
    'in the meta-loss; all: ones; rising: from 1 to 100 along the run, '
    'by a constant factor a step; final: the last loss alone.',
  )
  flags.DEFINE_float(
    'output_scale',
    None,
    "Factor of the LSTM's output, > 0; smaller means "
    'smaller steps at the start.',
    lower_bound=1e-12,
    upper_bound=1e6,
  )
  flags.DEFINE_bool(
    'second_derivatives',
    False,
    "Keep the optimizee's second derivatives in the meta-gradient; slower.",
  )
  flags.DEFINE_integer(
    'num_optimizees',
    1,
    'Optimizees in parallel, >= 1; spread over all '
    'devices, so a multiple of their number where there are several.',
    lower_bound=1,
    upper_bound=10**6,
  )
  flags.DEFINE_enum(
    'remat',
    'step',
    ['none', 'step', 'segments', 'blocks'],
    'What the '
    'backward pass computes again; none: nothing; step: the inside of each '
    'step, with less memory and on a CPU faster; segments: all but the state '
    'of every sqrt(--unroll_length) steps, with the least memory; blocks: as '
    'step, some 5,000 coordinates after the others, on one or two cores the '
    'fastest where there are more; not with --second_derivatives.',
  )


def _define_search_flags():
  flags.DEFINE_integer(
    'search_trials',
    0,
    'Random search of the meta learning rate, >= 0 '
    'trials: each draws a rate log-uniformly from [1e-4, 1e-2] and runs '
    '--search_epochs; the best by validation replaces --learning_rate.  '
    '0: no search.',
    lower_bound=0,
    upper_bound=10**3,
  )
  flags.DEFINE_integer(
    'search_epochs',
    100,
    'Epochs of each trial of the search, >= 1.',
    lower_bound=1,
    upper_bound=10**9,
  )


def _apply_preset(presets):
  for name, value in presets[flags.FLAGS.preset].items():
    if not flags.FLAGS[name].present:
      flags.FLAGS.set_default(name, value)


def _check_flags():
  for name, value in config().items():
    if isinstance(value, float) and not math.isfinite(value):
      raise UsageError(f'--{name} must be finite, got {value}')
  args = flags.FLAGS
  if 'unroll_length' in args and args.num_steps % args.unroll_length:
    raise UsageError(
      f'--num_steps={args.num_steps} is not a multiple of '
      f'--unroll_length={args.unroll_length}'
    )
  if (
    'search_trials' in args
    and args.search_trials
    and (args['learning_rate'].present)
  ):
    raise UsageError(
      '--search_trials looks for the meta learning rate; leave '
      'out --learning_rate'
    )
  if 'remat' in args and args.remat == 'blocks' and args.second_derivatives:
    raise UsageError(
      '--remat=blocks goes without second derivatives (--nosecond_derivatives)'
    )
  if not args.workdir:
    raise UsageError('--workdir must not be empty')
  alone = [
    name
    for name in ('coordinator', 'num_processes', 'process_id')
    if name in args and args[name].present and not args.multihost
  ]
  if alone:
    raise UsageError(f'--{alone[0]} needs --multihost')


def config() -> dict:
  """All flags of the experiment that bear on its results."""
  return {
    flag.name: flag.value
    for flag in flags.FLAGS.get_key_flags_for_module(sys.argv[0])
    if flag.name not in _BOOKKEEPING
  }


def _join_processes():
  args = flags.FLAGS

  def give_up():  # before jax does, which aborts the process with a core dump
    print(
      'error: --multihost: the other processes did not appear in '
      f'{args.multihost_timeout} s',
      file=sys.stderr,
      flush=True,
    )
    os._exit(2)

  timer = threading.Timer(args.multihost_timeout, give_up)
  timer.daemon = True
  timer.start()
  try:
    jax.distributed.initialize(
      args.coordinator,
      args.num_processes,
      args.process_id,
      initialization_timeout=args.multihost_timeout + 60,
    )
  except (RuntimeError, ValueError) as error:
    raise UsageError(f'--multihost: {str(error).splitlines()[0]}') from None
  finally:
    timer.cancel()


def _parse(argv):
  try:
    return flags.FLAGS(argv)
  except flags.Error as error:
    fail(' '.join(str(error).split()), 2)


def fail(message: str, status: int) -> None:
  """Ends the program with one line."""
  print(f'error: {message}', file=sys.stderr, flush=True)
  sys.exit(status)


def run(main: Callable[[], None], presets: dict[str, dict], usage: str):
  """Runs an experiment's main; what a user can mend becomes one line.

  Exit status: 0 done, 1 a file could not be written, 2 usage, 3 no finite
  meta-gradient, 130 or 143 stopped by a signal (resumable).
  """

  def wrapped(argv):
    try:
      if len(argv) > 1:
        raise UsageError(f'unexpected arguments: {" ".join(argv[1:])}')
      _apply_preset(presets)
      _check_flags()
      if 'multihost' in flags.FLAGS and flags.FLAGS.multihost:
        _join_processes()
      main()
    except (UsageError, DatasetError, CheckpointError) as error:
      fail(error, 2)
    except OSError as error:
      fail(error, 1)
    except NonFinite as error:
      fail(error, 3)
    except jax.errors.JaxRuntimeError as error:  # too large for the memory
      if 'RESOURCE_EXHAUSTED' not in str(error):
        raise
      fail(str(error).splitlines()[0], 1)
    except signals.Stopped:
      signals.leave(signals.received())

  signals.install()
  logging.set_verbosity(logging.INFO)
  python_logging.getLogger('jax').setLevel('WARNING')  # tells of TPUs missed
  sys.modules['__main__'].__doc__ = usage
  app.run(wrapped, flags_parser=_parse)
