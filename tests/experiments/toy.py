"""A run that takes no time: theta shrinks by a tenth in every epoch."""

import pathlib
import tempfile
from typing import NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from experiments import quadratics
from experiments.common import cli, report, run, settings, training
from l2o_jax.base import Info, MetaTrainer
from l2o_jax.learned_optimizers import lstm_raw
from l2o_jax.optimizees.quadratic import quadratic

EXPERIMENT = quadratics.EXPERIMENT
LEARNED = lstm_raw()
OPTIMIZEE = quadratic(1)


class State(NamedTuple):
  """theta, and how many steps it has had."""

  theta: dict
  count: jax.Array


def quiet(test):
  """A run directory for a test, `test.path`, and no log; what was said."""
  directory = test.enterContext(tempfile.TemporaryDirectory())
  test.path = pathlib.Path(directory) / 'run'
  for module in (cli, training, run):
    test.enterContext(mock.patch.object(module, 'log'))
  return test.enterContext(mock.patch.object(report, 'say'))


def make_settings(workdir, experiment=EXPERIMENT, **flags):
  """Of a preset, with other values of some flags."""
  flags = {'workdir': str(workdir), **flags}
  return settings.replace(settings.preset(experiment), flags)


def trainer(factor: float = 0.9, skipped: bool = False) -> MetaTrainer:
  """Multiplies theta by `factor`; its meta-loss is a random number."""

  def init(key):
    return State(LEARNED.init(key), jnp.int32(0))

  def step(state, optimizee, key):
    theta = jax.tree.map(lambda x: factor * x, state.theta)
    loss = jax.random.uniform(key, (1,))
    summary = {'count': state.count}
    info = Info(loss[:, None, None], loss, jnp.array([skipped]), summary)
    return State(theta, state.count + 1), info

  return MetaTrainer(init, step)


def validate(theta):
  """Mean losses [3]: smaller with theta."""
  size = float(sum(np.abs(x).sum() for x in jax.tree.leaves(theta)))
  return np.array([2 * size, 1.5 * size, size])


def train(
  workdir, stages=((trainer(), 4),), *, validate=validate, margin=0.0, **flags
):
  """Opens the run directory and meta-trains; the last Progress."""
  flags = {'num_epochs': 4, 'evaluation_period': 2, **flags}
  s = make_settings(workdir, **flags)
  with run.opened(EXPERIMENT, s) as path:
    parts = path, LEARNED, [OPTIMIZEE]
    how = {'validate': validate, 'margin': margin}
    t = training.prepare(EXPERIMENT, s, *parts, **how)
    stages = [training.Stage([one], count) for one, count in stages]
    return training.meta_train(t._replace(stages=stages))


def files(workdir) -> dict[str, bytes]:
  """What must be the same in two runs of the same flags."""
  path = pathlib.Path(workdir)
  names = ['theta.npz', 'metrics.jsonl']
  newest = sorted((path / 'checkpoints').glob('*.npz'))[-1]
  found = {name: (path / name).read_bytes() for name in names}
  return found | {newest.name: newest.read_bytes()}
