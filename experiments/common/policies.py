"""The policies of Predicted Step Descent and their trainers, as flags say."""

from typing import Annotated, Literal, NamedTuple

import jax
import optax

import l2o_jax
from experiments.common import problems, settings, training
from experiments.common.baselines import COORDINATEWISE
from l2o_jax import LearnedOptimizer, Optimizee
from l2o_jax.gps import costs
from l2o_jax.gps import policy as gps
from l2o_jax.gps.badmm import badmm
from l2o_jax.gps.mirror_descent import mirror_descent
from l2o_jax.gps.rollouts import Rollouts
from l2o_jax.groups import by_label
from l2o_jax.learned_optimizers import policy_parts

COSTS = {
  'gradient_share': costs.gradient_share,
  'taylor': costs.taylor,
  'sample_taylor': costs.sample_taylor,
  'sample_gradient': costs.sample_gradient,
}
# Coordinate groups: weights and biases of each layer.
LABELS = [{'w': 'w0', 'b': 'b0'}, {'w': 'w1', 'b': 'b1'}]


class PolicySettings(NamedTuple):
  """Policy and trainer.

  Attributes:
    trainer: Guided policy search by mirror descent (mdgps) or by the papers'
      Bregman ADMM (badmm), or truncated back-propagation through time (bptt).
    features: changes: relative changes and one LSTM layer (Li & Malik);
      scale_free: ratios at every scale, and an LSTM that sets the length of
      steps; log_and_sign: of the gradient, and two layers of 20 units
      (Andrychowicz et al.).
    lstm_units: Units of the LSTM, >= 1; not read with --features=log_and_sign;
      128 in the paper.
    shared: One theta for all weights and biases instead of one for each.
    sized: Shorter steps in first layers of more weights than in meta-training;
      not with --features=log_and_sign or --shared.
  """

  trainer: Literal['mdgps', 'badmm', 'bptt'] = 'mdgps'
  features: Literal['changes', 'scale_free', 'log_and_sign'] = 'changes'
  lstm_units: Annotated[int, 1, 10**4] = 32
  shared: bool = False
  sized: bool = False


class Imitation(NamedTuple):
  """Imitation, before guided policy search.

  Attributes:
    imitation_epochs: Epochs in which the policy learns the steps of --initial,
      part of --num_epochs, >= 0; from the second on along its own rollouts.
    imitation_rate: Learning rate of Adam in them, > 0.
    imitation_scale: Gradients and losses of each rollout are multiplied by
      exp(U(-s, s)), s >= 0.
  """

  imitation_epochs: Annotated[int, 0, 1000] = 0
  imitation_rate: settings.Positive = 1e-3
  imitation_scale: Annotated[float, 0.0, 10.0] = 0.0


class Search(NamedTuple):
  """Guided policy search.

  Attributes:
    initial: The first guide, tuned momentum as in the paper; or what is
      imitated, any optimizer, with --imitation_epochs.
    initial_rate: Learning rate of --initial, relative to the tuned one, > 0.
    cost: Of the guide; sample_taylor by default with mdgps, gradient_share with
      badmm, which has no costs of samples.
    kl_step: Largest step of the guide at first, for each time and coordinate,
      in nats, > 0; falls to 2 % by a cosine.
    tolerance: A policy is taken back if its rollouts cost more than so many
      times the last accepted ones, >= 0.5.
    num_rollouts: Rollouts in an epoch, >= 2.
    num_coordinates: Coordinates of each group and rollout that are looked at,
      >= 1.
    max_noise: Largest noise of rollouts, relative to the actions of a group.
    state_depth: Depth of the guide's state features, >= 0; 25 in the paper.
    regression_steps: Steps of Adam in the policy's regression, in an epoch,
      >= 1.
    regression_rate: Learning rate of Adam in it, > 0.
    batch_size: Coordinate sequences in each of its steps, >= 1.
  """

  initial: Literal[COORDINATEWISE] = 'momentum'
  initial_rate: Annotated[float, 1e-6, 1.0] = 0.25
  cost: Literal[tuple(COSTS)] | None = None
  kl_step: settings.Positive = 1.0
  tolerance: Annotated[float, 0.5, 100.0] = 1.05
  num_rollouts: Annotated[int, 2, 10**4] = 12
  num_coordinates: settings.Count = 256
  max_noise: Annotated[float, 1e-3, 10.0] = 0.6
  state_depth: Annotated[int, 0, 100] = 10
  regression_steps: settings.Count = 300
  regression_rate: settings.Positive = 1e-3
  batch_size: settings.Count = 128


class Scale(NamedTuple):
  """Size of steps.

  Attributes:
    output_scale: Factor of the LSTM's output, > 0; smaller means smaller steps
      at the start.
  """

  output_scale: settings.Positive = 0.01


def learned_optimizer(policy: PolicySettings, optimizee: Optimizee):
  """The policy as an optimizer, by its name in the library.

  Args:
    policy: the flags.
    optimizee: what it is trained on.
  """
  labels = None if policy.shared else LABELS
  if policy.features == 'log_and_sign':
    return l2o_jax.lstm_policy(labels)
  sizes = None
  if policy.sized:
    params, _ = jax.eval_shape(optimizee.init, jax.random.key(0))
    sizes = {LABELS[0]['w']: params[0]['w'].size}
  parts = labels, policy.lstm_units, policy.features, sizes
  return l2o_jax.predicted_step_descent(*parts)


def make_policy(
  policy: PolicySettings, learned: LearnedOptimizer
) -> gps.Policy:
  """The policy in parts, as guided policy search trains it."""
  if policy.features == 'log_and_sign':
    parts = l2o_jax.log_and_sign(), l2o_jax.lstm_cell(scale=1.0)
  else:
    parts = policy_parts(policy.lstm_units, policy.features)
  how = {'shared': policy.shared, 'in_units': policy.features == 'scale_free'}
  made = gps.make_policy(*parts, by_label(LABELS), **how)
  return made._replace(learned=learned)


def make_stages(s, learned, tuned: dict) -> list[training.Stage]:
  """Imitation if there is any, then guided policy search.

  Args:
    s: the flags.
    learned: the policy as an optimizer.
    tuned: setting of --initial.
  """
  own = s.search
  policy, given = make_policy(s.policy, learned), s.run.theta is not None
  rollouts = Rollouts(
    s.run.num_steps,
    num_rollouts=own.num_rollouts,
    num_coordinates=own.num_coordinates,
    noise=(min(0.02, own.max_noise), own.max_noise),
    initial_noise=min(0.3, own.max_noise),
    common_noise=0.8,  # of 0.2, 0.5 and 0.8 the best
  )
  setting = {**tuned, 'rate': own.initial_rate * tuned['rate']}
  count, total = s.imitation.imitation_epochs, s.run.num_epochs
  count = 0 if s.policy.trainer == 'badmm' else count
  stages, guide = [], None
  if count:
    rate, scale = s.imitation.imitation_rate, s.imitation.imitation_scale
    how = {'regression': gps.Regression(600, 0, own.batch_size, rate)}
    teacher = problems.make_baseline(own.initial, setting)
    trainer = l2o_jax.imitation(policy, teacher, rollouts, scale=scale, **how)
    stages.append(training.Stage([trainer], count))
  elif not given or s.policy.trainer == 'badmm':
    guide = setting['rate'], setting['momentum']
  steps = own.regression_steps, 0 if given else 600
  regression = gps.Regression(*steps, own.batch_size, own.regression_rate)
  if s.policy.trainer == 'badmm':
    improve = badmm(COSTS[own.cost or 'gradient_share'], policy_rollouts=0.5)
  else:
    improve = mirror_descent(COSTS[own.cost or 'sample_taylor'])
  kl_step = optax.cosine_decay_schedule(own.kl_step, max(total, 1), alpha=0.02)
  trainer = l2o_jax.guided_policy_search(
    policy,
    l2o_jax.state_features(5, own.state_depth),
    guide,
    rollouts,
    improve=improve,
    regression=regression,
    kl_step=lambda iteration: kl_step(iteration + count),
    tolerance=own.tolerance,
  )
  return [*stages, training.Stage([trainer], total - count)]
