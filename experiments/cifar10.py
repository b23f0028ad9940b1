r"""Two LSTMs on a convolutional net (Andrychowicz et al., section 3.3).

Copy and paste:
  python -m l2o_jax.datasets prepare cifar10         # or: --from DIR
  python -m experiments.cifar10                      # 16 x 16 pixels
  python -m experiments.cifar10 --preset=gated --workdir=runs/gated
  python -m experiments.cifar10 --preset=gated --train_on=other_labels \
      --workdir=runs/sub
  python -m experiments.cifar10 --preset=gated --rivals=runs/sub \
      --rivals=robust --workdir=runs/gated_and_sub

Meta-trains one LSTM for convolutional and one for fully connected layers, and
compares them with `robust` and with tuned SGD, NAG, RMSprop and ADAM on images
that are new to them: of all labels (CIFAR-10), of five and of two (CIFAR-5,
CIFAR-2).  The preset `gated` has LSTMs in the gates of schedule-free Adam.
Writes theta.npz, learning_curves.png, summary.json and curves.csv to --workdir.
"""

from typing import Literal, NamedTuple

import jax
import numpy as np
from jax.tree_util import Partial

from experiments.common import bptt, cli, comparison, problems, settings, study
from experiments.common.comparison import Comparison, Panel
from experiments.common.images import averaged, read, split_off
from experiments.common.problems import Problem
from experiments.common.settings import UsageError
from l2o_jax.base import Optimizee
from l2o_jax.groups import by_label, merge, split
from l2o_jax.optimizees.classifier import classifier
from l2o_jax.optimizees.convnet import convnet

GROUPS = {'conv': 'conv', 'fc': 'fc'}
PANELS = {'ten': 10, 'five': 5, 'two': 2}  # the first labels


class Images(NamedTuple):
  """Images and the net.

  Attributes:
    dataset: A name of python -m l2o_jax.datasets, or an .npz, see
      l2o_jax.datasets.read_npz.
    data_dir: Where prepared data sets are; $TFDS_DATA_DIR or
      ~/tensorflow_datasets by default.
    side: Side, in pixels, to which images are reduced by averaging; must divide
      theirs; 0: no reduction.
    batch_size: Images per minibatch, >= 1.
    train_on: Images of meta-training; other_labels: only the labels from the
      sixth on, which CIFAR-5 and CIFAR-2 do not have (LSTM-sub in the paper).
    panels: Problems of the comparison, a flag for each: images of the first ten
      labels, five or two.
    test_steps: Steps in the comparison, >= 1.
  """

  dataset: str = 'cifar10'
  data_dir: str | None = None
  side: settings.Whole = 0
  batch_size: settings.Count = 128
  train_on: Literal['all_labels', 'other_labels'] = 'all_labels'
  panels: tuple[Literal[tuple(PANELS)], ...] = tuple(PANELS)
  test_steps: settings.Count = 1000


class Layers(NamedTuple):
  """Layers.

  Attributes:
    shared: One LSTM for all layers, not two.
  """

  shared: bool = False


class Settings(NamedTuple):
  """All flags."""

  run: settings.Run = settings.Run(
    workdir='runs/cifar10', evaluation_period=20, num_validation=8
  )
  images: Images = Images()
  optimizer: settings.Optimizer = settings.Optimizer()
  layers: Layers = Layers()
  lstm: settings.Lstm = settings.Lstm()
  gate: settings.Gate = settings.Gate()
  bptt: settings.Bptt = settings.Bptt(learning_rate=2e-3, weights='rising')
  comparison: Comparison = Comparison(
    num_test=20,
    num_tuning=1,
    baselines=('SGD', 'NAG', 'RMSprop', 'ADAM'),
    rivals=('robust',),
  )
  hosts: settings.Hosts = settings.Hosts()


_SMALL = {'side': 16, 'batch_size': 32, 'test_steps': 200}
EXPERIMENT = settings.Experiment(
  'cifar10',
  Settings(),
  {
    'quick': {**_SMALL, 'num_epochs': 100},
    'gated': {
      **_SMALL,
      'optimizer': 'gated',
      'num_epochs': 120,
      'num_steps': 200,
      'num_validation': 16,
      'unroll_length': 50,
      'learning_rate': 3e-3,
      'second_derivatives': True,
    },
    'full': {'num_epochs': 240, 'num_steps': 500},
  },
  __doc__,
  only=settings.ONLY_OPTIMIZER,
)


_OF = dict.fromkeys(
  ('validation', 'tuning'), 'the last tenth of the training images'
)
_OF |= {'test': 'the test images', 'meta-training': 'the training images'}


def of_labels(data, labels, what) -> tuple[np.ndarray, np.ndarray]:
  """The images of these labels, which become 0, 1 ...

  Raises:
    UsageError: there are none of a label.
  """
  images, found = data
  missing = sorted(set(labels) - set(found.tolist()))
  if missing:
    raise UsageError(f'{_OF.get(what, what)}: no image has label {missing[0]}')
  rows = np.isin(found, labels)
  return images[rows], np.searchsorted(labels, found[rows]).astype(np.int32)


def load(s: Images):
  """Images and labels to train on, to validate and tune on, and to test on."""

  def part(split):
    images, labels = read(s.dataset, split, s.data_dir)
    return averaged(images, s.side), labels

  return *split_off(part('train'), 10), part('test')


def in_vectors(f: Optimizee) -> Optimizee:
  """The same functions of {'conv': [n], 'fc': [m]}.

  For meta-training: the program then has two copies of the LSTM to compile, not
  ten.  The LSTMs do not see the difference; `robust` would, since its steps
  depend on the leaf.
  """
  groups = by_label(GROUPS)
  params, _ = jax.eval_shape(f.init, jax.random.key(0))
  to_tree = lambda x: merge(groups, [x[name] for name in groups.names], params)

  def init(f, key):
    params, task = f.init(key)
    return dict(zip(groups.names, split(groups, params))), task

  return Optimizee(
    Partial(init, f),
    Partial(lambda f, x, *args: f.loss(to_tree(x), *args), f),
    Partial(lambda f, x, *args: f.objective(to_tree(x), *args), f),
  )


def main(s: Settings) -> None:
  """Meta-trains and compares."""
  if comparison.shown(EXPERIMENT, s):
    return
  labels = None if s.layers.shared else GROUPS
  learned = bptt.learned_optimizer(s, labels)
  train, held_out, test = load(s.images)
  count = int(train[1].max()) + 1
  known = range(count)
  if s.images.train_on == 'other_labels':
    known = range(PANELS['five'], count)
    what = f'--train_on=other_labels: there are only {count} labels'
    settings.refuse({what: len(known) < 2})

  def optimizee(data, labels, what='meta-training'):
    images, y = of_labels(data, list(labels), what)
    try:
      net = convnet(images.shape[1:], len(labels))
    except ValueError as error:
      raise UsageError(f'{error}; see --side') from None
    # The objective is normalised as one batch, so it is of 1,000 images; no
    # figure uses it.
    return classifier(images, y, net, s.images.batch_size, 1000)

  def problem(data, labels, what, steps):
    f = optimizee(data, labels, what)
    return Problem(f, study.keys(s, what), steps, batch_size=1)

  base = in_vectors(optimizee(train, known))
  validation = problem(held_out, known, 'validation', s.run.num_steps)
  validation = validation._replace(optimizee=in_vectors(validation.optimizee))
  validate = problems.mean_curve(validation, learned)

  panels, steps = [], s.images.test_steps
  sizes = dict.fromkeys(min(PANELS[n], count) for n in s.images.panels)
  for labels in map(range, sizes):
    tuned = problem(held_out, labels, 'tuning', steps)
    unseen = problem(test, labels, 'test', steps)
    panels.append(Panel(f'images of {len(labels)} labels', tuned, unseen))

  opened = study.opened(EXPERIMENT, s, learned, [base], validate=validate)
  with opened as (t, compare):
    progress, facts = bptt.train(t, s.bptt)
    compare(progress, facts, panels)


if __name__ == '__main__':
  cli.run(main, EXPERIMENT)
