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


def make_trainers(
  t: Training, bptt: Bptt, rate, num_epochs, scale, lengths: Sequence[int]
) -> list[MetaTrainer]:
  """Truncated back-propagation on Adam: a trainer for each length of a run.

  Args:
    t: learned optimizer and sharding.
    bptt: the flags.
    rate: meta learning rate at the start.
    num_epochs: in all, shared evenly.
    scale: of the meta-loss.
    lengths: steps in an epoch.
  """
  unrolls = num_epochs * sum(lengths) // (len(lengths) * bptt.unroll_length)
  if bptt.learning_rate_schedule == 'cosine':
    rate = optax.cosine_decay_schedule(rate, max(unrolls, 1), alpha=0.01)
  meta_optimizer = optax.adam(rate)
  if bptt.clip_norm:
    clip = optax.clip_by_global_norm(bptt.clip_norm)
    meta_optimizer = optax.chain(clip, meta_optimizer)
  return [
    _make_trainer(t, bptt, meta_optimizer, scale, length) for length in lengths
  ]


def _make_trainer(t, bptt, meta_optimizer, scale, num_steps) -> MetaTrainer:
  weights = {
    'all': jnp.ones(num_steps + 1),
    'rising': jnp.geomspace(1.0, 100.0, num_steps + 1),
    'final': jnp.zeros(num_steps + 1).at[-1].set(1.0),
  }[bptt.weights]
  return truncated_bptt(
    t.learned,
    meta_optimizer,
    unroll_length=bptt.unroll_length,
    num_unrolls=num_steps // bptt.unroll_length,
    num_optimizees=bptt.num_optimizees,
    weights=scale * weights,
    second_derivatives=bptt.second_derivatives,
    remat={'none': False, 'segments': 'segments'}.get(bptt.remat, True),
    clip_each=bptt.clip_each or None,
    sharding=t.sharding,
    unroll=blocks.unroll if bptt.remat == 'blocks' else unroll,
  )


def train(
  t: Training,
  bptt: Bptt,
  theta=None,
  scale: float = 1.0,
  lengths: Sequence[int] | None = None,
) -> tuple[Progress, dict]:
  """Searches the meta learning rate if asked to, then meta-trains.

  Args:
    t: without stages, with `sharding(--num_optimizees)`.
    bptt: the flags.
    theta: to start from.
    scale: of the meta-loss; 1/K where an optimizee sums K functions.
    lengths: steps in an epoch of each family, if t has several; --num_steps by
      default.

  Returns:
    (the last Progress, {'meta_learning_rate'} for the summary).
  """
  lengths = lengths or [t.run.num_steps]

  def go(path, rate, num_epochs):
    trainers = make_trainers(t, bptt, rate, num_epochs, scale, lengths)
    each = trainers if len(trainers) > 1 else trainers[0]
    stages = (Stage(each, num_epochs),)
    return meta_train(t._replace(path=path, stages=stages), theta)

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
