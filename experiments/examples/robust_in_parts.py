"""What each part of `robust` is worth: the table of its ablations.

  pip install '.[experiments]'
  python -m experiments.examples.robust_in_parts   # some 35 minutes on one core

`robust` is features x cell, like every learned optimizer.  Here it is built
from its parts, and each row leaves some out or changes them.  All have the
theta of the start; the package's has the same values, since meta-training did
not improve on them.  The sixteen nets are those that theta was selected on, not
those that the result is judged on.
"""

import functools

import jax
import numpy as np
import tqdm

import l2o_jax
from experiments.common import families, problems
from experiments.common.verdict import interquartile_mean

AGE = 100.0  # steps after which the length of steps begins to fall
SIZE = 1000.0  # coordinates of a leaf above which its steps are shorter
WARMUP = 10.0  # steps until a step has half of its length
ADAM = functools.partial(
  l2o_jax.adam_ratios, 0.95, age=AGE, size=SIZE, agreement=1.0
)


def build(
  features=ADAM(0.999, window=10.0), average=True, slope=1 / 3, direction=-1
):
  """The optimizer at its start.

  Args:
    features: what it sees.
    average: whether parameters are averaged over time; without it there is no
      warm-up.
    slope: of tanh; near 0 there is no bound of a step.
    direction: of its steps; -1: the newest gradient, 0: momentum.
  """
  how = {'slope': slope, 'direction': direction, 'trust': 0.8}
  how |= {'rate': 0.03, 'even': 3, 'shrink': 0.5, 'length': 1.0}
  cell = l2o_jax.gated_cell(0, 0.3 / slope, **how)
  if average:
    free = {'momentum': 0.8, 'power': 4.0, 'warmup': WARMUP}
    cell = l2o_jax.schedule_free(cell, AGE, **free)
  return l2o_jax.coordinatewise(features, cell)


def without(theta, weight):
  """theta without one weight of the gate."""
  gate = theta['cell']['gate']
  gate = gate | {'w': gate['w'].at[weight].set(0.0)}
  return theta | {'cell': theta['cell'] | {'gate': gate}}


def variants():
  """{row of the table: (learned optimizer, theta)}."""
  start = lambda learned: (learned, learned.init(jax.random.key(0)))
  of = l2o_jax.robust_optimizer
  intact, theta = start(build())
  return {
    'at its start': (intact, theta),
    'g² over 20 steps': start(build(ADAM(0.95))),
    'g² over 1,000 steps': start(build(ADAM(0.999))),
    'no bound of a step': start(build(slope=1e-4)),
    'steps do not fall': (intact, without(theta, -1)),
    'gate blind to |m / √v|': (intact, without(theta, 0)),
    'no warm-up': start(of(warmup=0.0)),
    'leaves do not adapt': start(of(agreement=None)),
    'neither': start(of(agreement=None, warmup=0.0)),
    'nor do they know their size': start(
      of(agreement=None, warmup=0.0, size=None)
    ),
    'no averaging': start(build(average=False)),
    'momentum, no averaging': start(build(average=False, direction=0)),
  }


def main(num_seeds=4, horizons=families.HORIZONS, nets=None):
  """{row: loss over the loss at the start, one number for each horizon}."""
  every, keys = horizons[0], problems.keys('validation', num_seeds)
  how = {'batch_size': 1, 'objective': True, 'every': every}
  at = np.array(horizons) // every

  # theta and the data of a net are arguments; the optimizer is no array.
  @functools.partial(jax.jit, static_argnums=0)
  def losses(transform, theta, net):  # [seeds, horizons]
    opt = transform(theta)
    curves = l2o_jax.learning_curves(net, opt, keys, horizons[-1], **how)
    return curves[:, at] + families.FLOOR

  rows = variants()
  found = {name: [] for name in rows}
  nets = nets or list(families.validation().values())
  for net in tqdm.tqdm(nets, unit='net'):
    for name, (learned, theta) in rows.items():
      of_net = losses(learned.transform, theta, net)
      found[name].append(np.asarray(of_net))  # waits, for the progress bar
    jax.clear_caches()  # one process cannot hold the programs of all nets
  start = np.mean(found['at its start'], 1, keepdims=True)
  columns = ''.join(f'{t:8,}' for t in horizons)
  print(
    f'{len(start)} nets, {num_seeds} seeds: loss over the loss at the start'
  )
  print(f'{"steps":28}{columns}')
  table = {}
  for name, of in found.items():
    ratios = np.moveaxis(np.array(of) / start, 2, 0)  # [3, nets, seeds]
    table[name] = [interquartile_mean(x) for x in ratios]
    print(f'{name:28}' + ''.join(f'{x:8.3f}' for x in table[name]))
  return table


if __name__ == '__main__':
  main()
