"""Meta-training that can be stopped and resumed, and the selection of theta."""

import functools
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import progress as progress_lib
from experiments.common import run as run_lib
from experiments.common import settings as settings_lib
from experiments.common import signals
from experiments.common.cli import NonFinite, log
from experiments.common.problems import SCORES
from experiments.common.progress import Progress
from experiments.common.settings import UsageError
from l2o_jax import checkpoint
from l2o_jax.base import LearnedOptimizer, MetaTrainer, Optimizee

SAVE_PERIOD = 60.0  # seconds between checkpoints, at most


class Stage(NamedTuple):
  """Trainers and for how many epochs they work.

  Attributes:
    trainers: one for each family; they share their state.
    num_epochs: in all.
  """

  trainers: Sequence[MetaTrainer]
  num_epochs: int


class Training(NamedTuple):
  """What a run of meta-training is made of.

  Attributes:
    path: run directory.
    run: settings of the run.
    learned: the optimizer whose theta is trained.
    families: of optimizees, trained on: one in each epoch, in turn and in
      random order.
    validate: theta -> mean losses [K + 1] on fixed held-out tasks.
    by: 'final' or 'mean': by which of these losses theta is selected.
    margin: by how much it must be lower for a later theta to be selected.
    theta: to start from; None: a random one.
    stages: one after the other; theta goes from each into the next.
    sharding: what the trainers were given.
    facts: what theta.npz says of itself.
  """

  path: pathlib.Path
  run: settings_lib.Run
  learned: LearnedOptimizer
  families: Sequence[Optimizee]
  validate: Callable[[Any], jax.Array]
  by: str = 'final'
  margin: float = 0.0
  theta: Any = None
  stages: Sequence[Stage] = ()
  sharding: jax.sharding.NamedSharding | None = None
  facts: dict = {}


def prepare(experiment, settings, path, learned, families, **parts) -> Training:
  """A Training without stages; theta.npz will say what run.json says."""
  facts = {}
  if run_lib.is_writer():
    facts = run_lib.read_record(path)
    moving = ('seconds', 'finished', 'comparison_seconds', 'memory_mb')
    facts = {k: v for k, v in facts.items() if k not in moving}
  return Training(path, settings.run, learned, families, facts=facts, **parts)


def given_theta(learned: LearnedOptimizer, settings):
  """The weights that --theta names, for this very optimizer; None without.

  Raises:
    CheckpointError: it cannot be read, or is for another optimizer.
    UsageError: nothing has that name.
  """
  path = settings.run.theta
  if path is None:
    return None
  return run_lib.find_theta(path, expected=learned)[2]


def first_keys(seed: int) -> tuple[jax.Array, jax.Array]:
  """(key of every trainer's init, key of all epochs) of a run."""
  return tuple(jax.random.split(jax.random.key(seed)))


def meta_train(t: Training) -> Progress:
  """Runs the trainers and selects theta by validation.

  Epoch i draws from fold_in(key of all epochs, i) (`first_keys`).  Validation,
  every `evaluation_period` epochs from 0 on and at the end, is a function of
  theta alone.  So a run that was stopped and resumed is bitwise the same run.

  Args:
    t: the parts.

  Returns:
    The last Progress.

  Raises:
    signals.Stopped: a signal came; the state is saved.
    NonFinite: too many meta-steps in a row were skipped, or no theta has a
      finite validation loss; the state is saved.
  """
  key_init, key_epochs = first_keys(t.run.seed)
  first, progress = _resume(t, key_init)
  total = sum(stage.num_epochs for stage in t.stages)
  if _hopeless(t, progress):  # this is where the last session ended
    raise _no_gradient(t, first, total, progress)
  steps, clock = {}, Clock()
  with progress_lib.open_metrics(t.path, first) as metrics:
    for epoch in range(first, total + 1):
      _announce(epoch, total, saving=True)
      line = {'epoch': epoch}
      if epoch % t.run.evaluation_period == 0 or epoch == total:
        if epoch > first:  # before what may take long
          progress_lib.save(t, epoch, progress, metrics, clock)
        progress, found = _validate(t, epoch, progress, clock)
        line.update(found)
        log(_report(t, epoch, total, progress, found, clock))
      if epoch < total:
        which, stage = _family(t, epoch), _stage(t, epoch)
        optimizee = t.families[which]
        if which not in steps:
          trainer = t.stages[stage].trainers[which]
          parts = trainer, optimizee, epoch, key_epochs, progress
          steps[which] = _compile(*parts)
        step = functools.partial(steps[which], optimizee=optimizee, epoch=epoch)
        progress, found = _epoch(step, progress, clock)
        line.update(found)
        if (following := _stage(t, epoch + 1)) != stage:
          state = _state(t, following, key_init, progress.state.theta)
          steps, progress = {}, progress._replace(state=state)
      metrics.write(run_lib.as_json(line) + '\n')
      metrics.flush()
      _leave_if_asked(t, epoch, total, progress, metrics, clock)
    progress_lib.save(t, total, progress, metrics, clock)
  signals.announce('stopped; the same command resumes', saving=False)
  if not np.isfinite(progress.best):
    raise NonFinite(f'no theta has a finite validation loss; see {t.path}')
  return progress


class Clock:
  """Seconds of this session, without those of compilation.

  Attributes:
    saved: when the last checkpoint was written, or the session began.
    epochs: epochs done.
    training: seconds that they took.
    validation: seconds of the last validation.
  """

  def __init__(self):
    self.saved = time.monotonic()
    self.epochs, self.training, self.validation = 0, 0.0, 0.0


def _announce(epoch, total, *, saving):
  where = f'stopped after epoch {epoch} of {total}'
  signals.announce(f'{where}; the same command resumes', saving=saving)


def _stage(t, epoch):
  """Number of the stage that an epoch belongs to; the last one at the end."""
  ends = np.cumsum([stage.num_epochs for stage in t.stages])
  return min(int(np.searchsorted(ends, epoch, 'right')), len(ends) - 1)


def _state(t, stage, key, theta=None):
  """A trainer's first state; every stage starts from the same key."""
  state = t.stages[stage].trainers[0].init(key)
  if theta is not None:
    state = state._replace(theta=jax.tree.map(jnp.copy, theta))
  if t.sharding is None:
    return state
  replicated = t.sharding.update(spec=jax.sharding.PartitionSpec())
  return jax.device_put(state, replicated)


def _resume(t, key_init):
  """(epochs done, Progress) of the newest readable checkpoint, or the start."""
  directory, damaged = t.path / 'checkpoints', None
  if run_lib.is_writer():
    directory.mkdir(exist_ok=True)

  def start(stage):
    state = _state(t, stage, key_init, t.theta)
    best_theta = jax.tree.map(np.array, state.theta)
    zero = np.int64(0)
    return Progress(state, best_theta, np.float64(np.inf), zero, zero, zero)

  for path in reversed(progress_lib.checkpoints(directory)):
    try:
      epochs = int(checkpoint.metadata(path)['epochs'])
      progress = checkpoint.load(path, start(_stage(t, epochs)))
    except (checkpoint.CheckpointError, KeyError, TypeError) as error:
      damaged = f'{error}'
      log(f'{damaged}; trying the one before')
      continue
    log(f'resumed at epoch {epochs}')
    progress_lib.restore_theta(t, progress)
    return epochs, progress
  if damaged:
    raise UsageError(f'no checkpoint can be read: {damaged}')
  progress_lib.refuse_kept(t.path)
  return 0, start(0)


def _validate(t, epoch, progress, clock):
  """(progress with the best theta so far, what to add to the metrics)."""
  began = time.monotonic()
  # A copy: the next step donates the state.
  theta = jax.tree.map(np.array, progress.state.theta)
  curve = np.asarray(t.validate(theta), np.float64)
  found = {name: float(score(curve)) for name, score in SCORES.items()}
  clock.validation = time.monotonic() - began
  if found[t.by] < progress.best - t.margin:
    now, best = np.int64(epoch), np.float64(found[t.by])
    progress = progress._replace(best_theta=theta, best=best, best_epoch=now)
    progress_lib.write_theta(t, progress)
  return progress, {f'validation_{k}': v for k, v in found.items()}


def _report(t, epoch, total, progress, found, clock):
  """A validation as a line of the log."""
  losses = ', '.join(f'{k} loss {found[f"validation_{k}"]:.4g}' for k in SCORES)
  words = [f'epoch {epoch}/{total}  validation: {losses}']
  if epoch == 0:
    words.append('before any meta-training')
  else:
    best = f'{progress.best:.4g} at epoch {progress.best_epoch}'
    words.append(f'selected: {t.by} loss {best}')
  if progress.skipped:
    words.append(f'{progress.skipped} meta-steps skipped')
  if clock.epochs:
    each = clock.training / clock.epochs
    left = total - epoch
    validations = -(-left // t.run.evaluation_period)
    seconds = left * each + validations * clock.validation
    end = time.strftime('%H:%M', time.localtime(time.time() + seconds))
    words.append(f'{each:.2g} s/epoch' + f', ends at about {end}' * bool(left))
  return '; '.join(words)


def _family(t, epoch):
  """Number of the family that an epoch trains on, by seed and epoch.

  All families in random order, then all of them in another.
  """
  turn, place = divmod(epoch, len(t.families))
  random = np.random.default_rng((t.run.seed, turn))
  return int(random.permutation(len(t.families))[place])


def _compile(trainer, optimizee, epoch, key, progress):
  began = time.monotonic()
  log('compiling')

  @functools.partial(jax.jit, donate_argnums=0)
  def step(state, optimizee, epoch):
    return trainer.step(state, optimizee, jax.random.fold_in(key, epoch))

  step = step.lower(progress.state, optimizee=optimizee, epoch=epoch).compile()
  log(f'the step is compiled, in {time.monotonic() - began:.1f} s')
  return step


def _epoch(step, progress, clock):
  """(progress after an epoch, what to add to the metrics)."""
  began = time.monotonic()
  state, info = step(progress.state)
  skipped = np.asarray(info.skipped)
  trailing = int(np.cumprod(skipped[::-1]).sum())
  whole = trailing == skipped.size
  in_a_row = trailing + whole * int(progress.skipped_in_a_row)
  progress = progress._replace(
    state=state,
    skipped=progress.skipped + skipped.sum(),
    skipped_in_a_row=np.int64(in_a_row),
  )
  found = {
    'meta_loss': float(jnp.sum(info.meta_loss)),
    'skipped': int(progress.skipped),
    **{name: float(value) for name, value in info.summary.items()},
  }
  clock.training += time.monotonic() - began
  clock.epochs += 1
  return progress, found


def _leave_if_asked(t, epoch, total, progress, metrics, clock):
  """Saves when it is time to; raises where the run is to end here."""
  if epoch == total:
    return
  stop, hopeless = signals.received(), _hopeless(t, progress)
  late = time.monotonic() - clock.saved > SAVE_PERIOD
  if stop or hopeless or late:
    progress_lib.save(t, epoch + 1, progress, metrics, clock)
  if stop:
    _announce(epoch + 1, total, saving=True)
    raise signals.Stopped
  if hopeless:
    raise _no_gradient(t, epoch + 1, total, progress)


def _hopeless(t, progress) -> bool:
  return progress.skipped_in_a_row >= t.run.max_nonfinite


def _no_gradient(t, epoch, total, progress) -> NonFinite:
  return NonFinite(
    f'no finite meta-gradient in the last {progress.skipped_in_a_row} '
    f'meta-steps, at epoch {epoch} of {total}; the last good theta is in '
    f'{t.path / "checkpoints"}; a larger --max_nonfinite goes on'
  )
