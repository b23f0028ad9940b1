r"""Predicted Step Descent on one objective (Li & Malik 2017, section 4).

Copy and paste:
  python -m experiments.predicted_step_descent       # packaged digits, 16-16-10
  python -m l2o_jax.datasets prepare mnist           # or: --from DIR
  python -m experiments.predicted_step_descent --preset=full --dataset=mnist \
      --workdir=runs/psd
  python -m l2o_jax.datasets prepare cifar10         # and cifar100
  python -m experiments.predicted_step_descent --preset=figures \
      --workdir=runs/figures                         # weights of the package

Meta-trains a policy on a single objective, a small ReLU net on randomly
projected images, and compares it on nets of other sizes, smaller minibatches,
more steps and other images with hand-designed optimizers tuned on the objective
of meta-training.  --trainer and --features choose what is trained; --rivals
takes finished runs with others into the comparison.  Writes theta.npz,
curves.csv, summary.json and learning_curves.png to --workdir.

The preset `figures` has the paper's five figures on CIFAR-10 and CIFAR-100;
with --tune_each, rivals are tuned on every problem by itself.  The paper's
faces cannot be had.  FER2013, from kaggle.com, can take their place: 48 x 48
grey pixels of 7 expressions, which you put into an .npz
(`l2o_jax.datasets.read_npz` has the form), for
--test_data=FACES.npz --test_data=cifar10 --test_data=cifar100.
"""

from typing import Annotated, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax

from experiments.common import (
  bptt,
  cli,
  comparison,
  images,
  policies,
  problems,
  projected,
  settings,
  study,
  training,
)
from experiments.common.baselines import TABLE
from experiments.common.comparison import Comparison, Panel
from experiments.common.policies import COSTS
from experiments.common.problems import Problem
from l2o_jax.optimizees.rescaled import rescaled

# Projection (0: as in meta-training), multiples of --inputs, --hidden and
# --num_steps, minibatch (None: --minibatch).
PANELS = {
  'same': (0, 1, 1, 1, None),
  'base': (1, 1, 1, 1, 64),
  'wide': (1, 100 / 48, 200 / 48, 1, 64),
  'noisy': (1, 1, 1, 1, 10),
  'wide_noisy': (1, 100 / 48, 200 / 48, 1, 10),
  'wide_long': (1, 100 / 48, 200 / 48, 2, 64),
}


# What theta may be selected on: {name: (panel, images; 0: all)}.
VALIDATE = {name: (name, 0) for name in PANELS}
VALIDATE |= {f'small_{name}': (name, 400) for name in PANELS}


# Starts for imitation, which the paper does not compare; and NAG.
NOT_COMPARED = ('NAG', 'ADAM_decaying', 'ADAM_fading')
PARTS = ('smallest_part', 'smallest_batch')


class Images(NamedTuple):
  """Images and nets.

  Attributes:
    dataset: Images of meta-training: a name of python -m l2o_jax.datasets
      (mnist_5k is in the package), or an .npz.
    test_data: Images of the comparison, a flag for each; by default those of
      --dataset, with another projection.
    data_dir: Where prepared data sets are; $TFDS_DATA_DIR or
      ~/tensorflow_datasets by default.
    test_images: How many images to draw from each of them; a net can learn few
      images by heart; 0: all.
    test_classes: How many classes to keep of each, the first ones; 0: all.
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
    smallest_part: The least number of images that a rollout of meta-training
      has; their number is random; 0: all images.
    smallest_batch: The least minibatch of a rollout of meta-training; its size
      is random, up to --minibatch; 0: --minibatch.
    rescale: In meta-training the parameters of every rollout are multiplied by
      exp(U(-r, r)), r >= 0.
    validate_on: Other problems that theta is selected on, a flag for each: the
      problems of the comparison, on images of meta-training and a projection
      that is not in it; small_...: on 400 of them; by default the objective of
      meta-training.
  """

  dataset: str = 'mnist_5k'
  test_data: tuple[str, ...] = ()
  data_dir: str | None = None
  test_images: Annotated[int, 0, 10**6] = 0
  test_classes: Annotated[int, 0, 10**3] = 0
  panels: tuple[Literal[tuple(PANELS)], ...] = tuple(PANELS)
  tune_each: bool = False
  inputs: settings.Count = 48
  hidden: settings.Count = 48
  initial_std: settings.Positive = 0.1
  minibatch: settings.Count = 64
  objective_size: settings.Count = 10**6
  smallest_part: Annotated[int, 0, 10**6] = 0
  smallest_batch: Annotated[int, 0, 10**6] = 0
  rescale: Annotated[float, 0.0, 10.0] = 0.0
  validate_on: tuple[Literal[tuple(VALIDATE)], ...] = ()


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
  policy: policies.PolicySettings = policies.PolicySettings()
  imitation: policies.Imitation = policies.Imitation()
  search: policies.Search = policies.Search()
  bptt: settings.Bptt = settings.Bptt(unroll_length=10)
  scale: policies.Scale = policies.Scale()
  comparison: Comparison = Comparison(
    num_test=5,
    num_tuning=4,
    tune='all',
    baselines=tuple(n for n in TABLE if n not in NOT_COMPARED),
  )


def check(s: Settings) -> None:
  """Which flags do not go together."""
  cost, initial = s.search.cost, s.search.initial
  whole = s.policy.shared or s.policy.features == 'log_and_sign'
  named = '--sized needs a theta for each layer, not --shared or log_and_sign'
  settings.refuse({named: s.policy.sized and whole})
  larger = s.images.smallest_batch > s.images.minibatch
  settings.refuse({'--smallest_batch is larger than --minibatch': larger})
  admm = s.policy.trainer == 'badmm'  # it imitates nobody
  epochs = 0 if admm else s.imitation.imitation_epochs
  if s.policy.trainer == 'bptt':
    apart = s.bptt.remat == 'blocks' and not s.policy.shared
    return settings.refuse({'--remat=blocks needs --shared': apart})
  samples = cost and COSTS[cost].of_samples and admm
  settings.refuse(
    {
      '--num_steps must be 2 or more without --trainer=bptt': s.run.num_steps
      < 2,
      f'--cost={cost} needs --trainer=mdgps': samples,
      f'--trainer=badmm needs --initial=momentum, not {initial}': (
        admm and initial != 'momentum'
      ),
      f'--initial={initial} needs --imitation_epochs': (
        initial != 'momentum' and not epochs
      ),
      '--imitation_epochs is part of --num_epochs': epochs > s.run.num_epochs,
    }
  )


FULL = {
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
}
SCALE_FREE = {
  'features': 'scale_free',
  'lstm_units': 8,
  'sized': True,
  'initial': 'ADAM_fading',
  'initial_rate': 0.75,
  'num_validation': 2,
  'validate_on': (
    'base',
    'noisy',
    'wide_noisy',
    'small_base',
    'small_wide_noisy',
  ),
}
FIGURES = {
  'dataset': 'mnist',
  'theta': 'scale_free',
  'num_epochs': 0,
  'imitation_epochs': 0,
  'initial': 'momentum',
  'validate_on': (),
  'test_data': ('cifar10', 'cifar100'),
  'panels': ('base', 'wide', 'noisy', 'wide_noisy', 'wide_long'),
  'baselines': tuple(
    n for n in TABLE if n not in NOT_COMPARED and 'line search' not in n
  ),
}
EXPERIMENT = settings.Experiment(
  'predicted_step_descent',
  Settings(),
  {
    'quick': {'inputs': 16, 'hidden': 16},
    'full': FULL,
    'scale_free': FULL | SCALE_FREE,
    'figures': FULL | SCALE_FREE | FIGURES,
  },
  __doc__,
  {
    'imitation': ('trainer', ('mdgps',)),
    'search': ('trainer', ('mdgps', 'badmm')),
    'bptt': ('trainer', ('bptt',)),
    'scale': ('trainer', ('bptt',)),
  },
  check,
  {
    'num_epochs': 'Epochs of meta-training, >= 0; one epoch is one run of '
    '--num_steps, or --num_rollouts of them without --trainer=bptt.'
  },
)


def make_optimizee(s: Settings, data, panel, **parts):
  """(the net of a panel on these data, number of steps)."""
  seed, wider, more, runs, minibatch = panel
  inputs = round(wider * s.images.inputs)
  hidden = round(more * s.images.hidden)
  sizes = inputs, hidden, minibatch or s.images.minibatch
  how = {'seed': seed, 'std': s.images.initial_std, **parts}
  return projected.make_optimizee(data, *sizes, **how), runs * s.run.num_steps


def make_trained_on(s: Settings, data, optimizee):
  """`optimizee`, the objective of meta-training, or a family of its parts."""
  own = s.images
  parts = {name: getattr(own, name) or None for name in PARTS}
  if any(parts.values()):
    parts['objective_size'] = own.objective_size
    optimizee, _ = make_optimizee(s, data, PANELS['same'], **parts)
  if own.rescale:
    optimizee = rescaled(optimizee, own.rescale, 'function')
  return optimizee


def make_panels(s: Settings, test_data: dict, tuning: Problem):
  """The problems of the comparison, one after the other."""
  for data_name, data in test_data.items():
    for name in s.images.panels:
      optimizee, steps = make_optimizee(s, data, PANELS[name])
      test = make_problem(optimizee, 'test', s.comparison.num_test, steps)
      keys = problems.keys('tuning', s.comparison.num_tuning)
      own = test._replace(keys=keys) if s.images.tune_each else tuning
      what = name.replace('_', ', ')
      yield Panel(f'{data_name}, {what}', own, test)


def make_validation(s: Settings, learned, data, own: Problem):
  """theta -> losses; of several problems, their mean relative to the start.

      exp(mean of log(f_t / f_0) over the problems)

  A problem whose f goes to 0 counts as much as another.
  """
  if not s.images.validate_on:
    return problems.mean_curve(own, learned)
  curves = []
  for name in s.images.validate_on:
    panel, count = VALIDATE[name]
    panel = (2, *PANELS[panel][1:])  # a projection of its own
    size = {'objective_size': s.images.objective_size}
    few = projected.few(data, count)
    optimizee, steps = make_optimizee(s, few, panel, **size)
    each = len(own.keys)
    problem = make_problem(optimizee, 'validation', each, steps)
    every = own.every * steps // own.num_steps  # as many points as others
    problem = problem._replace(every=every)
    curves.append(problems.mean_curve(problem, learned))

  def validate(theta):
    found = [curve(theta) for curve in curves]
    logs = [np.log(np.maximum(f / f[0], 1e-30)) for f in found]
    return np.exp(np.mean(logs, 0))

  return validate


def make_problem(optimizee, what, count, num_steps) -> Problem:
  """Some 50 values of the exact objective along each run."""
  keys, every = problems.keys(what, count), projected.every(num_steps)
  return Problem(optimizee, keys, num_steps, 1, every, objective=True)


def meta_train(s: Settings, t, tuning: Problem):
  """(the last Progress, facts for the summary), by the flags' trainer."""
  if s.policy.trainer == 'bptt':
    if t.theta is None:
      start = t.learned.init(training.first_keys(s.run.seed)[0])
      scale = jnp.float32(s.scale.output_scale)  # of every group's policy
      t = t._replace(theta=optax.tree.set(start, output=scale))
    return bptt.train(t, s.bptt)
  tuned = {'rate': 1.0, 'momentum': 0.0}
  if s.run.num_epochs:  # otherwise nobody starts from it
    tuned = problems.tune(tuning, s.search.initial, 'mean')
  t = t._replace(stages=policies.make_stages(s, t.learned, tuned))
  return training.meta_train(t), {}


def main(s: Settings) -> None:
  """Meta-trains and compares."""
  if comparison.shown(EXPERIMENT, s):
    return
  own = s.images
  data = images.read(own.dataset, data_dir=own.data_dir)
  test_data = projected.load_all(own.test_data or [own.dataset], own.data_dir)
  fewer = own.test_images, own.test_classes
  test_data = {k: projected.few(v, *fewer) for k, v in test_data.items()}
  size = {'objective_size': own.objective_size}
  optimizee, steps = make_optimizee(s, data, PANELS['same'], **size)
  learned = policies.learned_optimizer(s.policy, optimizee)
  problem = lambda what, count: make_problem(optimizee, what, count, steps)
  tuning = problem('tuning', s.comparison.num_tuning)
  validation = problem('validation', s.run.num_validation)
  validate = make_validation(s, learned, data, validation)
  family = make_trained_on(s, data, optimizee)
  parts = {'validate': validate, 'by': 'mean'}

  opened = study.opened(EXPERIMENT, s, learned, [family], optimizee, **parts)
  with opened as (t, compare):
    progress, facts = meta_train(s, t, tuning)
    panels = make_panels(s, test_data, tuning)
    compare(progress, facts, panels, by='mean')


if __name__ == '__main__':
  cli.run(main, EXPERIMENT)
