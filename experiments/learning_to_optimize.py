"""Learned optimizer by guided policy search (Li & Malik 2016, section 5).

Copy and paste:
  python -m experiments.learning_to_optimize       # 4 minutes on one core
  python -m experiments.learning_to_optimize --family=robust --workdir=robust
  python -m experiments.learning_to_optimize --family=net --workdir=net
  python -m experiments.learning_to_optimize --preset=badmm --workdir=badmm

Trains a policy on a set of small functions (logistic regression, robust linear
regression or nets of 12 weights), compares it on unseen ones, to 4 times its
horizon, with hand-designed optimizers tuned on the training set, and writes
theta.npz, the mean margin of victory (curves.csv, learning_curves.png) and
summary.json to --workdir.
"""

from typing import Annotated, Literal, NamedTuple

import jax
import optax

import l2o_jax
from experiments.common import (
  cli,
  comparison,
  problems,
  settings,
  study,
  training,
)
from experiments.common.comparison import Comparison, Panel
from experiments.common.policies import COSTS
from experiments.common.problems import Problem
from l2o_jax.gps.badmm import badmm
from l2o_jax.gps.mirror_descent import mirror_descent
from l2o_jax.gps.policy import Regression, make_policy
from l2o_jax.gps.rollouts import Rollouts
from l2o_jax.groups import by_label
from l2o_jax.optimizees import logistic_regression, robust_regression, small_net

# Functions, and how many there are for training in the paper.
FAMILIES = {
  'logistic': (logistic_regression, 90),
  'robust': (robust_regression, 120),
  'net': (small_net, 80),
}
FIRST_ORDER = ('SGD', 'momentum', 'CG')
QUASI_NEWTON = ('L-BFGS', 'CG, line search', 'L-BFGS, line search')

Share = Annotated[float, 0.0, 1.0]


class Functions(NamedTuple):
  """Functions.

  Attributes:
    family: Functions to be minimized; as many for training as in the paper: 90,
      120, 80.
    num_functions: Training functions, >= 0; 0: as many as in the paper.
    horizons: Steps of the comparison in units of --num_steps, >= 1.
  """

  family: Literal[tuple(FAMILIES)] = 'logistic'
  num_functions: settings.Whole = 0
  horizons: Annotated[int, 1, 100] = 4


class GpsSettings(NamedTuple):
  """Guided policy search.

  Attributes:
    trainer: badmm: the paper's, with multipliers; mdgps: mirror descent on the
      policy's own rollouts.
    policy: joint: one net sees and moves all parameters, as in the paper;
      coordinatewise: a net for each group of parameters, run on every
      coordinate.
    cost: Quadratic model of the cost; taylor: the paper's, for joint policies;
      sample_taylor: the expansion at every sample, for mdgps, by default there
      with coordinatewise policies; sample_gradient: to first order only;
      gradient_share by default elsewhere.
    kl_step: Largest step of a guide at first, for each time and coordinate, in
      nats, > 0; by default 0.5 with a --cost of samples, where it falls to 2 %
      by a cosine, and 0.2 elsewhere.
    precision_power: Exponent of the precision of a guide's actions in the
      weights of the policy's regression, 0 ... 1; 1 in the paper.
    num_rollouts: Rollouts of each function in an epoch, >= 2; 20 in the paper.
    blend: Weight of the other times in the fits, 0 ... 1.
    initial_rate: Learning rate of the first guide, relative to tuned
      momentum's, > 0.
  """

  trainer: Literal['mdgps', 'badmm'] = 'mdgps'
  policy: Literal['coordinatewise', 'joint'] = 'coordinatewise'
  cost: Literal[tuple(COSTS)] | None = None
  kl_step: settings.Positive | None = None
  precision_power: Share = 0.25
  num_rollouts: Annotated[int, 2, 10**4] = 10
  blend: Share = 0.3
  initial_rate: Annotated[float, 1e-6, 1.0] = 0.25


class Badmm(NamedTuple):
  """Bregman ADMM.

  Attributes:
    policy_rollouts: Share of the rollouts made by the policy, 0 ... 0.9; 0 in
      the paper.
    inner_iterations: Alternations in an epoch, >= 1; 4 in the paper.
    penalty: Weight of the distance between guides and policy at first, > 0;
      0.01 in the authors' code.
  """

  policy_rollouts: Annotated[float, 0.0, 0.9] = 0.5
  inner_iterations: Annotated[int, 1, 20] = 2
  penalty: settings.Positive = 0.01


class Settings(NamedTuple):
  """All flags."""

  run: settings.Run = settings.Run(
    workdir='runs/learning_to_optimize',
    num_epochs=24,
    num_steps=40,
    evaluation_period=1,
    num_validation=512,
  )
  functions: Functions = Functions()
  gps: GpsSettings = GpsSettings()
  badmm: Badmm = Badmm()
  comparison: Comparison = Comparison(
    num_test=100, tune='all', baselines=(*FIRST_ORDER, *QUASI_NEWTON)
  )


def cost_of(gps: GpsSettings) -> str:
  """--cost, or what it is by default."""
  each = gps.trainer == 'mdgps' and gps.policy == 'coordinatewise'
  return gps.cost or ('sample_taylor' if each else 'gradient_share')


def check(s: Settings) -> None:
  """Which flags do not go together."""
  cost, joint = cost_of(s.gps), s.gps.policy == 'joint'
  share = joint and cost == 'gradient_share' and s.functions.family == 'net'
  samples = s.gps.trainer == 'badmm' and COSTS[cost].of_samples
  settings.refuse(
    {
      '--num_steps must be 2 or more': s.run.num_steps < 2,
      '--policy=joint on nets needs --cost=taylor': share,
      f'--cost={cost} needs --trainer=mdgps': samples,
    }
  )


EXPERIMENT = settings.Experiment(
  'learning_to_optimize',
  Settings(),
  {
    'quick': {},
    'badmm': {
      'num_epochs': 16,
      'trainer': 'badmm',
      'precision_power': 0.5,
      'penalty': 1e-4,
    },
    'paper': {
      'num_epochs': 10,
      'trainer': 'badmm',
      'policy': 'joint',
      'cost': 'taylor',
      'num_rollouts': 20,
      'policy_rollouts': 0.0,
      'blend': 0.5,
      'inner_iterations': 4,
      'precision_power': 1.0,
    },
  },
  __doc__,
  {'badmm': ('trainer', ('badmm',))},
  check,
  {
    'num_epochs': 'Iterations of guided policy search, >= 0; each makes '
    '--num_rollouts rollouts of --num_steps of every training function.',
    'num_steps': 'Steps of a run, >= 2.',
    'num_tuning': 'Not read here: hand-designed optimizers are tuned on the '
    'functions of meta-training, which depend on --seed.',
  },
)


def make_trainer(s: Settings, learned, labels, size, functions, tuned):
  """Guided policy search on these functions.

  Args:
    s: the flags.
    learned: the policy as an optimizer.
    labels: {group: group} of the parameters.
    size: n.
    functions: keys, [P].
    tuned: setting of momentum, the first guide.
  """
  cost, joint = COSTS[cost_of(s.gps)], s.gps.policy == 'joint'
  coordinates = size if joint else None
  cell = l2o_jax.mlp_cell(coordinates=coordinates)
  groups = None if joint else by_label(labels)
  policy = make_policy(l2o_jax.history(), cell, groups, coordinates=coordinates)
  guide = s.gps.initial_rate * tuned['rate'], tuned['momentum']
  first_steps = 600 if s.run.theta is None else 0
  if s.gps.trainer == 'badmm':
    improve = badmm(cost, blend=s.gps.blend, **s.badmm._asdict())
  else:
    improve = mirror_descent(cost, blend=s.gps.blend)
    guide = guide if s.run.theta is None else None
  kl_step = s.gps.kl_step or (0.5 if cost.of_samples else 0.2)
  if cost.of_samples:
    epochs = max(s.run.num_epochs, 1)
    kl_step = optax.cosine_decay_schedule(kl_step, epochs, alpha=0.02)
  return l2o_jax.guided_policy_search(
    policy._replace(learned=learned),
    l2o_jax.state_features(5, 0),
    guide,
    Rollouts(s.run.num_steps, functions, s.gps.num_rollouts, num_coordinates=4),
    improve=improve,
    regression=Regression(300, first_steps, 64, 1e-3, s.gps.precision_power),
    kl_step=kl_step,
  )


def main(s: Settings) -> None:
  """Meta-trains and compares."""
  if comparison.shown(EXPERIMENT, s):
    return
  make, count = FAMILIES[s.functions.family]
  optimizee = make()
  params = jax.eval_shape(optimizee.init, jax.random.key(0))[0]
  labels, size = {k: k for k in params}, sum(x.size for x in params.values())
  learned = l2o_jax.autonomous_optimizer(labels)
  if s.gps.policy == 'joint':
    learned = l2o_jax.autonomous_optimizer(coordinates=size)

  # The policy is trained, and its rivals are tuned, on the same functions.
  key = jax.random.fold_in(training.first_keys(s.run.seed)[0], 1)
  functions = jax.random.split(key, s.functions.num_functions or count)
  tuning = problems.given(optimizee, functions, s.run.num_steps)
  problem = lambda what, runs: Problem(
    optimizee, study.keys(s, what), runs * s.run.num_steps
  )
  validation = problem('validation', 1)
  parts = {'validate': problems.mean_curve(validation, learned), 'by': 'mean'}

  opened = study.opened(EXPERIMENT, s, learned, [optimizee], **parts)
  with opened as (t, compare):
    tuned = problems.tune(tuning, 'momentum', 'mean')
    trainer = make_trainer(s, learned, labels, size, functions, tuned)
    stages = (training.Stage([trainer], s.run.num_epochs),)
    progress = training.meta_train(t._replace(stages=stages))
    title = lambda runs: f'{s.functions.family}, {runs * s.run.num_steps} steps'
    panels = [
      Panel(title(runs), tuning, problem('test', runs))
      for runs in sorted({1, s.functions.horizons})
    ]
    over = [n for n in s.comparison.baselines if n in FIRST_ORDER]
    margins = {'margin_over': over, 'horizon': s.run.num_steps}
    compare(progress, {}, panels, by='mean', **margins)


if __name__ == '__main__':
  cli.run(main, EXPERIMENT)
