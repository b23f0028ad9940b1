"""The command line of the binaries, and how messages reach the user.

Exit status: 0 done, 1 a file could not be written or the memory is too small,
2 what the user can fix, 3 no finite numbers, 130 or 143 stopped by a signal
(the same command resumes).
"""

import contextlib
import importlib.util
import logging
import math
import os
import shlex
import sys
import textwrap
import threading
import time
import types
import typing
from collections.abc import Callable
from typing import Any

import jax
from absl import flags

from experiments.common import settings as settings_lib
from experiments.common import signals
from experiments.common.settings import Experiment, UsageError
from l2o_jax.checkpoint import CheckpointError
from l2o_jax.datasets import DatasetError

_HARD_SPACE = '\u00a0'  # where no line may be broken
# absl's way to define a flag, by the type of its field.
_KINDS = {
  bool: flags.DEFINE_bool,
  int: flags.DEFINE_integer,
  float: flags.DEFINE_float,
  str: flags.DEFINE_string,
}
_SEVERAL = {
  str: flags.DEFINE_multi_string,
  int: flags.DEFINE_multi_integer,
  float: flags.DEFINE_multi_float,
}


class NonFinite(Exception):
  """No finite meta-gradient, or no finite validation loss: status 3."""


def log(message: str) -> None:
  """A line on stderr, with the time; lost if nobody can read it."""
  with contextlib.suppress(OSError, ValueError):
    print(time.strftime('%H:%M:%S'), message, file=sys.stderr, flush=True)


def say(text: str) -> None:
  """Prints results; a reader who has left, as in `| head`, is no error.

  Raises:
    OSError: nothing more can be written.
  """
  try:
    print(text, flush=True)
  except OSError as error:
    # What is buffered would fail again when the program ends.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if not isinstance(error, BrokenPipeError):
      raise OSError(error.errno, f'standard output: {error.strerror}') from None


def _hints(topic) -> dict[str, Any]:
  return typing.get_type_hints(type(topic), include_extras=True)


def _define(values: flags.FlagValues, name: str, hint, default) -> None:
  """One flag, its kind and limits from the annotation of its field."""
  if typing.get_origin(hint) in (typing.Union, types.UnionType):  # ... | None
    hint = typing.get_args(hint)[0]
  several = typing.get_origin(hint) is tuple
  if several:
    hint, default = typing.get_args(hint)[0], list(default)
  if typing.get_origin(hint) is typing.Literal:
    define = flags.DEFINE_multi_enum if several else flags.DEFINE_enum
    define(name, default, list(typing.get_args(hint)), '', flag_values=values)
    return
  limits = {}
  if typing.get_origin(hint) is typing.Annotated:
    low, high = hint.__metadata__
    hint, limits = hint.__origin__, {'lower_bound': low, 'upper_bound': high}
  define = (_SEVERAL if several else _KINDS)[hint]
  define(name, default, '', flag_values=values, **limits)


def _value(given):
  """A flag's value as settings have it; shells leave the ~ of --flag=~/x.

  What is given twice counts once.
  """
  if isinstance(given, list):
    return tuple(dict.fromkeys(map(_value, given)))
  return os.path.expanduser(given) if isinstance(given, str) else given


def parse(experiment: Experiment, argv: list[str]):
  """Settings of a command line; flags given there win over the preset's.

  Args:
    experiment: the binary.
    argv: the program's name, then flags.

  Returns:
    (settings, whether --help is given).

  Raises:
    UsageError: a flag is unknown, has no such value, contradicts another, or is
      not read with these.
  """
  values = flags.FlagValues()
  flags.DEFINE_bool('help', False, '', flag_values=values)
  for topic in experiment.defaults:
    hints = _hints(topic)
    for name, default in topic._asdict().items():
      if name == 'preset':
        hint = typing.Literal[tuple(experiment.presets)]
        _define(values, name, hint, next(iter(experiment.presets)))
      else:
        _define(values, name, hints[name], default)
  try:
    rest = values(argv)[1:]
  except (flags.Error, OSError, ValueError) as error:
    raise UsageError(' '.join(str(error).split())) from None
  if rest:
    raise UsageError(f'unexpected arguments: {" ".join(rest)}')
  name = values.preset if 'preset' in values else None
  start = settings_lib.preset(experiment, name)
  given = {
    name: _value(values[name].value)
    for name in settings_lib.flat(start)
    if values[name].present
  }
  settings = settings_lib.replace(start, given)
  if not values.help:
    _check(experiment, settings, given)
  return settings, values.help


def _check(experiment, settings, given: dict[str, Any]) -> None:
  values = settings_lib.flat(settings)
  for name, value in values.items():
    several = value if isinstance(value, tuple) else (value,)
    if any(isinstance(v, float) and not math.isfinite(v) for v in several):
      raise UsageError(f'--{name} must be finite, got {value}')
    if isinstance(value, tuple) and '' in value:
      raise UsageError(f'--{name} must not be empty')
  unused = settings_lib.unused(experiment, settings)
  for name in given:
    if name in unused:
      raise UsageError(f'--{name} is for {unused[name]}')
    if name in settings_lib.Hosts._fields[1:] and not settings.hosts.multihost:
      raise UsageError(f'--{name} needs --multihost')
  if not settings.run.workdir:
    raise UsageError('--workdir must not be empty')
  used = {name: v for name, v in values.items() if name not in unused}
  if 'unroll_length' in used:
    _check_bptt(used, given)
  experiment.check(settings)


def _check_bptt(used: dict[str, Any], given: dict[str, Any]) -> None:
  """Refuses flags of back-propagation that contradict each other."""
  steps, length = used['num_steps'], used['unroll_length']
  blocks = used['remat'] == 'blocks'
  multiple = (
    f'--num_steps={steps} is not a multiple of --unroll_length={length}'
  )
  rules = {
    multiple: steps % length,
    '--search_trials replaces --learning_rate: leave it out': (
      used['search_trials'] and 'learning_rate' in given
    ),
    '--remat=blocks needs --nosecond_derivatives': (
      blocks and used['second_derivatives']
    ),
    '--remat=blocks needs --averaged=0': blocks and used.get('averaged'),
  }
  settings_lib.refuse(rules)


def help_text(experiment: Experiment, settings) -> str:
  """All flags by topic, with the values that a run has with these settings."""
  lines = [experiment.usage]
  for key, topic in settings._asdict().items():
    title = (type(topic).__doc__ or key).splitlines()[0].rstrip('.')
    flag, allowed = experiment.only.get(key, (None, ()))
    only = f' (--{flag}={" or ".join(map(str, allowed))})' * bool(flag)
    lines.append(f'{title}{only}:')
    words = {**settings_lib.helps(type(topic)), **experiment.words}
    hints = _hints(topic)
    for name, value in topic._asdict().items():
      lines += _entry(name, value, hints[name], words.get(name, ''))
    lines.append('')
  lines.append('Presets, the first by default:')
  for name, flags_of in experiment.presets.items():
    words = shlex.join(
      f'--{k}={one}'.replace(' ', _HARD_SPACE)
      for k, v in flags_of.items()
      for one in (v if isinstance(v, tuple) else (v,))
    )
    text = _fill(f'{name}: {words or "as shown above"}', 2)
    lines.append(text.replace(_HARD_SPACE, ' '))
  return '\n'.join(lines)


def _fill(text, indent):
  first, rest = ' ' * indent, ' ' * 6
  how = {'initial_indent': first, 'subsequent_indent': rest}
  return textwrap.fill(text, 79, break_on_hyphens=False, **how)


def _entry(name, value, hint, text):
  head = f'--{name}=' + ('VALUE' if value in (None, ()) else f'{value}')
  if isinstance(value, tuple) and value:
    head = ' '.join(f'--{name}={v!r}'.replace("'", '"') for v in value)
  if choices := _choices(hint):
    text = f'{text} One of {choices}.'
  return [_fill(head, 2), _fill(text, 6)]


def _choices(hint) -> str:
  """The values of a Literal, also inside of `tuple[..., ...]` and `| None`."""
  if typing.get_origin(hint) is typing.Literal:
    return ' | '.join(typing.get_args(hint))
  return ''.join(_choices(part) for part in typing.get_args(hint))


def _join_processes(hosts) -> None:
  def give_up():  # before jax does, which aborts the process with a core dump
    seconds = f'{hosts.multihost_timeout} s'
    message = f'error: --multihost: the others did not appear in {seconds}'
    print(message, file=sys.stderr, flush=True)
    os._exit(2)

  timer = threading.Timer(hosts.multihost_timeout, give_up)
  timer.daemon = True
  timer.start()
  try:
    where = hosts.coordinator, hosts.num_processes, hosts.process_id
    patience = hosts.multihost_timeout + 60
    jax.distributed.initialize(*where, initialization_timeout=patience)
  except (RuntimeError, ValueError) as error:
    raise UsageError(f'--multihost: {str(error).splitlines()[0]}') from None
  finally:
    timer.cancel()


def _check_surroundings() -> None:
  """What the environment must have; found out before anything is computed."""
  logging.getLogger('jax').setLevel('WARNING')  # tells of TPUs missed
  os.environ['MPLBACKEND'] = 'agg'  # files only, whatever the user has set
  if importlib.util.find_spec('matplotlib') is None:
    raise UsageError('the figures need matplotlib: pip install matplotlib')
  try:
    jax.devices()
  except (RuntimeError, AssertionError) as error:
    why = ' '.join(str(error).split()) or 'no such device'
    raise UsageError(f'jax: {why}') from None


def fail(message: object, status: int) -> typing.NoReturn:
  """Ends the program with one line."""
  with contextlib.suppress(OSError):
    print(f'error: {message}', file=sys.stderr, flush=True)
  sys.exit(status)


def run_guarded(main: Callable[[], None]) -> None:
  """Runs a program; what a user can fix becomes one line and a status."""
  signals.install()
  if hasattr(sys.stdout, 'reconfigure'):
    sys.stdout.reconfigure(errors='replace')  # terminals that lack ± and …
  try:
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


def run(main, experiment: Experiment, first=lambda settings: None) -> None:
  """Runs an experiment's main on the settings of the command line.

  Args:
    main: of the settings.
    experiment: the binary.
    first: what is to be done with the settings before JAX starts.
  """

  def program():
    settings, wants_help = parse(experiment, sys.argv)
    if wants_help:
      return say(help_text(experiment, settings))
    first(settings)
    hosts = getattr(settings, 'hosts', None)
    if hosts is not None and hosts.multihost:
      _join_processes(hosts)
    _check_surroundings()
    main(settings)

  run_guarded(program)
