"""Learned optimizer on random quadratics (Andrychowicz et al., section 3.1).

Copy and paste:
  python -m experiments.quadratics                     # 5 minutes on 2 cores
  python -m experiments.quadratics --preset=full --workdir=runs/full
  python -m experiments.quadratics --preset=original --workdir=runs/original

Meta-trains an LSTM on f(x) = ||W x - y||^2 with 10 coordinates, compares it
with tuned SGD, momentum, NAG, RMSprop and ADAM on unseen functions, and writes
learning_curves.png, summary.json and curves.csv to --workdir.
"""

from absl import flags

from experiments.common import cli, comparison
from experiments.common import run as harness
from experiments.common.baselines import BASELINES, grid
from l2o_jax.learned_optimizers import lstm_raw
from l2o_jax.optimizees.quadratic import quadratic

_TUNED = {
  'output_scale': 0.1,
  'learning_rate': 1e-2,
  'weights': 'rising',
  'second_derivatives': True,
  'num_validation': 1024,
  'num_tuning': 16384,
  'num_test': 2048,
}
# A long horizon needs the meta-gradients of many optimizees, each clipped.
_LONG = {
  **_TUNED,
  'unroll_length': 50,
  'num_optimizees': 16,
  'num_problems': 8,
  'clip_each': 10.0,
}
PRESETS = {
  'quick': {'num_epochs': 600, **_LONG},
  'full': {'num_epochs': 6000, **_LONG},
  'paper': {
    **_TUNED,
    'num_epochs': 6000,
    'learning_rate': 3e-3,
    'weights': 'all',
    'second_derivatives': False,
  },
  'original': {
    'num_epochs': 10000,
    'output_scale': 1.0,
    'learning_rate': 1e-3,
    'learning_rate_schedule': 'constant',
    'clip_norm': 0.0,
    'batch_form': 'mean',
    'num_tuning': 16384,
    'num_test': 2048,
  },
}

flags.DEFINE_enum(
  'entries',
  'uniform',
  ['uniform', 'normal'],
  'Of W and y; uniform: U[0, 1) '
  'as in the released code and, by its levels, the published figure; normal: '
  'N(0, 1) as in the text.',
)
flags.DEFINE_integer(
  'dimension',
  10,
  'Coordinates of a function, >= 1.',
  lower_bound=1,
  upper_bound=10**4,
)
flags.DEFINE_integer(
  'num_problems',
  128,
  'Functions in one optimizee, >= 1; more give a less '
  'noisy meta-gradient and take longer.',
  lower_bound=1,
  upper_bound=10**6,
)
flags.DEFINE_enum(
  'batch_form',
  'sum',
  ['sum', 'mean'],
  'Of the functions in one '
  'tensor; sum: each coordinate sees the gradient of its own function; mean: '
  'that divided by --num_problems, as in the released code.',
)
cli.define_flags(PRESETS, 'runs/quadratics')
flags.adopt_module_key_flags(cli)


def main():
  args = flags.FLAGS
  settings = cli.config()
  learned = lstm_raw(args.output_scale)
  family = {'dimension': args.dimension, 'entries': args.entries}
  optimizee = quadratic(
    **family, batch=args.num_problems, reduction=args.batch_form
  )
  # In the released form a function alone would show 128 times the gradient
  # that the optimizer was trained on: there too it is tested in that form.
  test = quadratic(**family) if args.batch_form == 'sum' else optimizee
  workdir, theta, how = harness.train(
    learned,
    optimizee,
    test,
    settings=settings,
    scale=1 / args.num_problems if args.batch_form == 'sum' else 1.0,
  )
  title = f'{args.dimension}-dimensional quadratics, {args.entries} entries'
  comparison.compare(
    workdir,
    learned,
    theta,
    [
      comparison.Panel(
        title, quadratic(**family), quadratic(**family), args.num_steps
      )
    ],
    {name: grid(1e-3, 1.0) for name in BASELINES},
    extra=how,
  )


if __name__ == '__main__':
  cli.run(main, PRESETS, __doc__)
