"""Meta-training by truncated back-propagation, as the flags say."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.common import run as run_lib
from experiments.common.cli import NonFinite, log
from experiments.common.progress import Progress
from experiments.common.settings import Bptt, UsageError
from experiments.common.training import Stage, Training, meta_train
from l2o_jax import blocks
from l2o_jax.base import LearnedOptimizer, MetaTrainer
from l2o_jax.learned_optimizers import lstm_log_and_sign, robust_optimizer
from l2o_jax.truncated_bptt import truncated_bptt
from l2o_jax.unroll import unroll


def sharding(num_optimizees: int) -> jax.sharding.NamedSharding | None:
  """The optimizees spread over all devices; None where there is one of either.

  Raises:
    UsageError: they cannot be divided evenly.
  """
  count = jax.device_count()
  if num_optimizees == 1 and count > 1 and jax.process_count() == 1:
    log(f'uses 1 of {count} devices; --num_optimizees={count} uses all')
  elif num_optimizees % count:
    raise UsageError(
      f'--num_optimizees={num_optimizees} is not a multiple of '
      f'the {count} devices'
    )
  if num_optimizees == 1 or count == 1:
    return None
  kinds = (jax.sharding.AxisType.Auto,)
  mesh = jax.make_mesh((count,), ('optimizees',), axis_types=kinds)
  spec = jax.sharding.PartitionSpec('optimizees')
  return jax.sharding.NamedSharding(mesh, spec)


def learned_optimizer(s, labels=None) -> LearnedOptimizer:
  """The learned optimizer of the flags, without its weights.

  Args:
    s: with the topics `optimizer`, `lstm` and `gate`.
    labels: of groups with a theta each; None: one for all.
  """
  if s.optimizer.optimizer == 'gated':
    plain = {'long_memory': False, 'size': None, 'agreement': None, 'warmup': 0}
    return robust_optimizer(s.gate.units, 0.3, labels=labels, **plain)
  scale, p, averaged = s.lstm
  return lstm_log_and_sign(p, scale, labels, averaged)


# What `truncated_bptt` takes for a value of --remat.
_REMAT = {'none': False, 'step': True, 'segments': 'segments', 'blocks': True}


def make_trainers(
  learned: LearnedOptimizer,
  bptt: Bptt,
  num_epochs: int,
  lengths: Sequence[int],
  scale: float = 1.0,
  sharding: jax.sharding.NamedSharding | None = None,
) -> list[MetaTrainer]:
  """Truncated back-propagation on Adam: a trainer for each length of a run.

  Args:
    learned: the optimizer whose theta is trained.
    bptt: the flags.
    num_epochs: in all, shared evenly.
    lengths: steps in an epoch.
    scale: of the meta-loss.
    sharding: of the optimizees.
  """
  rate = bptt.learning_rate
  if bptt.learning_rate_schedule == 'cosine':
    steps = num_epochs * sum(lengths) // (len(lengths) * bptt.unroll_length)
    rate = optax.cosine_decay_schedule(rate, max(steps, 1), alpha=0.01)
  meta_optimizer = optax.adam(rate)
  if bptt.clip_norm:
    clip = optax.clip_by_global_norm(bptt.clip_norm)
    meta_optimizer = optax.chain(clip, meta_optimizer)

  def trainer(length):
    weights = {
      'all': jnp.ones(length + 1),
      'rising': jnp.geomspace(1.0, 100.0, length + 1),
      'final': jnp.zeros(length + 1).at[-1].set(1.0),
    }[bptt.weights]
    return truncated_bptt(
      learned,
      meta_optimizer,
      unroll_length=bptt.unroll_length,
      num_unrolls=length // bptt.unroll_length,
      num_optimizees=bptt.num_optimizees,
      weights=scale * weights,
      second_derivatives=bptt.second_derivatives,
      remat=_REMAT[bptt.remat],
      clip_each=bptt.clip_each or None,
      sharding=sharding,
      unroll=blocks.unroll if bptt.remat == 'blocks' else unroll,
    )

  return list(map(trainer, lengths))


def train(
  t: Training,
  bptt: Bptt,
  scale: float = 1.0,
  lengths: Sequence[int] | None = None,
) -> tuple[Progress, dict]:
  """Searches the meta learning rate if asked to, then meta-trains.

  Args:
    t: without stages.
    bptt: the flags.
    scale: of the meta-loss; 1/K where an optimizee sums K functions.
    lengths: steps in an epoch of each family, if t has several; --num_steps by
      default.

  Returns:
    (the last Progress, {'meta_learning_rate'} for the summary).
  """
  lengths = lengths or [t.run.num_steps]

  def go(path, rate, num_epochs):
    how = bptt._replace(learning_rate=rate), num_epochs, lengths, scale
    trainers = make_trainers(t.learned, *how, t.sharding)
    stages = (Stage(trainers, num_epochs),)
    return meta_train(t._replace(path=path, stages=stages))

  rate = bptt.learning_rate
  if bptt.search_trials:
    random = np.random.default_rng(t.run.seed)
    rates = 10 ** random.uniform(-4, -2, bptt.search_trials)
    losses = []
    for i, trial in enumerate(rates):
      path = t.path / 'search' / f'{i:02d}'
      if run_lib.is_writer():
        path.mkdir(parents=True, exist_ok=True)
        run_lib.write_json(path / 'trial.json', {'learning_rate': trial})
      try:
        losses.append(float(go(path, trial, bptt.search_epochs).best))
      except NonFinite:  # too large a rate
        losses.append(np.inf)
      log(f'search: meta learning rate {trial:.3g} gives {losses[-1]:.4g}')
    rate = float(rates[np.argmin(losses)])
  progress = go(t.path, rate, t.run.num_epochs)
  if jax.process_count() > 1:  # the rest is the writer's, at its own pace
    jax.distributed.shutdown()
  return progress, {'meta_learning_rate': rate}
