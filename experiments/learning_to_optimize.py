"""Learned optimizer by guided policy search (Li & Malik 2016, section 5).

Copy and paste:
  python -m experiments.learning_to_optimize       # 4 minutes on one core
  python -m experiments.learning_to_optimize --family=robust --workdir=robust
  python -m experiments.learning_to_optimize --family=net --workdir=net

Trains a policy on a set of small functions (logistic regression, robust linear
regression or nets of 12 weights), compares it on unseen ones, to 4 times its
horizon, with hand-designed optimizers tuned on the training set, and writes the
mean margin of victory (curves.csv, margin.png) and summary.json to --workdir.
"""

import csv
import os

import jax
import numpy as np
import optax
from absl import flags

from experiments.common import cli, plots, small_functions
from experiments.common import run as harness
from l2o_jax import checkpoint
from l2o_jax.cells.mlp import mlp_cell
from l2o_jax.features import history
from l2o_jax.gps import costs
from l2o_jax.gps.guided_policy_search import function_keys, guided_policy_search
from l2o_jax.gps.policy import policy_optimizer
from l2o_jax.gps.state_features import state_features
from l2o_jax.groups import Groups

LEARNED = 'learned'
FIRST_ORDER = ('gradient descent', 'momentum', 'CG')
PRESETS = {
  'quick': {'num_epochs': 24},
  'paper': {
    'num_epochs': 10,
    'method': 'badmm',
    'policy': 'joint',
    'cost': 'taylor',
    'num_rollouts': 20,
    'policy_rollouts': 0.0,
    'blend': 0.5,
    'inner_iterations': 4,
    'precision_power': 1.0,
  },
}

flags.DEFINE_enum(
  'family',
  'logistic',
  list(small_functions.FAMILIES),
  'Functions to be '
  'minimized; as many for training as in the paper: 90, 120, 80.',
)
flags.DEFINE_integer(
  'num_functions',
  0,
  'Training functions, >= 0; 0: as many as the paper.',
  lower_bound=0,
  upper_bound=10**5,
)
flags.DEFINE_enum(
  'method',
  'mdgps',
  ['mdgps', 'badmm'],
  "badmm: the paper's, with "
  "multipliers; mdgps: mirror descent on the policy's own rollouts.",
)
flags.DEFINE_enum(
  'policy',
  'coordinatewise',
  ['coordinatewise', 'joint'],
  'joint: one net '
  'sees and moves all parameters, as in the paper; coordinatewise: one for '
  'each group of parameters, run on every coordinate.',
)
flags.DEFINE_enum(
  'cost',
  None,
  list(costs.NAMES),
  'Quadratic model of the cost; taylor: the '
  "paper's, for joint policies; sample_taylor: that of every sample by "
  'itself, for mdgps and by default there with coordinatewise policies; '
  'sample_gradient: likewise to first order; gradient_share by default '
  'elsewhere.',
)
flags.DEFINE_float(
  'kl_step',
  None,
  'Largest step of a guide at first, for each time and '
  'coordinate, in nats, > 0; by default 0.5 with a --cost of samples, where '
  'it falls to 2 % by a cosine, and 0.2 elsewhere.',
  lower_bound=1e-9,
  upper_bound=1e3,
)
flags.DEFINE_float(
  'precision_power',
  0.25,
  "Exponent of the precision of a guide's actions "
  "in the weights of the policy's regression, 0 ... 1; 1 in the paper.",
  lower_bound=0.0,
  upper_bound=1.0,
)
flags.DEFINE_integer(
  'num_rollouts',
  10,
  'Rollouts of each function in an epoch, >= 2; 20 in the paper.',
  lower_bound=2,
  upper_bound=10**4,
)
flags.DEFINE_float(
  'policy_rollouts',
  0.5,
  'With --method=badmm: share of the rollouts made '
  'by the policy, 0 ... 0.9; 0 in the paper.',
  lower_bound=0.0,
  upper_bound=0.9,
)
flags.DEFINE_integer(
  'inner_iterations',
  2,
  'With --method=badmm: alternations an epoch, >= 1.',
  lower_bound=1,
  upper_bound=20,
)
flags.DEFINE_float(
  'blend',
  0.3,
  'Weight of the other times in the fits, 0 ... 1.',
  lower_bound=0.0,
  upper_bound=1.0,
)
flags.DEFINE_float(
  'initial_rate',
  0.25,
  'Learning rate of the first guide, relative to that of tuned momentum, > 0.',
  lower_bound=1e-6,
  upper_bound=1.0,
)
flags.DEFINE_multi_enum(
  'baselines',
  list(small_functions.OPTIMIZERS),
  list(small_functions.OPTIMIZERS),
  'Hand-designed optimizers of the '
  'comparison, a flag for each; those with a line search may evaluate the '
  'function several times a step.',
)
flags.DEFINE_integer(
  'horizons',
  4,
  'Steps of the comparison in units of --num_steps, >= 1.',
  lower_bound=1,
  upper_bound=100,
)
cli.define_flags(PRESETS, 'runs/learning_to_optimize', bptt=False)
flags.FLAGS.set_default('num_steps', 40)
flags.FLAGS.set_default('evaluation_period', 1)
flags.FLAGS.set_default('num_validation', 512)
flags.FLAGS.set_default('num_test', 100)
flags.adopt_module_key_flags(cli)


def cost_of(args):
  each = args.method == 'mdgps' and args.policy == 'coordinatewise'
  return args.cost or ('sample_taylor' if each else 'gradient_share')


def train(optimizee, names, size, settings):
  """Meta-trains; (run directory, learned optimizer, theta, training keys)."""
  args = flags.FLAGS
  joint = args.policy == 'joint'
  groups = (
    None
    if joint
    else Groups(lambda params: {name: name for name in params}, names)
  )
  cell = mlp_cell(outputs=size if joint else None)
  shape = {'groups': groups, 'joint_size': size if joint else None}
  learned = policy_optimizer(history(), cell, **shape)
  theta = None
  if args.theta is not None:
    theta = checkpoint.load(args.theta, learned.init(jax.random.key(0)))
  workdir = harness.open_workdir(args.workdir, settings, args.resume)
  count = args.num_functions or small_functions.FAMILIES[args.family][1]
  # The key that meta_train gives to the trainer's init.
  training = function_keys(
    jax.random.split(jax.random.key(args.seed))[0], count
  )
  rate, momentum = tune(optimizee, training, 'momentum')
  cost = cost_of(args)
  trainer = guided_policy_search(
    history(),
    cell,
    state_features(5, 0),
    num_steps=args.num_steps,
    initial=(args.initial_rate * rate, momentum),
    method=args.method,
    num_functions=count,
    num_rollouts=args.num_rollouts,
    num_coordinates=4,
    policy_rollouts=args.policy_rollouts,
    cost=cost,
    inner_iterations=args.inner_iterations,
    blend=args.blend,
    precision_power=args.precision_power,
    kl_step=optax.cosine_decay_schedule(
      args.kl_step or 0.5, max(args.num_epochs, 1), alpha=0.02
    )
    if cost in costs.OF_SAMPLES
    else args.kl_step or 0.2,
    cloning_steps=600 if args.theta is None else 0,
    batch_size=64,
    **shape,
  )
  validation = jax.random.split(jax.random.key(1_000_001), args.num_validation)
  mean = jax.jit(
    lambda theta: small_functions.curves(
      optimizee,
      lambda loss: learned.transform(theta),
      validation,
      args.num_steps,
    ).mean(0)
  )
  theta, loss = harness.meta_train(
    workdir,
    trainer,
    optimizee,
    mean,
    num_epochs=args.num_epochs,
    evaluation_period=args.evaluation_period,
    seed=args.seed,
    theta=theta,
    max_nonfinite=args.max_nonfinite,
    select=np.sum,
    cpu_options=harness.COMPILE_QUICKLY,
  )
  return workdir, learned, theta, training, {'validation_sum': loss}


def tune(optimizee, keys, name):
  """The setting of a hand-designed optimizer on the functions of `keys`."""
  make_opt, grid = small_functions.OPTIMIZERS[name]
  if len(grid) == 1:
    return grid[0]
  run = lambda keys, make_opt: small_functions.curves(
    optimizee, make_opt, keys, flags.FLAGS.num_steps
  )
  return small_functions.tune(run, keys, make_opt, grid)[0]


def compare(workdir, optimizee, learned, theta, training, extra):
  """Curves on unseen functions, margins, table."""
  args = flags.FLAGS
  steps = args.horizons * args.num_steps
  keys = jax.random.split(jax.random.key(2_000_003), args.num_test)
  run = jax.jit(
    lambda theta: small_functions.curves(
      optimizee, lambda loss: learned.transform(theta), keys, steps
    )
  )
  losses, settings = {LEARNED: np.asarray(run(theta))}, {LEARNED: None}
  for name in args.baselines:
    make_opt = small_functions.OPTIMIZERS[name][0]
    settings[name] = tune(optimizee, training, name)
    losses[name] = np.asarray(
      jax.jit(
        lambda keys, make_opt=make_opt, best=settings[name]: (
          small_functions.curves(optimizee, make_opt(*best), keys, steps)
        )
      )(keys)
    )
  fixed = [name for name in args.baselines if name in FIRST_ORDER]
  groups = {
    ', '.join(names): names
    for names in (fixed, *([name] for name in args.baselines))
    if names
  }
  margins = {
    title: small_functions.margin(losses, LEARNED, names)
    for title, names in groups.items()
  }
  rows = {
    name: {
      'setting': settings[name],
      'sum': float(x[:, : args.num_steps + 1].sum(1).mean()),
      **{f'step_{t}': float(x[:, t].mean()) for t in (args.num_steps, steps)},
    }
    for name, x in losses.items()
  }
  victory = {
    name: {
      'mean_2_to_horizon': float(m[2 : args.num_steps + 1].mean()),
      'positive_2_to_horizon': float((m[2 : args.num_steps + 1] > 0).mean()),
      'positive_after': float((m[args.num_steps + 1 :] > 0).mean())
      if args.horizons > 1
      else None,
    }
    for name, m in margins.items()
  }
  print(table(args, rows, victory))
  write_curves(workdir / 'curves.csv', losses, margins)
  plots.margins(
    workdir / 'margin.png', margins, losses, LEARNED, args.num_steps
  )
  for row in rows.values():  # JSON knows no nan and inf
    row.update(
      (k, None)
      for k, v in row.items()
      if isinstance(v, float) and not np.isfinite(v)
    )
  harness.write_json(
    workdir / 'summary.json',
    {'optimizers': rows, 'margin_of_victory': victory, **extra},
  )
  print(f'\nwritten: {workdir}/margin.png summary.json curves.csv')


def table(args, rows, victory) -> str:
  """Best sum first; then the margins."""
  last = args.horizons * args.num_steps
  lines = [
    f'\n{args.family}: {args.num_test} unseen functions',
    f'{"optimizer":<22}{"setting":>22}{"sum":>10}'
    f'{f"step {args.num_steps}":>10}{f"step {last}":>10}',
  ]
  for name, row in sorted(rows.items(), key=lambda kv: kv[1]['sum']):
    setting = (
      ''
      if row['setting'] is None
      else ', '.join(
        f'{v:.3g}' if isinstance(v, float) else str(v) for v in row['setting']
      )
    )
    lines.append(
      f'{name:<22}{setting:>22}{row["sum"]:>10.4g}'
      f'{row[f"step_{args.num_steps}"]:>10.4g}'
      f'{row[f"step_{last}"]:>10.4g}'
    )
  lines.append(
    f'\n{"margin of victory over":<32}{"mean, 2 ... T":>14}{"share > 0":>11}'
  )
  lines += [
    f'{name:<32}{row["mean_2_to_horizon"]:>14.4g}'
    f'{row["positive_2_to_horizon"]:>11.2f}'
    for name, row in victory.items()
  ]
  return '\n'.join(lines)


def write_curves(path, losses, margins):
  temporary = f'{path}.tmp'
  with open(temporary, 'w', newline='') as f:
    writer = csv.writer(f)
    writer.writerow(['what', 'name', 'step', 'value'])
    for what, curves in (
      ('mean loss', {k: x.mean(0) for k, x in losses.items()}),
      ('margin', margins),
    ):
      for name, curve in curves.items():
        writer.writerows(
          [what, name, t, f'{value:.6g}'] for t, value in enumerate(curve)
        )
  os.replace(temporary, path)


def main():
  args = flags.FLAGS
  if (
    args.policy == 'joint'
    and cost_of(args) == 'gradient_share'
    and (args.family == 'net')
  ):
    raise cli.UsageError('--policy=joint on nets needs --cost=taylor')
  if args.method == 'badmm' and args.cost in costs.OF_SAMPLES:
    raise cli.UsageError(f'--cost={args.cost} needs --method=mdgps')
  settings = cli.config()
  optimizee = small_functions.FAMILIES[args.family][0]
  params = jax.eval_shape(optimizee.init, jax.random.key(0))[0]
  workdir, learned, theta, training, extra = train(
    optimizee, tuple(params), sum(x.size for x in params.values()), settings
  )
  compare(workdir, optimizee, learned, theta, training, extra)


if __name__ == '__main__':
  cli.run(main, PRESETS, __doc__)
