r"""Predicted Step Descent on one objective (Li & Malik 2017, section 4).

Copy and paste:
  python -m experiments.predicted_step_descent       # packaged digits, 16-16-10
  python -m l2o_jax.datasets prepare mnist           # or: --from DIR
  python -m experiments.predicted_step_descent --preset=full --dataset=mnist \
      --workdir=runs/psd

Meta-trains a policy on a single objective, a small ReLU net on randomly
projected images, and compares it on nets of other sizes, smaller minibatches,
more steps and other images with hand-designed optimizers tuned on the objective
of meta-training.  --trainer and --features choose what is trained; --rivals
takes finished runs with others into the comparison.  Writes theta.npz,
curves.csv, summary.json and learning_curves.png to --workdir.
"""

from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments.common import (
  bptt,
  cli,
  comparison,
  projected,
  run,
  settings,
  training,
)
from experiments.common.baselines import TABLE
from experiments.common.comparison import Comparison, Panel, Problem
from experiments.learning_to_optimize import COSTS
from l2o_jax.cells.lstm import lstm_cell
from l2o_jax.features import log_and_sign, relative_changes, state_features
from l2o_jax.gps.badmm import badmm
from l2o_jax.gps.guided_policy_search import guided_policy_search
from l2o_jax.gps.mirror_descent import mirror_descent
from l2o_jax.gps.policy import Regression, make_policy
from l2o_jax.gps.rollouts import Rollouts
from l2o_jax.groups import by_label
from l2o_jax.imitation import imitation
from l2o_jax.learned_optimizers import lstm_policy, predicted_step_descent

# Projection (0: as in meta-training), multiples of --inputs, --hidden and
# --num_steps, minibatch.
PANELS = {
  'same': (0, 1, 1, 1, 64),
  'base': (1, 1, 1, 1, 64),
  'wide': (1, 100 / 48, 200 / 48, 1, 64),
  'noisy': (1, 1, 1, 1, 10),
  'wide_noisy': (1, 100 / 48, 200 / 48, 1, 10),
  'wide_long': (1, 100 / 48, 200 / 48, 2, 64),
}
# Coordinate groups: weights and biases of each layer.
LABELS = [{'w': 'w0', 'b': 'b0'}, {'w': 'w1', 'b': 'b1'}]


class Images(NamedTuple):
  """Images and nets.

  Attributes:
    dataset: Images of meta-training: a name of python -m l2o_jax.datasets
      (mnist_5k is in the package), or an .npz.
    test_data: Images of the comparison, a flag for each; by default those of
      --dataset, with another projection.
    data_dir: Where prepared data sets are; $TFDS_DATA_DIR or
      ~/tensorflow_datasets by default.
    panels: Problems of the comparison, a flag for each; same: the objective of
      meta-training, other x_0; base: another projection, as in all that follow;
      wide: larger nets; noisy: minibatches of 10; long: twice the steps.
    tune_each: Tune hand-designed optimizers on every problem of the comparison
      by itself, which the paper does not, instead of on the objective of
      meta-training.
    inputs: Projections of an image, >= 1.
    hidden: Hidden units, >= 1.
    initial_std: Standard deviation of initial weights and biases, > 0.
    minibatch: Images per minibatch in meta-training, >= 1.
    objective_size: Images that make the exact objective in meta-training and
      tuning, at most.
  """

  dataset: str = 'mnist_5k'
  test_data: tuple[str, ...] = ()
  data_dir: str | None = None
  panels: tuple[Literal[tuple(PANELS)], ...] = tuple(PANELS)
  tune_each: bool = False
  inputs: settings.Count = 48
  hidden: settings.Count = 48
  initial_std: settings.Positive = 0.1
  minibatch: settings.Count = 64
  objective_size: settings.Count = 10**6


class Policy(NamedTuple):
  """Policy and trainer.

  Attributes:
    trainer: Guided policy search by mirror descent (mdgps) or by the papers'
      Bregman ADMM (badmm), or truncated back-propagation through time (bptt).
    features: changes: relative changes and one LSTM layer (Li & Malik);
      log_and_sign: of the gradient, and two layers of 20 units (Andrychowicz et
      al.).
    lstm_units: With --features=changes: units of the LSTM, >= 1; 128 in the
      paper.
    shared: One theta for all weights and biases instead of one for each.
  """

  trainer: Literal['mdgps', 'badmm', 'bptt'] = 'mdgps'
  features: Literal['changes', 'log_and_sign'] = 'changes'
  lstm_units: Annotated[int, 1, 10**4] = 32
  shared: bool = False


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

  initial: Literal[tuple(TABLE)] = 'momentum'
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


class Settings(NamedTuple):
  """All flags."""

  run: settings.Run = settings.Run(
    workdir='runs/predicted_step_descent',
    num_epochs=25,
    num_steps=50,
    evaluation_period=1,
    num_validation=8,
  )
  images: Images = Images()
  policy: Policy = Policy()
  imitation: Imitation = Imitation()
  search: Search = Search()
  bptt: settings.Bptt = settings.Bptt(unroll_length=10)
  scale: Scale = Scale()
  comparison: Comparison = Comparison(
    num_test=5,
    num_tuning=4,
    tune='all',
    baselines=tuple(n for n in TABLE if n not in ('NAG', 'ADAM_decaying')),
  )


def check(s: Settings) -> None:
  """Which flags do not go together."""
  cost, initial = s.search.cost, s.search.initial
  epochs = s.imitation.imitation_epochs
  if s.policy.trainer == 'bptt':
    apart = s.bptt.remat == 'blocks' and not s.policy.shared
    return settings.refuse({'--remat=blocks needs --shared': apart})
  samples = cost and COSTS[cost].of_samples and s.policy.trainer == 'badmm'
  settings.refuse(
    {
      '--num_steps must be 2 or more without --trainer=bptt': s.run.num_steps
      < 2,
      f'--cost={cost} needs --trainer=mdgps': samples,
      f'--initial={initial} needs --imitation_epochs': (
        initial != 'momentum' and not epochs
      ),
      '--imitation_epochs is part of --num_epochs': epochs > s.run.num_epochs,
    }
  )


EXPERIMENT = settings.Experiment(
  'predicted_step_descent',
  Settings(),
  {
    'quick': {'inputs': 16, 'hidden': 16},
    'full': {
      'num_epochs': 8,
      'num_steps': 400,
      'objective_size': 6000,
      'initial': 'ADAM_decaying',
      'initial_rate': 0.75,
      'imitation_epochs': 3,
      'imitation_rate': 3e-3,
      'imitation_scale': 1.0,
      'kl_step': 0.2,
      'max_noise': 0.1,
      'regression_steps': 100,
      'regression_rate': 2e-5,
      'num_coordinates': 128,
    },
  },
  __doc__,
  {
    'imitation': ('trainer', ('mdgps',)),
    'search': ('trainer', ('mdgps', 'badmm')),
    'bptt': ('trainer', ('bptt',)),
    'scale': ('trainer', ('bptt',)),
  },
  check,
)


def learned_optimizer(policy: Policy):
  """The policy as an optimizer, by its name in the library."""
  labels = None if policy.shared else LABELS
  if policy.features == 'log_and_sign':
    return lstm_policy(labels)
  return predicted_step_descent(labels, policy.lstm_units)


def make_stages(s: Settings, learned, tuned: dict) -> list[training.Stage]:
  """Imitation if there is any, then guided policy search.

  Args:
    s: the flags.
    learned: the policy as an optimizer.
    tuned: setting of --initial.
  """
  own = s.search
  if s.policy.features == 'log_and_sign':
    parts = log_and_sign(), lstm_cell(scale=1.0)
  else:
    parts = relative_changes(), lstm_cell((s.policy.lstm_units,), scale=1.0)
  policy = make_policy(*parts, by_label(LABELS), shared=s.policy.shared)
  policy, given = policy._replace(learned=learned), s.run.theta is not None
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
    how = {'regression': Regression(600, 0, own.batch_size, rate)}
    teacher = comparison.make_baseline(own.initial, setting)
    trainer = imitation(policy, teacher, rollouts, scale=scale, **how)
    stages.append(training.Stage(trainer, count))
  elif not given or s.policy.trainer == 'badmm':
    guide = setting['rate'], setting['momentum']
  steps = own.regression_steps, 0 if given else 600
  regression = Regression(*steps, own.batch_size, own.regression_rate)
  if s.policy.trainer == 'badmm':
    improve = badmm(COSTS[own.cost or 'gradient_share'], policy_rollouts=0.5)
  else:
    improve = mirror_descent(COSTS[own.cost or 'sample_taylor'])
  kl_step = optax.cosine_decay_schedule(own.kl_step, max(total, 1), alpha=0.02)
  trainer = guided_policy_search(
    policy,
    state_features(5, own.state_depth),
    guide,
    rollouts,
    improve=improve,
    regression=regression,
    kl_step=lambda iteration: kl_step(iteration + count),
    tolerance=own.tolerance,
  )
  return [*stages, training.Stage(trainer, total - count)]


def scaled(theta, scale: float):
  """Theta of a `standardised` policy whose steps are so many times as large."""
  is_output = lambda path: path and getattr(path[-1], 'key', '') == 'output'
  return jax.tree.map_with_path(
    lambda path, x: jnp.float32(scale) * x if is_output(path) else x, theta
  )


def make_panels(s: Settings, test_data: dict, tuning: Problem):
  """The problems of the comparison, one after the other."""
  for data_name, data in test_data.items():
    for name in s.images.panels:
      seed, wider, more, runs, minibatch = PANELS[name]
      inputs = round(wider * s.images.inputs)
      hidden = round(more * s.images.hidden)
      std, steps = s.images.initial_std, runs * s.run.num_steps
      optimizee = projected.make_optimizee(
        data, inputs, hidden, minibatch, seed=seed, std=std
      )
      test = make_problem(optimizee, 'test', s.comparison.num_test, steps)
      keys = comparison.keys('tuning', s.comparison.num_tuning)
      own = test._replace(keys=keys) if s.images.tune_each else tuning
      what = name.replace('_', ', ')
      yield Panel(f'{data_name}, {what}', own, test)


def make_problem(optimizee, what, count, num_steps) -> Problem:
  """Some 50 values of the exact objective along each run."""
  keys, every = comparison.keys(what, count), projected.every(num_steps)
  return Problem(optimizee, keys, num_steps, 1, every, objective=True)


def main(s: Settings) -> None:
  """Meta-trains and compares."""
  if comparison.shown(EXPERIMENT, s):
    return
  learned = learned_optimizer(s.policy)
  theta = training.given_theta(learned, s)
  own = s.images
  data = projected.load(own.dataset, own.data_dir)
  test_data = projected.load_all(own.test_data or [own.dataset], own.data_dir)
  optimizee = projected.make_optimizee(
    data,
    own.inputs,
    own.hidden,
    own.minibatch,
    std=own.initial_std,
    objective_size=own.objective_size,
  )
  others = comparison.rivals(s.comparison.rivals, optimizee)
  problem = lambda what, count: make_problem(
    optimizee, what, count, s.run.num_steps
  )
  validation = problem('validation', s.run.num_validation)
  tuning = problem('tuning', s.comparison.num_tuning)
  validate = comparison.mean_curve(validation, learned)

  with run.opened(EXPERIMENT, s) as path:
    t = training.prepare(
      EXPERIMENT, s, path, learned, optimizee, validate=validate, by='mean'
    )
    if s.policy.trainer == 'bptt':
      if theta is None:
        start = learned.init(training.first_keys(s.run.seed)[0])
        theta = scaled(start, s.scale.output_scale)
      progress, facts = bptt.train(t, s.bptt, theta)
    else:
      tuned = comparison.tune(tuning, s.search.initial, 'mean')
      stages = make_stages(s, learned, tuned)
      progress, facts = (
        training.meta_train(t._replace(stages=stages), theta),
        {},
      )
    mine = comparison.contenders(learned, progress.best_theta, s, others)
    facts['validation_loss'] = float(progress.best)
    panels = make_panels(s, test_data, tuning)
    comparison.compare(path, mine, panels, s.comparison, by='mean', extra=facts)


if __name__ == '__main__':
  cli.run(main, EXPERIMENT)
