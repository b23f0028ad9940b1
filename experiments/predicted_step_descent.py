"""Predicted Step Descent on one objective (Li & Malik 2017, section 4).

Copy and paste:
  python -m experiments.predicted_step_descent       # packaged digits, 16-16-10
  python -m l2o_jax.datasets prepare mnist           # or: --from DIR
  python -m experiments.predicted_step_descent --preset=full --dataset=mnist \
      --workdir=runs/psd

Meta-trains a policy on a single objective, a small ReLU net on randomly
projected images, and compares it on nets of other sizes, smaller minibatches,
more steps and other images with hand-designed optimizers tuned on the objective
of meta-training.  --trainer and --features choose what is trained; --rivals
takes finished runs with others into the comparison.  Writes curves.csv,
summary.json and learning_curves.png to --workdir.
"""

import csv
import json
import pathlib

import jax
import numpy as np
from absl import flags

from experiments.common import cli, plots, policy_training, projected
from experiments.common import run as harness
from l2o_jax import checkpoint
from l2o_jax.gps import costs

PRESETS = {
  'quick': {
    'num_epochs': 25,
    'num_steps': 50,
    'inputs': 16,
    'hidden': 16,
    'lstm_units': 32,
  },
  'full': {
    'num_epochs': 8,
    'num_steps': 400,
    'inputs': 48,
    'hidden': 48,
    'lstm_units': 32,
    'objective_size': 6000,
    'initial': 'ADAM_decaying',
    'initial_rate': 0.75,
    'cloning_epochs': 3,
    'cloning_rate': 3e-3,
    'cloning_scale': 1.0,
    'kl_step': 0.2,
    'max_noise': 0.1,
    'regression_steps': 100,
    'regression_rate': 2e-5,
    'num_coordinates': 128,
  },
}
# Projection (0: that of meta-training), multiples of --inputs, --hidden and
# --num_steps, minibatch.
PANELS = {
  'same': (0, 1, 1, 1, 64),
  'base': (1, 1, 1, 1, 64),
  'wide': (1, 100 / 48, 200 / 48, 1, 64),
  'noisy': (1, 1, 1, 1, 10),
  'wide_noisy': (1, 100 / 48, 200 / 48, 1, 10),
  'wide_long': (1, 100 / 48, 200 / 48, 2, 64),
}

flags.DEFINE_string(
  'dataset',
  'mnist_5k',
  'Images of meta-training: a name of python -m '
  'l2o_jax.datasets (mnist_5k is in the package), or an .npz.',
)
flags.DEFINE_multi_string(
  'test_data',
  [],
  'Images of the comparison, likewise, a flag for each; '
  'those of --dataset by default, with another projection.',
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
  'for each; same: the objective of meta-training, other x_0; base: another '
  'projection, as in all that follow; wide: larger nets; noisy: minibatches '
  'of 10; long: twice the steps.',
)
flags.DEFINE_multi_enum(
  'baselines',
  list(projected.PAPER_BASELINES),
  list(projected.OPTIMIZERS),
  'Hand-designed optimizers of the comparison, a flag for each; by default '
  "the paper's seven.",
)
flags.DEFINE_bool(
  'tune_each',
  False,
  'Tune hand-designed optimizers on every problem of the '
  'comparison by itself, which the paper does not, instead of on the '
  'objective of meta-training.',
)
flags.DEFINE_multi_string(
  'rivals',
  [],
  'Run directories whose thetas are compared too, a flag for each.',
)
flags.DEFINE_integer(
  'inputs',
  48,
  'Projections of an image, >= 1.',
  lower_bound=1,
  upper_bound=10**4,
)
flags.DEFINE_integer(
  'hidden', 48, 'Hidden units, >= 1.', lower_bound=1, upper_bound=10**4
)
flags.DEFINE_float(
  'initial_std',
  0.1,
  'Standard deviation of initial weights and biases, > 0.',
  lower_bound=1e-12,
  upper_bound=1e3,
)
flags.DEFINE_integer(
  'minibatch',
  64,
  'Images per minibatch in meta-training, >= 1.',
  lower_bound=1,
  upper_bound=10**6,
)
flags.DEFINE_integer(
  'objective_size',
  10**6,
  'Images that make the exact objective in meta-training and tuning, at most.',
  lower_bound=1,
  upper_bound=10**9,
)
cli.define_flags(PRESETS, 'runs/predicted_step_descent', search=False)
flags.FLAGS.set_default('unroll_length', 10)
flags.FLAGS.set_default('evaluation_period', 1)
flags.FLAGS.set_default('num_validation', 8)
flags.FLAGS.set_default('num_tuning', 4)
flags.FLAGS.set_default('num_test', 5)
flags.adopt_module_key_flags(cli)
flags.adopt_module_key_flags(policy_training)


def rivals():
  """{name: (learned optimizer, theta)} of other run directories."""
  found = {}
  for path in map(pathlib.Path, flags.FLAGS.rivals):
    try:
      config = json.loads((path / 'config.json').read_text())
      learned = policy_training.optimizer(config)[2]
      name = f'{config["trainer"]}, {config["features"]}'
    except (OSError, ValueError, KeyError, TypeError) as error:
      raise cli.UsageError(
        f'--rivals={path} is no run of this experiment: {error}'
      ) from None
    found[name + f' ({path.name})' * (name in found)] = (
      learned,
      checkpoint.load(path / 'best.npz', learned.init(jax.random.key(0))),
    )
  return found


def compare(workdir, optimizee, thetas, test_data, extra):
  """Objective against step on every panel, ranks, figure.

  Args:
    workdir: the run directory.
    optimizee: of meta-training; hand-designed optimizers are tuned on it, or
      with --tune_each on each panel's own, from other x_0.
    thetas: {name: (learned optimizer, theta)}; the first is this run's.
    test_data: {name: (images, labels)}.
    extra: {name: value} for summary.json.
  """
  args = flags.FLAGS
  tuning, tests = map(policy_training.keys_of, ('tuning', 'test'))
  settings = (
    {}
    if args.tune_each
    else {
      name: projected.tune(optimizee, tuning, name, args.num_steps)
      for name in args.baselines
    }
  )
  panels, summary = {}, {}
  for data_name, data in test_data.items():
    for panel in args.panels:
      projection, wider, more, runs, minibatch = PANELS[panel]
      steps = args.num_steps * runs
      test = projected.problem(
        data,
        round(wider * args.inputs),
        round(more * args.hidden),
        minibatch,
        seed=projection,
        initial_std=args.initial_std,
      )
      if args.tune_each:
        settings = {
          name: projected.tune(test, tuning, name, steps)
          for name in args.baselines
        }
      optimizers = {
        **{
          name: (theta, learned.transform)
          for name, (learned, theta) in thetas.items()
        },
        **{
          name: (
            (),
            lambda _, name=name, setting=setting: projected.OPTIMIZERS[name][0](
              *setting
            ),
          )
          for name, setting in settings.items()
        },
      }
      curves = {}
      for name, (theta, make_opt) in optimizers.items():
        run = jax.jit(
          lambda theta, data, make_opt=make_opt, steps=steps: projected.curves(
            data[0], make_opt(theta), data[1], steps
          )
        )
        curves[name] = np.asarray(run(theta, (test, tests)))
      title = f'{pathlib.Path(data_name).stem}, {panel}'
      panels[title] = (curves, projected.every(steps))
      summary[title] = statistics(curves, settings)
      print(table(title, summary[title]), flush=True)
  means = {
    name: {
      by: float(
        np.mean([rows[name][f'rank_by_{by}'] for rows in summary.values()])
      )
      for by in ('mean', 'final')
    }
    for name in next(iter(summary.values()))
  }
  print('\nmean rank (by mean over the run, by final objective)')
  for name, rank in sorted(means.items(), key=lambda kv: kv[1]['mean']):
    print(
      f'{name:<{max(24, *map(len, means))}}{rank["mean"]:>8.2f}'
      f'{rank["final"]:>8.2f}'
    )
  write(workdir, panels, list(thetas))
  for rows in summary.values():  # JSON knows no nan and inf
    for row in rows.values():
      row.update(
        (k, None)
        for k, v in row.items()
        if isinstance(v, float) and not np.isfinite(v)
      )
  harness.write_json(
    workdir / 'summary.json',
    {'panels': summary, 'mean_rank': means, 'num_test': args.num_test, **extra},
  )
  print(f'\nwritten: {workdir}/learning_curves.png summary.json curves.csv')


def statistics(curves, settings):
  """{optimizer: of its curves [B, K]}; what diverged comes last."""
  rows = {
    name: {
      'setting': settings.get(name),
      'mean': float(np.mean(x, dtype=np.float64)),
      'final': float(np.mean(x[:, -1], dtype=np.float64)),
      'final_stderr': float(x[:, -1].std() / len(x) ** 0.5),
    }
    for name, x in curves.items()
  }
  for by in ('mean', 'final'):
    order = sorted(
      rows, key=lambda name: np.nan_to_num(rows[name][by], nan=np.inf)
    )
    for name in rows:
      rows[name][f'rank_by_{by}'] = order.index(name) + 1
  return rows


def table(title, rows) -> str:
  """One panel, lowest mean first."""
  width = max(24, *map(len, rows))
  lines = [
    f'\n{title}',
    f'{"optimizer":<{width}}{"setting":>24}{"mean":>10}'
    f'{"final":>10}{"± s.e.":>10}',
  ]
  for name, row in sorted(rows.items(), key=lambda kv: kv[1]['rank_by_mean']):
    setting = ', '.join(
      f'{v:.3g}' if isinstance(v, float) else str(v)
      for v in row['setting'] or ()
    )
    lines.append(
      f'{name:<{width}}{setting:>24}{row["mean"]:>10.4g}'
      f'{row["final"]:>10.4g}{row["final_stderr"]:>10.2g}'
    )
  return '\n'.join(lines)


def write(workdir, panels, learned):
  """curves.csv and learning_curves.png."""
  with open(workdir / 'curves.csv', 'w', newline='') as f:
    writer = csv.writer(f)
    writer.writerow(['panel', 'optimizer', 'run', 'step', 'objective'])
    for title, (curves, period) in panels.items():
      for name, runs in curves.items():
        writer.writerows(
          [title, name, i, period * t, f'{value:.6g}']
          for i, run in enumerate(runs)
          for t, value in enumerate(run)
        )
  plots.learning_curves(
    workdir / 'learning_curves.png',
    {title: curves for title, (curves, _) in panels.items()},
    learned,
    {title: period for title, (_, period) in panels.items()},
  )


def main():
  args = flags.FLAGS
  if args.trainer == 'badmm' and args.cost in costs.OF_SAMPLES:
    raise cli.UsageError(f'--cost={args.cost} needs --trainer=mdgps')
  if args.trainer == 'badmm' and args.initial != 'momentum':
    raise cli.UsageError(f'--initial={args.initial} needs --trainer=mdgps')
  others = rivals()
  data = projected.load(args.dataset, args.data_dir)
  test_data = {
    name: projected.load(name, args.data_dir) for name in args.test_data
  } or {args.dataset: data}
  optimizee = projected.problem(
    data,
    args.inputs,
    args.hidden,
    args.minibatch,
    initial_std=args.initial_std,
    objective_size=args.objective_size,
  )
  workdir, learned, theta, extra = policy_training.train(optimizee)
  name = f'{args.trainer}, {args.features}'
  compare(
    workdir,
    optimizee,
    {
      f'{name} (this run)' if name in others else name: (learned, theta),
      **others,
    },
    test_data,
    extra,
  )


if __name__ == '__main__':
  cli.run(main, PRESETS, __doc__)
