"""Learned optimizer on small nets for MNIST (Andrychowicz et al., section 3.2).

Copy and paste:
  python -m experiments.mnist                          # 5,000 packaged digits
  python -m l2o_jax.datasets prepare mnist             # or: --from DIR
  python -m experiments.mnist --preset=full --dataset=mnist --workdir=runs/mnist

Meta-trains one LSTM on a 784-20-10 sigmoid net and compares it with tuned SGD,
momentum, NAG, RMSprop and ADAM there and where it has not been: more steps,
more units, two layers, ReLU.  Meta-training, validation and test use disjoint
images.  Writes learning_curves.png, summary.json and curves.csv to --workdir.
"""

import math

from absl import flags

from experiments.common import cli, comparison
from experiments.common import run as harness
from experiments.common.baselines import grid
from l2o_jax import datasets
from l2o_jax.learned_optimizers import lstm_log_and_sign
from l2o_jax.optimizees.classifier import classifier, mlp

_TUNED = {
  'initial_std': 0.1,
  'output_scale': 0.01,
  'learning_rate': 2e-3,
  'preprocessing_p': 7.0,
  'weights': 'rising',
  'second_derivatives': True,
  'num_tuning': 16,
  'num_test': 100,
}
PRESETS = {
  'quick': {
    'num_epochs': 100,
    'evaluation_period': 20,
    'num_validation': 8,
    **_TUNED,
  },
  'full': {
    'num_epochs': 600,
    'evaluation_period': 30,
    'num_validation': 96,
    **_TUNED,
  },
  'paper': {
    **_TUNED,
    'num_epochs': 900,
    'evaluation_period': 45,
    'num_validation': 32,
    'preprocessing_p': 10.0,
    'weights': 'all',
    'output_scale': 0.1,
    'second_derivatives': False,
  },
  'original': {
    'num_epochs': 10000,
    'evaluation_period': 100,
    'num_validation': 20,
    'num_tuning': 16,
    'num_test': 100,
    'output_scale': 0.01,
    'preprocessing_p': 5.0,
    'learning_rate': 1e-3,
    'learning_rate_schedule': 'constant',
    'clip_norm': 0.0,
  },
}

# Where the search of a baseline's learning rate begins.
GRIDS = {
  'SGD': grid(0.3, 10.0, 8),
  'momentum': grid(0.1, 3.0, 8),
  'NAG': grid(0.1, 3.0, 8),
  'RMSprop': grid(3e-3, 0.1, 8),
  'ADAM': grid(1e-2, 0.3, 8),
}

# Title, hidden layers, activation, multiple of --num_steps.
PANELS = {
  'base': ('base net', (20,), 'sigmoid', 1),
  'long': ('base net', (20,), 'sigmoid', 2),
  'wide': ('40 hidden units', (40,), 'sigmoid', 1),
  'deep': ('2 hidden layers of 20', (20, 20), 'sigmoid', 1),
  'relu': ('ReLU', (20,), 'relu', 1),
}

flags.DEFINE_enum(
  'dataset',
  'mnist_5k',
  datasets.NAMES,
  'Images; mnist_5k is in the package,'
  ' the others are prepared by python -m l2o_jax.datasets.',
)
flags.DEFINE_string(
  'data_dir',
  None,
  'Where prepared data sets are; $TFDS_DATA_DIR or '
  '~/tensorflow_datasets by default.',
)
flags.DEFINE_multi_enum(
  'panels',
  list(PANELS),
  list(PANELS),
  'Problems of the comparison, a flag '
  'for each; long: twice the steps, wide: 40 hidden units, deep: 2 '
  'hidden layers of 20.',
)
flags.DEFINE_integer(
  'batch_size',
  128,
  'Images per minibatch, >= 1.',
  lower_bound=1,
  upper_bound=10**6,
)
flags.DEFINE_float(
  'initial_std',
  0.01,
  "Standard deviation of the nets' initial weights and "
  'biases, > 0; 0.01: as the released code; near 0 two sigmoid layers stay '
  'on a plateau.',
  lower_bound=1e-12,
  upper_bound=1e3,
)
flags.DEFINE_float(
  'preprocessing_p',
  10.0,
  "p of the gradient's preprocessing, > 0: "
  'gradients under exp(-p) are seen linearly.',
  lower_bound=1e-3,
  upper_bound=50.0,
)
cli.define_flags(PRESETS, 'runs/mnist')
flags.adopt_module_key_flags(cli)


def main():
  args = flags.FLAGS
  settings = cli.config()
  images, labels = datasets.load(args.dataset, 'train', args.data_dir)
  held_out = datasets.load(args.dataset, 'test', args.data_dir)
  inputs, outputs = math.prod(images.shape[1:]), int(labels.max()) + 1
  last = -(len(images) // 12)  # 5,000 of 60,000 for validation and tuning
  train, validation = (
    (images[:last], labels[:last]),
    (images[last:], labels[last:]),
  )

  def optimizee(data, hidden, activation):
    net = mlp((inputs, *hidden, outputs), activation, args.initial_std)
    return classifier(*data, net, args.batch_size)

  learned = lstm_log_and_sign(args.preprocessing_p, args.output_scale)
  base = PANELS['base'][1:3]
  workdir, theta, how = harness.train(
    learned,
    optimizee(train, *base),
    optimizee(validation, *base),
    settings=settings,
    batch_size=1,
  )
  panels = []
  for name in args.panels:
    what, hidden, activation, runs = PANELS[name]
    steps = runs * args.num_steps
    panels.append(
      comparison.Panel(
        f'{what}, {steps} steps',
        optimizee(validation, hidden, activation),
        optimizee(held_out, hidden, activation),
        steps,
      )
    )
  comparison.compare(
    workdir, learned, theta, panels, GRIDS, batch_size=1, extra=how
  )


if __name__ == '__main__':
  cli.run(main, PRESETS, __doc__)
