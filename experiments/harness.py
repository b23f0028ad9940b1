"""What the experiments share: run directory, meta-training, selection.

A run directory holds config.json (all flags), metrics.jsonl (one line per
epoch), checkpoints/ (state to resume from), best.npz (the selected theta); the
comparison adds curves.csv, summary.json and the figure.
"""

import json
import os
import pathlib
import signal
import sys
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tqdm
from absl import flags, logging

from experiments.cli import Stopped, UsageError
from l2o_jax import checkpoint
from l2o_jax.evaluation import learning_curves
from l2o_jax.truncated_bptt import truncated_bptt

KEEP = 2  # checkpoints

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
               evaluation_period, seed, theta=None):
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
    theta: to start from instead of a random one; the first candidate.

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
  if theta is not None:
    state = state._replace(theta=jax.tree.map(jnp.copy, theta))
  best_loss = np.inf if theta is None else validate(theta)[-1]
  progress = Progress(state, state.theta, np.float64(best_loss))
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
             'rising': jnp.geomspace(1.0, 100.0, args.num_steps + 1),
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

  theta = None
  if args.theta is not None:
    theta = checkpoint.load(args.theta, learned.init(jax.random.key(0)))

  def one(directory, rate, num_epochs):
    trainer = make_trainer(learned, learning_rate=rate, num_epochs=num_epochs,
                           **trainer_args)
    return meta_train(
        directory, trainer, optimizee, validate, num_epochs=num_epochs,
        evaluation_period=args.evaluation_period, seed=args.seed,
        theta=theta)

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
