"""What the experiments share: flags, run directory, meta-training.

A run directory holds config.json (all flags), metrics.jsonl (one line per
epoch), checkpoints/ (state to resume from), best.npz (the selected theta); the
comparison adds curves.csv, summary.json and the figure.
"""

import json
import logging as python_logging
import math
import os
import pathlib
import signal
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tqdm
from absl import app, flags, logging

from l2o_jax import checkpoint
from l2o_jax.datasets import DatasetError
from l2o_jax.evaluation import learning_curves
from l2o_jax.truncated_bptt import truncated_bptt

KEEP = 2  # checkpoints

_BOOKKEEPING = ('workdir', 'resume', 'data_dir')  # do not change results


class UsageError(ValueError):
  """What a user can mend; shown as one line, exit status 2."""


class Stopped(Exception):
  """A signal asked the run to stop; its state is saved."""


def define_flags(presets: dict[str, dict], default_workdir: str) -> None:
  """The flags of every experiment; names as in the original where it has them.

  Args:
    presets: {name: {flag: value}}; the first is the default.  A flag given on
      the command line wins over its preset.
    default_workdir: default of --workdir.
  """
  flags.DEFINE_enum(
      'preset', next(iter(presets)), list(presets),
      'Values of all flags that are not given: ' + '; '.join(
          f'{name} = ' + ' '.join(f'--{k}={v}' for k, v in values.items())
          for name, values in presets.items()) + '.')
  flags.DEFINE_string(
      'workdir', default_workdir, 'Run directory, made if missing.')
  flags.DEFINE_enum(
      'resume', 'auto', ['auto', 'never', 'must'],
      'auto: go on from the newest checkpoint in --workdir if there is one; '
      'never: refuse a --workdir with a run in it; must: refuse one without.')
  flags.DEFINE_integer(
      'seed', 0, 'Random seed, >= 0; fixes theta at the start and all tasks of '
      'meta-training.  Validation, tuning and test tasks do not depend on it.',
      lower_bound=0)
  flags.DEFINE_integer(
      'num_epochs', 1000, 'Epochs of meta-training, >= 0; one epoch is one run '
      'of --num_steps; more is better and longer.', lower_bound=0)
  flags.DEFINE_integer(
      'num_steps', 100, 'Optimizee steps per epoch and in validation, >= 1; a '
      'multiple of --unroll_length.', lower_bound=1)
  flags.DEFINE_integer(
      'unroll_length', 20, 'Steps that the meta-gradient goes back, >= 1; '
      'there is one meta-step per unroll.', lower_bound=1)
  flags.DEFINE_float(
      'learning_rate', 3e-3, 'Meta learning rate of Adam, > 0.',
      lower_bound=1e-12, upper_bound=1e3)
  flags.DEFINE_enum(
      'learning_rate_schedule', 'cosine', ['cosine', 'constant'],
      'cosine: the meta learning rate falls to 1 % over the run; constant: as '
      'the released code.')
  flags.DEFINE_float(
      'clip_norm', 1.0, 'Global norm to which a meta-gradient is clipped, '
      '>= 0; 0: never, as the released code.', lower_bound=0.0,
      upper_bound=1e30)
  flags.DEFINE_integer(
      'search_trials', 0, 'Random search of the meta learning rate, >= 0 '
      'trials: each draws a rate log-uniformly from [1e-4, 1e-2] and runs '
      '--search_epochs; the best by validation replaces --learning_rate.  '
      '0: no search.', lower_bound=0)
  flags.DEFINE_integer(
      'search_epochs', 100, 'Epochs of each trial of the search, >= 1.',
      lower_bound=1)
  flags.DEFINE_enum(
      'weights', 'all', ['all', 'rising', 'final'], 'Weights w_t of the losses '
      'in the meta-loss; all: ones; rising: from 1 to 10 linearly over the run; '
      'final: the last loss alone.')
  flags.DEFINE_float(
      'output_scale', None, 'Factor of the LSTM\'s output, > 0; smaller means '
      'smaller steps at the start.', lower_bound=1e-12, upper_bound=1e6)
  flags.DEFINE_bool(
      'second_derivatives', False, 'Keep the optimizee\'s second derivatives '
      'in the meta-gradient; slower.')
  flags.DEFINE_bool(
      'remat', True, 'Recompute each step in the backward pass; less memory '
      'and on a CPU faster.')
  flags.DEFINE_integer(
      'evaluation_period', 100, 'Epochs between validations, each with a log '
      'line and a checkpoint, >= 1.', lower_bound=1)
  flags.DEFINE_integer(
      'num_validation', 128, 'Validation tasks, >= 1; theta with the best mean '
      'final loss on them is kept.', lower_bound=1)
  flags.DEFINE_integer(
      'num_tuning', 64, 'Tasks on which a baseline\'s learning rate is tuned, '
      '>= 1.', lower_bound=1)
  flags.DEFINE_integer(
      'num_test', 1024, 'Unseen tasks of the final comparison, >= 1.',
      lower_bound=1)


def _apply_preset(presets):
  for name, value in presets[flags.FLAGS.preset].items():
    if not flags.FLAGS[name].present:
      flags.FLAGS.set_default(name, value)


def _check_flags():
  for name, value in config().items():
    if isinstance(value, float) and not math.isfinite(value):
      raise UsageError(f'--{name} must be finite, got {value}')
  args = flags.FLAGS
  if args.num_steps % args.unroll_length:
    raise UsageError(f'--num_steps={args.num_steps} is not a multiple of '
                     f'--unroll_length={args.unroll_length}')


def config() -> dict:
  """All flags of the experiment that bear on its results."""
  return {flag.name: flag.value
          for flag in flags.FLAGS.get_key_flags_for_module(sys.argv[0])
          if flag.name not in _BOOKKEEPING}


def run(main: Callable[[], None], presets: dict[str, dict], usage: str):
  """Runs an experiment's main; what a user can mend becomes one line.

  Exit status: 0 done, 2 usage, 130 or 143 stopped by a signal (resumable).
  """
  def wrapped(argv):
    if len(argv) > 1:
      raise app.UsageError(f'unexpected arguments: {" ".join(argv[1:])}')
    _apply_preset(presets)
    try:
      _check_flags()
      main()
    except (UsageError, DatasetError, checkpoint.CheckpointError) as error:
      print(f'error: {error}', file=sys.stderr)
      sys.exit(2)
    except OSError as error:
      print(f'error: {error}', file=sys.stderr)
      sys.exit(1)
    except Stopped as stopped:
      print(stopped, file=sys.stderr)
      sys.exit(128 + stopped.args[1])

  logging.set_verbosity(logging.INFO)
  python_logging.getLogger('jax').setLevel('WARNING')  # tells of TPUs missed
  sys.modules['__main__'].__doc__ = usage
  app.run(wrapped)


def open_workdir(path: str, settings: dict, resume: str) -> pathlib.Path:
  """Makes a run directory, or takes up one with the same configuration.

  Raises:
    UsageError: it holds another configuration, or --resume forbids it.
  """
  workdir = pathlib.Path(path)
  config_file = workdir / 'config.json'
  if not config_file.exists():
    if resume == 'must':
      raise UsageError(f'--resume=must: there is no run in {workdir}')
    workdir.mkdir(parents=True, exist_ok=True)
    write_json(config_file, settings)
    return workdir
  if resume == 'never':
    raise UsageError(f'--resume=never: there is a run in {workdir}')
  try:
    old = json.loads(config_file.read_text())
  except ValueError:
    raise UsageError(f'{config_file} is damaged') from None
  different = [f'--{k}={old.get(k)} there, {settings.get(k)} here'
               for k in sorted(set(old) | set(settings))
               if old.get(k) != settings.get(k)]
  if different:
    raise UsageError(f'{workdir} holds a run with other flags: '
                     f'{"; ".join(different)}')
  return workdir


def write_json(path, value) -> None:
  temporary = f'{path}.tmp'
  with open(temporary, 'w') as f:
    json.dump(value, f, indent=1)
    f.write('\n')
  os.replace(temporary, path)


class _Signals:
  """Turns SIGINT and SIGTERM into a flag that the loop looks at."""

  def __enter__(self):
    self.received = None
    self.old = {s: signal.signal(s, self._handle)
                for s in (signal.SIGINT, signal.SIGTERM)}
    return self

  def _handle(self, number, frame):
    if self.received:  # the second time: at once
      os._exit(128 + number)
    self.received = number

  def __exit__(self, *unused):
    for number, handler in self.old.items():
      signal.signal(number, handler)


class Progress(NamedTuple):
  """The state of a meta-training run, all that a checkpoint holds."""
  state: object
  best_theta: object
  best_loss: np.ndarray


def meta_train(workdir, trainer, optimizee, validate, *, num_epochs,
               evaluation_period, seed):
  """Runs a meta-trainer and selects theta by validation.

  Epoch i draws from fold_in(key(seed), i), so a run that was stopped and
  resumed is the same run.

  Args:
    workdir: where metrics.jsonl, checkpoints/ and best.npz go.
    trainer: MetaTrainer.
    optimizee: to train on.
    validate: theta -> mean losses [T + 1] on fixed held-out tasks, jitted.
    num_epochs: epochs.
    evaluation_period: epochs between validations.
    seed: of theta and of all tasks.

  Returns:
    (theta with the lowest final validation loss, that loss).

  Raises:
    Stopped: a signal came; the state is saved.
  """
  key_init, key_epochs = jax.random.split(jax.random.key(seed))
  step = jax.jit(
      lambda state, optimizee, epoch: trainer.step(
          state, optimizee, jax.random.fold_in(key_epochs, epoch)),
      donate_argnums=0)
  state = trainer.init(key_init)
  progress = Progress(state, state.theta, np.float64(np.inf))
  directory = workdir / 'checkpoints'
  directory.mkdir(exist_ok=True)
  first, progress = _restore(directory, progress)
  _keep_metrics_before(workdir / 'metrics.jsonl', first)
  if first:
    logging.info('resumed at epoch %d of %d', first, num_epochs)
  state, best_theta, best_loss = progress
  best_theta = jax.tree.map(jnp.copy, best_theta)
  if first < num_epochs:
    logging.info('compiling; the first epoch takes some seconds longer')

  def save(epochs):
    checkpoint.save(directory / f'{epochs:08d}.npz',
                    Progress(state, best_theta, best_loss),
                    metadata={'epochs': epochs})
    for old in sorted(directory.glob('*.npz'))[:-KEEP]:
      old.unlink()

  started = time.monotonic()
  bar = tqdm.tqdm(total=num_epochs, initial=first, unit='epoch',
                  disable=not sys.stderr.isatty())
  with _Signals() as signals, open(workdir / 'metrics.jsonl', 'a') as metrics:
    for epoch in range(first, num_epochs):
      state, info = step(state, optimizee, epoch)
      line = {'epoch': epoch, 'meta_loss': float(jnp.sum(info.meta_loss)),
              'final_loss': float(jnp.mean(info.losses[-1, :, -1])),
              'gradient_norm': float(jnp.max(info.gradient_norm))}
      done = epoch + 1
      if done % evaluation_period == 0 or done == num_epochs:
        validation = np.asarray(validate(state.theta), np.float64)
        line['validation_final'] = validation[-1]
        line['validation_sum'] = validation.sum()
        if validation[-1] < best_loss:
          best_loss = np.float64(validation[-1])
          best_theta = jax.tree.map(jnp.copy, state.theta)
          checkpoint.save(workdir / 'best.npz', best_theta, metadata={
              'epochs': done, 'validation_final_loss': float(best_loss),
              'config': json.loads((workdir / 'config.json').read_text())})
        logging.info(
            'epoch %d/%d  meta-loss %.4g  validation: final %.4g (best %.4g), '
            'sum %.4g  %.2f s/epoch', done, num_epochs, line['meta_loss'],
            validation[-1], best_loss, validation.sum(),
            (time.monotonic() - started) / (done - first))
      metrics.write(json.dumps(line) + '\n')
      metrics.flush()
      bar.update()
      if 'validation_final' in line or signals.received:
        save(done)
      if signals.received and done < num_epochs:
        raise Stopped(f'stopped after epoch {done} of {num_epochs}; the same '
                      'command resumes', signals.received)
  bar.close()
  return best_theta, float(best_loss)


def _restore(directory, like):
  """(epochs done, Progress) of the newest readable checkpoint."""
  for path in sorted(directory.glob('*.npz'), reverse=True):
    try:
      progress = checkpoint.load(path, like)
      return int(checkpoint.metadata(path)['epochs']), progress
    except checkpoint.CheckpointError as error:
      logging.warning('%s; trying the one before', error)
      damaged = error
  if any(directory.glob('*.npz')):
    raise UsageError(f'no checkpoint can be read: {damaged}')
  return 0, like


def _keep_metrics_before(path, epoch):
  if path.exists():
    lines = [line for line in path.read_text().splitlines(True)
             if line.endswith('\n') and json.loads(line)['epoch'] < epoch]
    temporary = path.with_suffix('.tmp')
    temporary.write_text(''.join(lines))
    os.replace(temporary, path)


def make_trainer(learned, *, learning_rate, num_epochs, scale=1.0,
                 num_optimizees=1):
  """Truncated BPTT as the flags say, on Adam.

  Args:
    learned: the learned optimizer.
    learning_rate: meta learning rate.
    num_epochs: length of the learning-rate schedule.
    scale: of the meta-loss; 1/K where an optimizee sums K functions.
    num_optimizees: B.
  """
  args = flags.FLAGS
  num_unrolls = args.num_steps // args.unroll_length
  weights = {'all': jnp.ones(args.num_steps + 1),
             'rising': jnp.linspace(1.0, 10.0, args.num_steps + 1),
             'final': jnp.zeros(args.num_steps + 1).at[-1].set(1.0),
             }[args.weights] * scale
  if args.learning_rate_schedule == 'cosine':
    learning_rate = optax.cosine_decay_schedule(
        learning_rate, max(num_epochs * num_unrolls, 1), alpha=0.01)
  meta_optimizer = optax.adam(learning_rate)
  if args.clip_norm:
    meta_optimizer = optax.chain(
        optax.clip_by_global_norm(args.clip_norm), meta_optimizer)
  return truncated_bptt(
      learned, meta_optimizer, unroll_length=args.unroll_length,
      num_unrolls=num_unrolls, num_optimizees=num_optimizees, weights=weights,
      second_derivatives=args.second_derivatives, remat=args.remat)


def train(workdir, learned, optimizee, validation, *, batch_size=None,
          **trainer_args):
  """Searches the meta learning rate if asked to, then meta-trains.

  Args:
    workdir: the run directory.
    learned: the learned optimizer.
    optimizee: to train on.
    validation: optimizee to select theta on.
    batch_size: validation tasks at a time; all by default.
    **trainer_args: of `make_trainer`.

  Returns:
    (theta, its final validation loss, the meta learning rate).
  """
  args = flags.FLAGS
  keys = jax.random.split(jax.random.key(1_000_001), args.num_validation)

  @jax.jit
  def mean_curve(theta, optimizee, keys):
    return jnp.mean(learning_curves(optimizee, learned.transform(theta), keys,
                                    args.num_steps, batch_size), axis=0)

  def validate(theta):
    return mean_curve(theta, validation, keys)

  def one(directory, rate, num_epochs):
    trainer = make_trainer(learned, learning_rate=rate, num_epochs=num_epochs,
                           **trainer_args)
    return meta_train(
        directory, trainer, optimizee, validate, num_epochs=num_epochs,
        evaluation_period=args.evaluation_period, seed=args.seed)

  rate = args.learning_rate
  if args.search_trials:
    rates = 10 ** np.random.default_rng(args.seed).uniform(
        -4, -2, args.search_trials)
    losses = []
    for i, candidate in enumerate(rates):
      directory = workdir / 'search' / f'{i:02d}'
      directory.mkdir(parents=True, exist_ok=True)
      write_json(directory / 'config.json',
                 {'learning_rate': candidate, 'epochs': args.search_epochs})
      losses.append(one(directory, candidate, args.search_epochs)[1])
      logging.info('search %d/%d: meta learning rate %.3g gives %.4g', i + 1,
                   args.search_trials, candidate, losses[-1])
    rate = float(rates[np.argmin(losses)])
  theta, loss = one(workdir, rate, args.num_epochs)
  return theta, loss, rate
