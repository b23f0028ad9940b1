"""Flags: a NamedTuple for each topic, read once from the command line.

The fields of a topic are the flags, their annotations the allowed values, the
docstring their help.  `Settings` of an experiment is a NamedTuple of topics;
everything below `main` takes it, or one of its topics, as an argument.
"""

import inspect
import re
import shlex
from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple

Count = Annotated[int, 1, 10**7]
Whole = Annotated[int, 0, 10**7]
Positive = Annotated[float, 1e-12, 1e6]
NotNegative = Annotated[float, 0.0, 1e30]

# What does not change results.
_BOOKKEEPING = ('workdir', 'resume', 'max_nonfinite', 'data_dir')


class UsageError(ValueError):
  """What a user can fix; shown as one line, exit status 2."""


class Experiment(NamedTuple):
  """A binary.

  Attributes:
    name: python -m experiments.NAME.
    defaults: Settings.
    presets: {name: {flag: value}}; the first is the default.
    usage: opens the help.
    only: {topic: (flag, values)}: the topic's flags are read only where that
      flag has one of these values.
    check: Settings -> None; raises UsageError for flags that contradict.
    words: {flag: help} of flags that mean something else here.
  """

  name: str
  defaults: Any
  presets: dict[str, dict]
  usage: str
  only: dict[str, tuple[str, tuple]] = {}
  check: Callable[[Any], None] = lambda settings: None
  words: dict[str, str] = {}


class Run(NamedTuple):
  """The run.

  Attributes:
    preset: Values of the flags that are not given; see below.
    workdir: Run directory, made if missing.
    resume: auto: go on from the newest checkpoint in --workdir if there is one;
      never: refuse a --workdir with a run in it; must: refuse one without.
    theta: Theta to start from: a file of theta, a run directory or a name of
      l2o_jax.pretrained; a random theta by default.
    seed: Random seed, >= 0, of theta at the start and of all tasks of
      meta-training.  Validation, tuning and test tasks do not depend on it.
    num_epochs: Epochs of meta-training, >= 0; one epoch is one run of
      --num_steps.
    num_steps: Optimizee steps in an epoch and in validation, >= 1.
    evaluation_period: Epochs between validations, each with a log line and a
      checkpoint, >= 1.
    num_validation: Validation tasks, >= 1; the theta that is best on them is
      kept.
    max_nonfinite: Meta-steps in a row without a finite meta-gradient, >= 1,
      after which the run ends with status 3.  Each is skipped and counted.
  """

  preset: str = ''
  workdir: str = 'runs/run'
  resume: Literal['auto', 'never', 'must'] = 'auto'
  theta: str | None = None
  seed: Annotated[int, 0, 2**32 - 1] = 0
  num_epochs: Whole = 1000
  num_steps: Count = 100
  evaluation_period: Count = 100
  num_validation: Count = 128
  max_nonfinite: Count = 100


class Lstm(NamedTuple):
  """Learned optimizer.

  Attributes:
    output_scale: Factor of the LSTM's output, > 0; smaller means smaller steps
      at the start.
    preprocessing_p: p of the gradient's preprocessing, > 0: gradients under
      exp(-p) are seen linearly.
    averaged: Cells of the 20 in each layer that are averaged over all
      coordinates (appendix D), >= 0; 0: each coordinate on its own.
  """

  output_scale: Positive = 0.01
  preprocessing_p: Annotated[float, 1e-3, 50.0] = 7.0
  averaged: Annotated[int, 0, 20] = 0


class Optimizer(NamedTuple):
  """Which learned optimizer.

  Attributes:
    optimizer: lstm: the paper's, on logarithm and sign of the gradient; gated:
      schedule-free Adam with a memory of twenty steps, whose step lengths are
      set by an LSTM.
  """

  optimizer: Literal['lstm', 'gated'] = 'lstm'


class Gate(NamedTuple):
  """Gate.

  Attributes:
    units: Units of the LSTM in the gate, >= 0; 0: no LSTM.
  """

  units: Whole = 8


# Of an experiment with the topics above: the optimizer's own flags.
ONLY_OPTIMIZER = {
  'lstm': ('optimizer', ('lstm',)),
  'gate': ('optimizer', ('gated',)),
}


class Bptt(NamedTuple):
  """Truncated back-propagation through time.

  Attributes:
    unroll_length: Steps that the meta-gradient goes back, >= 1, a divisor of
      --num_steps; there is one meta-step per unroll.
    learning_rate: Meta learning rate of Adam, > 0.
    learning_rate_schedule: cosine: the meta learning rate falls to 1 % over the
      run; constant: as in the released code.
    clip_norm: Global norm to which a meta-gradient is clipped, >= 0; 0: never,
      as in the released code.
    clip_each: Norm to which each optimizee's own meta-gradient is clipped
      before the mean over --num_optimizees, >= 0; 0: never.
    weights: Weights w_t of the losses in the meta-loss; all: ones; rising: from
      1 to 100 along the run, by a constant factor a step; final: the last loss
      alone.
    second_derivatives: Keep the optimizee's second derivatives in the
      meta-gradient; slower.
    num_optimizees: Optimizees in parallel, >= 1; spread over all devices, so a
      multiple of their number where there are several.
    remat: What the backward pass computes again; none: nothing; step: the
      inside of each step, with less memory and on a CPU faster; segments: all
      but the state of every sqrt(--unroll_length) steps, with the least memory;
      blocks: as step, a block of coordinates after the other, not with
      --second_derivatives.
    search_trials: Random search of the meta learning rate, >= 0 trials: each
      draws a rate log-uniformly from [1e-4, 1e-2] and runs --search_epochs; the
      best by validation replaces --learning_rate.  0: no search.
    search_epochs: Epochs of each trial of the search, >= 1.
  """

  unroll_length: Count = 20
  learning_rate: Positive = 3e-3
  learning_rate_schedule: Literal['cosine', 'constant'] = 'cosine'
  clip_norm: NotNegative = 1.0
  clip_each: NotNegative = 0.0
  weights: Literal['all', 'rising', 'final'] = 'all'
  second_derivatives: bool = False
  num_optimizees: Count = 1
  remat: Literal['none', 'step', 'segments', 'blocks'] = 'step'
  search_trials: Whole = 0
  search_epochs: Count = 100


class Hosts(NamedTuple):
  """Several hosts.

  Attributes:
    multihost: Run with other processes: jax.distributed finds them on TPUs,
      Slurm and the like; elsewhere it needs the flags below.
    coordinator: host:port of process 0.
    num_processes: Number of processes, >= 1.
    process_id: Number of this process, from 0.
    multihost_timeout: Seconds to wait for the other processes, >= 1.
  """

  multihost: bool = False
  coordinator: str | None = None
  num_processes: Count | None = None
  process_id: Whole | None = None
  multihost_timeout: Count = 300


def refuse(rules: dict[str, Any]) -> None:
  """Raises UsageError with the first message whose condition holds."""
  for message, wrong in rules.items():
    if wrong:
      raise UsageError(message)


def helps(topic: type) -> dict[str, str]:
  """{flag: help} of a topic's docstring, paragraphs as one line each."""
  _, _, text = (inspect.getdoc(topic) or '').partition('Attributes:\n')
  found = re.findall(r'^  (\w+): (.*(?:\n    .*)*)', text, re.MULTILINE)
  return {name: ' '.join(words.split()) for name, words in found}


def flat(settings) -> dict[str, Any]:
  """{flag: value} of all topics."""
  return {k: v for topic in settings for k, v in topic._asdict().items()}


def replace(settings, values: dict[str, Any]):
  """Settings with other values of some flags."""
  of = lambda topic: {k: v for k, v in values.items() if k in topic._fields}
  return type(settings)(*(topic._replace(**of(topic)) for topic in settings))


def preset(experiment: Experiment, name: str | None = None):
  """Settings of a preset; by default those of a bare command."""
  name = name or next(iter(experiment.presets))
  values = {'preset': name, **experiment.presets[name]}
  return replace(experiment.defaults, values)


def unused(experiment: Experiment, settings) -> dict[str, str]:
  """{flag that is not read with these settings: what it is for}."""
  values, found = flat(settings), {}
  for topic, (flag, allowed) in experiment.only.items():
    if values[flag] not in allowed:
      what = f'--{flag}=' + ' or '.join(map(str, allowed))
      found.update(dict.fromkeys(getattr(settings, topic)._fields, what))
  return found


def recorded(experiment: Experiment, settings) -> dict[str, Any]:
  """The flags that bear on results, as JSON has them."""
  skipped = {*_BOOKKEEPING, *Hosts._fields, *unused(experiment, settings)}
  return {
    name: list(value) if isinstance(value, tuple) else value
    for name, value in flat(settings).items()
    if name not in skipped
  }


def restored(experiment: Experiment, flags: dict[str, Any]):
  """The inverse of `recorded`; what is not there is as in the preset.

  A preset that is no longer there counts as the default.
  """
  name = flags.get('preset')
  start = preset(experiment, name if name in experiment.presets else None)
  tuples = {k for k, v in flat(start).items() if isinstance(v, tuple)}
  values = {k: tuple(v) if k in tuples else v for k, v in flags.items()}
  return replace(start, values)


def command(experiment: Experiment, settings) -> str:
  """What to type for these settings, in any directory; defaults left out."""
  left_out = {'preset', *_BOOKKEEPING, *Hosts._fields}
  default = flat(preset(experiment, settings.run.preset or None))
  words = ['python', '-m', f'experiments.{experiment.name}']
  if settings.run.preset not in ('', next(iter(experiment.presets))):
    words.append(f'--preset={settings.run.preset}')
  for name, value in flat(settings).items():
    if value != default[name] and name not in left_out:
      if isinstance(value, bool):
        words.append(f'--{name}' if value else f'--no{name}')
      else:
        several = value if isinstance(value, tuple) else (value,)
        words += [f'--{name}={one}' for one in several]
  return shlex.join(words)
