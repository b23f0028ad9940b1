"""The files of meta-training: checkpoints, metrics.jsonl, theta.npz."""

import json
import os
import re
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.common import run as run_lib
from experiments.common.cli import log
from experiments.common.settings import UsageError
from l2o_jax import checkpoint
from l2o_jax.theta_files import load_learned, save_learned

KEEP = 2  # checkpoints


class Progress(NamedTuple):
  """A run after so many epochs: all that a checkpoint holds.

  Attributes:
    state: of the stage's trainer.
    best_theta: selected so far.
    best: its validation loss; infinite if there was no finite one.
    best_epoch: its epoch.
    skipped: meta-steps without a finite meta-gradient, in all.
    skipped_in_a_row: how many of them since the last one with a finite
      meta-gradient.
  """

  state: Any
  best_theta: Any
  best: np.ndarray
  best_epoch: np.ndarray
  skipped: np.ndarray
  skipped_in_a_row: np.ndarray


def checkpoints(directory):
  """Our own files, oldest first; other files are ignored."""
  ours = re.compile(r'\d{8}\.npz')
  return sorted(p for p in directory.glob('*.npz') if ours.fullmatch(p.name))


def restore_theta(t, progress):
  """Writes theta.npz again if it is lost, damaged or of another epoch."""
  if not (np.isfinite(progress.best) and run_lib.is_writer()):
    return
  try:
    _, found = load_learned(t.path / 'theta.npz', t.learned)
    same = jax.tree.map(np.array_equal, found, progress.best_theta)
    if all(jax.tree.leaves(same)):
      return
    reason = 'theta.npz is of another epoch'
  except checkpoint.CheckpointError as error:
    reason = str(error)
  log(f'{reason}; written again from the checkpoint')
  write_theta(t, progress)


def write_theta(t, progress):
  if run_lib.is_writer():
    what = {'epochs': int(progress.best_epoch), 'validation_loss': t.by}
    facts = t.facts | what | {'validation': float(progress.best)}
    save_learned(t.path / 'theta.npz', t.learned, progress.best_theta, facts)


def refuse_kept(path):
  """A run without checkpoints must not have trained weights to lose.

  Raises:
    UsageError: it has.
  """
  try:
    epochs = checkpoint.metadata(path / 'theta.npz').get('epochs', True)
  except (checkpoint.CheckpointError, AttributeError):
    return
  record = path / 'run.json'
  kept = record.exists() and run_lib.read_record(path).get('finished')
  if epochs or kept:
    raise UsageError(
      f'{path} has trained weights, but no checkpoints to resume from: they '
      'would be overwritten; choose another --workdir'
    )


def open_metrics(path, first):
  """metrics.jsonl, open for the lines from epoch `first` on."""
  if not run_lib.is_writer():
    return open(os.devnull, 'a')
  file = path / 'metrics.jsonl'
  if file.exists():
    run_lib.write(file, ''.join(_whole_lines(file, first)))
  elif first:
    raise UsageError(f'{file} is lost; the run cannot be resumed without it')
  return open(file, 'a')


def _whole_lines(file, first):
  """The lines of epochs 0 ... first - 1; what follows will be written again.

  Raises:
    UsageError: one is missing, or there are two that differ.
  """
  found = {}
  for line in run_lib.read_text(file).splitlines(True):
    try:
      epoch = json.loads(line)['epoch']
      ours = line.endswith('\n') and 0 <= epoch < first
    except (ValueError, KeyError, TypeError, RecursionError):
      if line.endswith('\n'):
        raise UsageError(f'{file} is damaged') from None
      continue  # torn when the run was killed
    if ours and found.setdefault(epoch, line) != line:
      raise UsageError(f'{file} has two different lines of epoch {epoch}')
  missing = sorted(set(range(first)) - set(found))
  if missing:
    raise UsageError(f'{file} has no line of epoch {missing[0]}')
  return [found[epoch] for epoch in range(first)]


def save(t, epochs, progress, metrics, clock):
  """A checkpoint; the lines that it counts on are on the disk before it."""
  if not run_lib.is_writer():
    return
  os.fsync(metrics.fileno())
  directory, now = t.path / 'checkpoints', time.monotonic()
  name = directory / f'{epochs:08d}.npz'
  checkpoint.save(name, progress, metadata={'epochs': epochs})
  for old in checkpoints(directory)[:-KEEP]:
    old.unlink()
  if (t.path / 'run.json').exists():
    before = run_lib.read_record(t.path).get('seconds') or 0.0
    seconds = round(before + now - clock.saved, 3)
    run_lib.note(t.path, seconds=seconds)
  clock.saved = now
