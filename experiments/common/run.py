"""What the experiments share: run directory, meta-training, selection.

A run directory holds config.json (all flags), metrics.jsonl (one line per
epoch), checkpoints/ (state to resume from), best.npz (the selected theta); the
comparison adds curves.csv, summary.json and the figure.
"""

import json
import os
import pathlib
import sys
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tqdm
from absl import flags, logging

from experiments.common import signals
from experiments.common.cli import NonFinite, UsageError
from l2o_jax import checkpoint
from l2o_jax.evaluation import learning_curves
from l2o_jax.truncated_bptt import truncated_bptt

KEEP = 2  # checkpoints
SAVE_PERIOD = 60.0  # seconds between checkpoints, at most

# XLA's options for a program as large as a step of guided policy search, on a
# CPU: half the time to compile; see BUILD_NOTES.md for what it costs.
COMPILE_QUICKLY = {
  'xla_cpu_use_fusion_emitters': False,
  'xla_backend_optimization_level': 1,
}


def is_writer() -> bool:
  """Whether this process, of several, is the one that writes files."""
  return jax.process_index() == 0


def sharding(num_optimizees: int) -> jax.sharding.NamedSharding | None:
  """The optimizees spread over all devices; None where there is one of either.

  Raises:
    UsageError: they cannot be divided evenly.
  """
  count = jax.device_count()
  if num_optimizees == 1 and count > 1 and jax.process_count() == 1:
    logging.info(
      'uses 1 of %d devices; --num_optimizees=%d uses all', count, count
    )
  elif num_optimizees % count:
    raise UsageError(
      f'--num_optimizees={num_optimizees} is not a multiple of '
      f'the {count} devices'
    )
  if num_optimizees == 1 or count == 1:
    return None
  mesh = jax.make_mesh(
    (count,), ('optimizees',), axis_types=(jax.sharding.AxisType.Auto,)
  )
  return jax.sharding.NamedSharding(
    mesh, jax.sharding.PartitionSpec('optimizees')
  )


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
    if workdir.is_dir() and any(workdir.glob('checkpoints/*')):
      raise UsageError(f'{workdir} holds checkpoints but no config.json')
    if is_writer():
      workdir.mkdir(parents=True, exist_ok=True)
      write_json(config_file, settings)
    return workdir
  if resume == 'never':
    raise UsageError(f'--resume=never: there is a run in {workdir}')
  try:
    old = json.loads(config_file.read_text())
    different = [
      f'--{k}={old.get(k)} there, {settings.get(k)} here'
      for k in sorted(set(old) | set(settings))
      if old.get(k) != settings.get(k)
    ]
  except (ValueError, TypeError, AttributeError):
    raise UsageError(f'{config_file} is damaged') from None
  if different:
    raise UsageError(
      f'{workdir} holds a run with other flags: {"; ".join(different)}'
    )
  return workdir


def write_json(path, value) -> None:
  temporary = f'{path}.tmp'
  with open(temporary, 'w') as f:
    json.dump(value, f, indent=1)
    f.write('\n')
    f.flush()
    os.fsync(f.fileno())
  os.replace(temporary, path)


class Progress(NamedTuple):
  """A meta-training run after so many epochs: all that a checkpoint holds.

  Attributes:
    state: of the meta-trainer.
    best_theta: selected so far.
    best_loss: its validation loss.
    skipped: meta-steps without a finite meta-gradient, in all.
    skipped_in_a_row: the last of these that have no finite one after them.
  """

  state: object
  best_theta: object
  best_loss: np.ndarray
  skipped: np.ndarray
  skipped_in_a_row: np.ndarray


def meta_train(
  workdir,
  trainer,
  optimizee,
  validate,
  *,
  num_epochs,
  evaluation_period,
  seed,
  theta=None,
  max_nonfinite=100,
  sharding=None,
  select=lambda curve: curve[-1],
  cpu_options=None,
):
  """Runs a meta-trainer and selects theta by validation.

  Epoch i draws from fold_in(key(seed), i), and validation, every
  `evaluation_period` epochs from 0 on and at the end, is a function of theta
  alone: a run that was stopped and resumed is bitwise the same run.

  Args:
    workdir: where metrics.jsonl, checkpoints/ and best.npz go.
    trainer: MetaTrainer.
    optimizee: to train on.
    validate: theta -> mean losses [T + 1] on fixed held-out tasks, jitted.
    num_epochs: epochs.
    evaluation_period: epochs between validations.
    seed: of theta and of all tasks.
    theta: to start from instead of a random one.
    max_nonfinite: see the flag.
    sharding: what the trainer was given.
    select: mean losses [T + 1] -> what theta is selected by; the final one.
    cpu_options: of XLA, to compile the step with on a CPU, except those that
      the environment variable XLA_FLAGS sets.

  Returns:
    (theta with the lowest such validation loss, that loss).

  Raises:
    signals.Stopped: a signal came; the state is saved.
    NonFinite: too many meta-steps in a row were skipped; the state is saved.
  """
  key_init, key_epochs = jax.random.split(jax.random.key(seed))
  step = jax.jit(
    lambda state, optimizee, epoch: trainer.step(
      state, optimizee, jax.random.fold_in(key_epochs, epoch)
    ),
    donate_argnums=0,
  )
  state = trainer.init(key_init)
  if theta is not None:
    state = state._replace(theta=jax.tree.map(jnp.copy, theta))
  progress = Progress(
    state,
    jax.tree.map(np.array, state.theta),
    np.float64(np.inf),
    np.int64(0),
    np.int64(0),
  )
  directory = workdir / 'checkpoints'
  if is_writer():
    directory.mkdir(exist_ok=True)
  first, progress = _restore(directory, progress)
  if is_writer():
    _keep_metrics_before(workdir / 'metrics.jsonl', first)
  if first:
    logging.info('resumed at epoch %d of %d', first, num_epochs)
  if first < num_epochs:
    logging.info('compiling')
  if sharding is not None:
    progress = progress._replace(
      state=jax.device_put(
        progress.state, sharding.update(spec=jax.sharding.PartitionSpec())
      )
    )
  started = last_saved = time.monotonic()
  bar = tqdm.tqdm(
    total=num_epochs,
    initial=first,
    unit='epoch',
    disable=not (sys.stderr.isatty() and is_writer()),
  )
  with bar, _metrics(workdir) as metrics:
    for epoch in range(first, num_epochs + 1):
      signals.announce(
        f'stopped after epoch {epoch} of {num_epochs}; the same '
        'command resumes',
        saving=True,
      )
      line = {'epoch': epoch}
      if epoch % evaluation_period == 0 or epoch == num_epochs:
        if epoch > first:
          _save(directory, epoch, progress)  # before what may take long
          last_saved = time.monotonic()
        progress, found = _validate(workdir, epoch, progress, validate, select)
        line.update(found)
        logging.info(
          'epoch %d/%d  validation: final %.4g (best %.4g), sum %.4g%s  '
          '%.2f s/epoch',
          epoch,
          num_epochs,
          line['validation_final'],
          progress.best_loss,
          line['validation_sum'],
          f'  {progress.skipped} meta-steps skipped' * bool(progress.skipped),
          (time.monotonic() - started) / max(epoch - first, 1),
        )
      if epoch < num_epochs:
        if epoch == first:
          began = time.monotonic()
          step = _compile(
            step.lower(progress.state, optimizee, epoch), cpu_options or {}
          )
          logging.info(
            'the step is compiled, in %.1f s', time.monotonic() - began
          )
          started = time.monotonic()
        state, info = step(progress.state, optimizee, epoch)
        progress = _count_skipped(progress._replace(state=state), info.skipped)
        line.update(
          meta_loss=float(jnp.sum(info.meta_loss)),
          gradient_norm=float(jnp.max(info.gradient_norm)),
          skipped=int(progress.skipped),
          **{
            name: float(value)
            for name, value in info._asdict().items()
            if np.ndim(value) == 0
          },
        )
        bar.update()
      metrics.write(json.dumps(_without_nan(line)) + '\n')
      metrics.flush()
      stop = signals.received() and epoch < num_epochs
      hopeless = progress.skipped_in_a_row >= max_nonfinite
      late = time.monotonic() - last_saved > SAVE_PERIOD
      if epoch < num_epochs and (stop or hopeless or late):
        _save(directory, epoch + 1, progress)
        last_saved = time.monotonic()
      if stop:
        signals.announce(
          f'stopped after epoch {epoch + 1} of {num_epochs}; '
          'the same command resumes',
          saving=True,
        )
        raise signals.Stopped
      if hopeless:
        raise NonFinite(
          f'no finite meta-gradient in the last {progress.skipped_in_a_row} '
          f'meta-steps, at epoch {epoch + 1} of {num_epochs}; the last good '
          f'theta is in {directory}'
        )
  signals.announce('stopped; the same command resumes', saving=False)
  return progress.best_theta, float(progress.best_loss)


def _compile(lowered, cpu_options):
  given = os.environ.get('XLA_FLAGS', '')
  options = {
    name: value
    for name, value in cpu_options.items()
    if name not in given and jax.default_backend() == 'cpu'
  }
  try:
    return lowered.compile(compiler_options=options)
  except jax.errors.JaxRuntimeError as error:  # another version of XLA
    if 'No such compile option' not in str(error):
      raise
    logging.warning('compiled without %s: %s', options, error)
    return lowered.compile()


def _without_nan(line):
  """JSON knows no nan and inf: null."""
  return {k: v if np.isfinite(v) else None for k, v in line.items()}


def _metrics(workdir):
  name = workdir / 'metrics.jsonl' if is_writer() else os.devnull
  return open(name, 'a')


def _save(directory, epochs, progress):
  if is_writer():
    checkpoint.save(
      directory / f'{epochs:08d}.npz', progress, metadata={'epochs': epochs}
    )
    for old in sorted(directory.glob('*.npz'))[:-KEEP]:
      old.unlink()


def _validate(workdir, epoch, progress, validate, select):
  """(progress with the best theta so far, what to add to the metrics)."""
  # A copy: the next step donates the state.
  theta = jax.tree.map(np.array, progress.state.theta)
  curve = np.asarray(validate(theta), np.float64)
  if select(curve) < progress.best_loss:
    progress = progress._replace(best_theta=theta, best_loss=select(curve))
    if is_writer():
      checkpoint.save(
        workdir / 'best.npz',
        theta,
        metadata={
          'epochs': epoch,
          'validation_final_loss': curve[-1],
          'config': json.loads((workdir / 'config.json').read_text()),
        },
      )
  return progress, {
    'validation_final': curve[-1],
    'validation_sum': curve.sum(),
  }


def _count_skipped(progress, skipped):
  """Adds one epoch's flags [U] to the counts."""
  skipped = np.asarray(skipped)
  trailing = int(np.cumprod(skipped[::-1]).sum())
  in_a_row = trailing + (
    progress.skipped_in_a_row if trailing == skipped.size else 0
  )
  return progress._replace(
    skipped=progress.skipped + skipped.sum(),
    skipped_in_a_row=np.int64(in_a_row),
  )


def _restore(directory, like):
  """(epochs done, Progress) of the newest readable checkpoint."""
  damaged = None
  for path in sorted(directory.glob('*.npz'), reverse=True):
    try:
      progress = checkpoint.load(path, like)
      return int(checkpoint.metadata(path)['epochs']), progress
    except checkpoint.CheckpointError as error:
      logging.warning('%s; trying the one before', error)
      damaged = error
  if damaged:
    raise UsageError(f'no checkpoint can be read: {damaged}')
  return 0, like


def _keep_metrics_before(path, epoch):
  """Drops what will be written again, and a torn last line."""
  if not path.exists():
    return
  lines = path.read_bytes().splitlines(True)
  try:
    kept = [
      line
      for line in lines
      if line.endswith(b'\n') and json.loads(line)['epoch'] < epoch
    ]
  except (ValueError, KeyError, TypeError):
    raise UsageError(f'{path} is damaged') from None
  temporary = path.with_suffix('.tmp')
  with open(temporary, 'wb') as f:
    f.writelines(kept)
    f.flush()
    os.fsync(f.fileno())
  os.replace(temporary, path)


def make_trainer(learned, *, learning_rate, num_epochs, scale=1.0):
  """Truncated BPTT as the flags say, on Adam.

  Args:
    learned: the learned optimizer.
    learning_rate: meta learning rate.
    num_epochs: length of the learning-rate schedule.
    scale: of the meta-loss; 1/K where an optimizee sums K functions.
  """
  args = flags.FLAGS
  num_unrolls = args.num_steps // args.unroll_length
  weights = {
    'all': jnp.ones(args.num_steps + 1),
    'rising': jnp.geomspace(1.0, 100.0, args.num_steps + 1),
    'final': jnp.zeros(args.num_steps + 1).at[-1].set(1.0),
  }[args.weights] * scale
  if args.learning_rate_schedule == 'cosine':
    learning_rate = optax.cosine_decay_schedule(
      learning_rate, max(num_epochs * num_unrolls, 1), alpha=0.01
    )
  meta_optimizer = optax.adam(learning_rate)
  if args.clip_norm:
    meta_optimizer = optax.chain(
      optax.clip_by_global_norm(args.clip_norm), meta_optimizer
    )
  remat = {'none': False, 'step': True}.get(args.remat, args.remat)
  return truncated_bptt(
    learned,
    meta_optimizer,
    unroll_length=args.unroll_length,
    num_unrolls=num_unrolls,
    num_optimizees=args.num_optimizees,
    weights=weights,
    second_derivatives=args.second_derivatives,
    remat=remat,
    clip_each=args.clip_each or None,
    sharding=sharding(args.num_optimizees),
  )


def train(
  learned, optimizee, validation, *, settings, batch_size=None, scale=1.0
):
  """Opens the run directory, searches the meta learning rate, meta-trains.

  Whatever is wrong with flags and files is found before a directory is made.

  Args:
    learned: the learned optimizer.
    optimizee: to train on.
    validation: optimizee to select theta on.
    settings: what config.json holds.
    batch_size: validation tasks at a time; all by default.
    scale: see `make_trainer`.

  Returns:
    (run directory, theta, {'validation_final_loss', 'meta_learning_rate'}).
  """
  args = flags.FLAGS
  keys = jax.random.split(jax.random.key(1_000_001), args.num_validation)

  @jax.jit
  def mean_curve(theta, optimizee, keys):
    return jnp.mean(
      learning_curves(
        optimizee, learned.transform(theta), keys, args.num_steps, batch_size
      ),
      axis=0,
    )

  def validate(theta):
    return mean_curve(theta, validation, keys)

  theta = None
  if args.theta is not None:
    theta = checkpoint.load(args.theta, learned.init(jax.random.key(0)))
  sharding(args.num_optimizees)
  workdir = open_workdir(args.workdir, settings, args.resume)

  def one(directory, rate, num_epochs):
    trainer = make_trainer(
      learned, learning_rate=rate, num_epochs=num_epochs, scale=scale
    )
    return meta_train(
      directory,
      trainer,
      optimizee,
      validate,
      num_epochs=num_epochs,
      evaluation_period=args.evaluation_period,
      seed=args.seed,
      theta=theta,
      max_nonfinite=args.max_nonfinite,
      sharding=sharding(args.num_optimizees),
    )

  rate = args.learning_rate
  if args.search_trials:
    rates = 10 ** np.random.default_rng(args.seed).uniform(
      -4, -2, args.search_trials
    )
    losses = []
    for i, candidate in enumerate(rates):
      directory = workdir / 'search' / f'{i:02d}'
      if is_writer():
        directory.mkdir(parents=True, exist_ok=True)
        write_json(
          directory / 'config.json',
          {'learning_rate': candidate, 'epochs': args.search_epochs},
        )
      losses.append(one(directory, candidate, args.search_epochs)[1])
      logging.info(
        'search %d/%d: meta learning rate %.3g gives %.4g',
        i + 1,
        args.search_trials,
        candidate,
        losses[-1],
      )
    rate = float(rates[np.argmin(losses)])
  theta, loss = one(workdir, rate, args.num_epochs)
  if jax.process_count() > 1:  # the rest is the writer's, at its own pace
    jax.distributed.shutdown()
  return (
    workdir,
    theta,
    {'validation_final_loss': loss, 'meta_learning_rate': rate},
  )
