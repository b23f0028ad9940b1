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
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags

from experiments import cli, harness, plots, projected, small_functions
from l2o_jax import checkpoint
from l2o_jax.features import log_and_sign, relative_changes
from l2o_jax.gps import costs
from l2o_jax.gps.groups import Groups
from l2o_jax.gps.guided_policy_search import guided_policy_search
from l2o_jax.gps.policy import policy_optimizer
from l2o_jax.gps.state_features import state_features
from l2o_jax.lstm import lstm_cell

FEATURES = {'changes': relative_changes(), 'log_and_sign': log_and_sign()}
NAMES = ('w0', 'b0', 'w1', 'b1')  # coordinate groups
PRESETS = {
    'quick': {'num_epochs': 25, 'num_steps': 50, 'inputs': 16, 'hidden': 16,
              'lstm_units': 32},
    'full': {'num_epochs': 8, 'num_steps': 400, 'inputs': 48, 'hidden': 48,
             'lstm_units': 32, 'objective_size': 6000,
             'initial': 'ADAM_decaying', 'initial_rate': 0.75,
             'cloning_epochs': 3, 'cloning_rate': 3e-3, 'cloning_scale': 1.0,
             'kl_step': 0.2, 'max_noise': 0.1, 'regression_steps': 100,
             'regression_rate': 2e-5, 'num_coordinates': 128},
}
# Projection (0: that of meta-training), multiples of --inputs, --hidden and
# --num_steps, minibatch.
PANELS = {'same': (0, 1, 1, 1, 64), 'base': (1, 1, 1, 1, 64),
          'wide': (1, 100 / 48, 200 / 48, 1, 64), 'noisy': (1, 1, 1, 1, 10),
          'wide_noisy': (1, 100 / 48, 200 / 48, 1, 10),
          'wide_long': (1, 100 / 48, 200 / 48, 2, 64)}

flags.DEFINE_string(
    'dataset', 'mnist_5k', 'Images of meta-training: a name of python -m '
    'l2o_jax.datasets (mnist_5k is in the package), or an .npz.')
flags.DEFINE_multi_string(
    'test_data', [], 'Images of the comparison, likewise, a flag for each; '
    'those of --dataset by default, with another projection.')
flags.DEFINE_string(
    'data_dir', None, 'Where prepared data sets are; $TFDS_DATA_DIR or '
    '~/tensorflow_datasets by default.')
flags.DEFINE_enum(
    'trainer', 'mdgps', ['mdgps', 'badmm', 'bptt'], 'Guided policy search by '
    'mirror descent or by the papers\' Bregman ADMM, or truncated '
    'back-propagation through time.')
flags.DEFINE_enum(
    'cost', None, list(costs.NAMES), 'Of the guide; sample_taylor by default '
    'with mdgps, gradient_share with badmm, for which the former is not there '
    'and neither is sample_gradient.')
flags.DEFINE_float(
    'kl_step', 1.0, 'Largest step of the guide at first, for each time and '
    'coordinate, in nats, > 0; falls to 2 % by a cosine.', lower_bound=1e-9,
    upper_bound=1e3)
flags.DEFINE_enum(
    'features', 'changes', list(FEATURES), 'changes: relative changes and one '
    'LSTM layer (Li & Malik); log_and_sign: of the gradient, and two layers of '
    '20 units (Andrychowicz et al.).')
flags.DEFINE_integer(
    'lstm_units', 128, 'With --features=changes: units of the LSTM, >= 1; 128 '
    'in the paper.', lower_bound=1, upper_bound=10 ** 4)
flags.DEFINE_bool(
    'shared', False, 'One theta for all weights and biases instead of one for '
    'each.')
flags.DEFINE_multi_enum(
    'panels', list(PANELS), list(PANELS), 'Problems of the comparison, a flag '
    'for each; same: the objective of meta-training, other x_0; base: another '
    'projection, as in all that follow; wide: larger nets; noisy: minibatches '
    'of 10; long: twice the steps.')
flags.DEFINE_multi_enum(
    'baselines', list(projected.PAPER_BASELINES), list(projected.OPTIMIZERS),
    'Hand-designed optimizers of the comparison, a flag for each; by default '
    'the paper\'s seven.')
flags.DEFINE_bool(
    'tune_each', False, 'Tune hand-designed optimizers on every problem of the '
    'comparison by itself, which the paper does not, instead of on the '
    'objective of meta-training.')
flags.DEFINE_multi_string(
    'rivals', [], 'Run directories whose thetas are compared too, a flag for '
    'each.')
flags.DEFINE_integer(
    'inputs', 48, 'Projections of an image, >= 1.', lower_bound=1,
    upper_bound=10 ** 4)
flags.DEFINE_integer(
    'hidden', 48, 'Hidden units, >= 1.', lower_bound=1, upper_bound=10 ** 4)
flags.DEFINE_float(
    'initial_std', 0.1, 'Standard deviation of initial weights and biases, '
    '> 0.', lower_bound=1e-12, upper_bound=1e3)
flags.DEFINE_integer(
    'minibatch', 64, 'Images per minibatch in meta-training, >= 1.',
    lower_bound=1, upper_bound=10 ** 6)
flags.DEFINE_integer(
    'objective_size', 10 ** 6, 'Images that make the exact objective in '
    'meta-training and tuning, at most.', lower_bound=1, upper_bound=10 ** 9)
flags.DEFINE_integer(
    'num_rollouts', 12, 'Rollouts in an epoch of guided policy search, >= 2.',
    lower_bound=2, upper_bound=10 ** 4)
flags.DEFINE_integer(
    'num_coordinates', 256, 'Coordinates of each group and rollout that are '
    'looked at, >= 1.', lower_bound=1, upper_bound=10 ** 6)
flags.DEFINE_integer(
    'state_depth', 10, 'Depth of the guide\'s state features, >= 0; 25 in the '
    'paper.', lower_bound=0, upper_bound=100)
flags.DEFINE_integer(
    'regression_steps', 300, 'Steps of Adam in the policy\'s regression, in an '
    'epoch of guided policy search, >= 1.', lower_bound=1, upper_bound=10 ** 6)
flags.DEFINE_float(
    'regression_rate', 1e-3, 'Learning rate of Adam in that regression, > 0.',
    lower_bound=1e-9, upper_bound=1.0)
flags.DEFINE_float(
    'cloning_rate', 1e-3, 'Learning rate of Adam while the policy learns '
    '--initial, in 600 steps an epoch, > 0.', lower_bound=1e-9, upper_bound=1.0)
flags.DEFINE_float(
    'tolerance', 1.05, 'A policy is taken back if its rollouts cost more than '
    'that times the last accepted ones, >= 0.5.', lower_bound=0.5,
    upper_bound=100.0)
flags.DEFINE_float(
    'max_noise', 0.6, 'Largest noise of rollouts, relative to the actions of '
    'a group, >= 0.001.', lower_bound=1e-3, upper_bound=10.0)
flags.DEFINE_integer(
    'batch_size', 128, 'Coordinate sequences in each step of that regression, '
    '>= 1.', lower_bound=1, upper_bound=10 ** 6)
flags.DEFINE_enum(
    'initial', 'momentum', ['momentum', 'SGD', 'AdaGrad', 'ADAM', 'RMSprop',
                            'ADAM_decaying'],
    'Tuned optimizer whose steps the policy learns first; momentum, as in the '
    'paper, is also the first guide; the others need --trainer=mdgps.')
flags.DEFINE_float(
    'initial_rate', 0.25, 'Learning rate of --initial, relative to the tuned '
    'one, > 0.', lower_bound=1e-6, upper_bound=1.0)
flags.DEFINE_integer(
    'cloning_epochs', 1, 'First epochs of mirror descent in which the policy '
    'learns the steps of --initial, >= 1; from the second on along its own '
    'rollouts.', lower_bound=1, upper_bound=1000)
flags.DEFINE_float(
    'cloning_scale', 0.0, 'While the policy learns --initial, gradients and '
    'losses of each rollout are multiplied by exp(U(-s, s)), >= 0; without '
    'effect with --initial=momentum.',
    lower_bound=0.0, upper_bound=10.0)
cli.define_flags(PRESETS, 'runs/predicted_step_descent', search=False)
flags.FLAGS.set_default('unroll_length', 10)
flags.FLAGS.set_default('evaluation_period', 1)
flags.FLAGS.set_default('num_validation', 8)
flags.FLAGS.set_default('num_tuning', 4)
flags.FLAGS.set_default('num_test', 5)
flags.adopt_module_key_flags(cli)

KEYS = {'validation': 1_000_001, 'tuning': 1_500_003, 'test': 2_000_003}


def labels(params):
  return [{k: f'{k}{i}' for k in layer} for i, layer in enumerate(params)]


def optimizer(config):
  """(features, cell, learned optimizer) of a run's config.json."""
  seen = FEATURES[config['features']]
  hidden = (20, 20) if config['features'] == 'log_and_sign' else (
      config['lstm_units'],)
  scale = config['output_scale'] or (
      0.01 if config['trainer'] == 'bptt' else 1.0)
  cell = lstm_cell(hidden, scale=scale)
  return seen, cell, policy_optimizer(seen, cell, Groups(labels, NAMES),
                                      shared=config['shared'])


def keys_of(what):
  count = {'validation': flags.FLAGS.num_validation,
           'tuning': flags.FLAGS.num_tuning, 'test': flags.FLAGS.num_test}
  return jax.random.split(jax.random.key(KEYS[what]), count[what])


def every(num_steps):
  """Steps between two evaluations of the objective, some 50 a run."""
  return next(k for k in range(max(num_steps // 50, 1), 0, -1)
              if num_steps % k == 0)


def run_curves(data, opt, num_steps):
  optimizee, keys = data
  return projected.curves(optimizee, opt, keys, num_steps, every(num_steps))


def tune(optimizee, name, num_steps):
  setting, _ = small_functions.tune(
      lambda data, opt: run_curves(data, opt, num_steps),
      (optimizee, keys_of('tuning')), *projected.OPTIMIZERS[name])
  return setting


def train(optimizee):
  """Meta-trains; (run directory, learned optimizer, theta, for summary)."""
  args = flags.FLAGS
  seen, cell, learned = optimizer(cli.config())
  theta = None
  if args.theta is not None:
    theta = checkpoint.load(args.theta, learned.init(jax.random.key(0)))
  sharding = (harness.sharding(args.num_optimizees)
              if args.trainer == 'bptt' else None)
  workdir = harness.open_workdir(args.workdir, cli.config(), args.resume)
  if args.trainer == 'bptt':
    trainer = harness.make_trainer(learned, learning_rate=args.learning_rate,
                                   num_epochs=args.num_epochs)
  else:
    initial = tune(optimizee, args.initial, args.num_steps)
    initial = args.initial_rate * initial[0], *initial[1:]
    if args.initial != 'momentum':
      initial = projected.OPTIMIZERS[args.initial][0](*initial)
    trainer = guided_policy_search(
        seen, cell, state_features(5, args.state_depth),
        num_steps=args.num_steps, initial=initial,
        method=args.trainer, groups=Groups(labels, NAMES), shared=args.shared,
        num_rollouts=args.num_rollouts, num_coordinates=args.num_coordinates,
        policy_rollouts=0.5, common_noise=0.8, batch_size=args.batch_size,
        regression_steps=args.regression_steps,
        noise_limits=(min(0.02, args.max_noise), args.max_noise),
        initial_noise=min(0.3, args.max_noise),
        learning_rate=lambda iteration: jnp.where(
            (iteration < args.cloning_epochs) & (args.theta is None),
            args.cloning_rate, args.regression_rate),
        cloning_steps=600 if args.theta is None else 0,
        cloning_iterations=args.cloning_epochs,
        cloning_scale=args.cloning_scale,
        cost=args.cost or ('sample_taylor' if args.trainer == 'mdgps'
                           else 'gradient_share'),
        kl_step=optax.cosine_decay_schedule(
            args.kl_step, max(args.num_epochs, 1), alpha=0.02),
        tolerance=args.tolerance)
  run = jax.jit(lambda theta, data: jnp.mean(run_curves(
      data, learned.transform(theta), args.num_steps), 0))
  data = optimizee, keys_of('validation')
  theta, loss = harness.meta_train(
      workdir, trainer, optimizee, lambda theta: run(theta, data),
      num_epochs=args.num_epochs, evaluation_period=args.evaluation_period,
      seed=args.seed, theta=theta, max_nonfinite=args.max_nonfinite,
      sharding=sharding, select=np.sum)
  return workdir, learned, theta, {'validation_sum': loss}


def rivals():
  """{name: (learned optimizer, theta)} of other run directories."""
  found = {}
  for path in map(pathlib.Path, flags.FLAGS.rivals):
    try:
      config = json.loads((path / 'config.json').read_text())
      learned = optimizer(config)[2]
      name = f'{config["trainer"]}, {config["features"]}'
    except (OSError, ValueError, KeyError, TypeError) as error:
      raise cli.UsageError(f'--rivals={path} is no run of this experiment: '
                           f'{error}') from None
    found[name + f' ({path.name})' * (name in found)] = (
        learned, checkpoint.load(path / 'best.npz',
                                 learned.init(jax.random.key(0))))
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
  settings = {} if args.tune_each else {
      name: tune(optimizee, name, args.num_steps) for name in args.baselines}
  panels, summary = {}, {}
  for data_name, data in test_data.items():
    for panel in args.panels:
      projection, wider, more, runs, minibatch = PANELS[panel]
      steps = args.num_steps * runs
      test = projected.problem(
          data, round(wider * args.inputs), round(more * args.hidden),
          minibatch, seed=projection, initial_std=args.initial_std)
      if args.tune_each:
        settings = {name: tune(test, name, steps) for name in args.baselines}
      optimizers = {
          **{name: (theta, learned.transform)
             for name, (learned, theta) in thetas.items()},
          **{name: ((), lambda _, name=name, setting=setting:
                     projected.OPTIMIZERS[name][0](*setting))
             for name, setting in settings.items()}}
      curves = {}
      for name, (theta, make_opt) in optimizers.items():
        run = jax.jit(lambda theta, data, make_opt=make_opt, steps=steps:
                      run_curves(data, make_opt(theta), steps))
        curves[name] = np.asarray(run(theta, (test, keys_of('test'))))
      title = f'{pathlib.Path(data_name).stem}, {panel}'
      panels[title] = (curves, every(steps))
      summary[title] = statistics(curves, settings)
      print(table(title, summary[title]), flush=True)
  means = {name: {by: float(np.mean([rows[name][f'rank_by_{by}']
                                     for rows in summary.values()]))
                  for by in ('mean', 'final')}
           for name in next(iter(summary.values()))}
  print('\nmean rank (by mean over the run, by final objective)')
  for name, rank in sorted(means.items(), key=lambda kv: kv[1]['mean']):
    print(f'{name:<{max(24, *map(len, means))}}{rank["mean"]:>8.2f}'
          f'{rank["final"]:>8.2f}')
  write(workdir, panels, list(thetas))
  for rows in summary.values():  # JSON knows no nan and inf
    for row in rows.values():
      row.update((k, None) for k, v in row.items()
                 if isinstance(v, float) and not np.isfinite(v))
  harness.write_json(workdir / 'summary.json', {
      'panels': summary, 'mean_rank': means, 'num_test': args.num_test,
      **extra})
  print(f'\nwritten: {workdir}/learning_curves.png summary.json curves.csv')


def statistics(curves, settings):
  """{optimizer: of its curves [B, K]}; what diverged comes last."""
  rows = {name: {'setting': settings.get(name),
                 'mean': float(np.mean(x, dtype=np.float64)),
                 'final': float(np.mean(x[:, -1], dtype=np.float64)),
                 'final_stderr': float(x[:, -1].std() / len(x) ** 0.5)}
          for name, x in curves.items()}
  for by in ('mean', 'final'):
    order = sorted(rows, key=lambda name: np.nan_to_num(
        rows[name][by], nan=np.inf))
    for name in rows:
      rows[name][f'rank_by_{by}'] = order.index(name) + 1
  return rows


def table(title, rows) -> str:
  """One panel, lowest mean first."""
  width = max(24, *map(len, rows))
  lines = [f'\n{title}', f'{"optimizer":<{width}}{"setting":>24}{"mean":>10}'
           f'{"final":>10}{"± s.e.":>10}']
  for name, row in sorted(rows.items(), key=lambda kv: kv[1]['rank_by_mean']):
    setting = ', '.join(f'{v:.3g}' if isinstance(v, float) else str(v)
                        for v in row['setting'] or ())
    lines.append(f'{name:<{width}}{setting:>24}{row["mean"]:>10.4g}'
                 f'{row["final"]:>10.4g}{row["final_stderr"]:>10.2g}')
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
            for i, run in enumerate(runs) for t, value in enumerate(run))
  plots.learning_curves(
      workdir / 'learning_curves.png',
      {title: curves for title, (curves, _) in panels.items()}, learned,
      {title: period for title, (_, period) in panels.items()})


def main():
  args = flags.FLAGS
  if args.trainer == 'badmm' and args.cost in costs.OF_SAMPLES:
    raise cli.UsageError(f'--cost={args.cost} needs --trainer=mdgps')
  if args.trainer == 'badmm' and args.initial != 'momentum':
    raise cli.UsageError(f'--initial={args.initial} needs --trainer=mdgps')
  others = rivals()
  data = projected.load(args.dataset, args.data_dir)
  test_data = {name: projected.load(name, args.data_dir)
               for name in args.test_data} or {args.dataset: data}
  optimizee = projected.problem(
      data, args.inputs, args.hidden, args.minibatch,
      initial_std=args.initial_std, objective_size=args.objective_size)
  workdir, learned, theta, extra = train(optimizee)
  name = f'{args.trainer}, {args.features}'
  compare(workdir, optimizee, {
      f'{name} (this run)' if name in others else name: (learned, theta),
      **others}, test_data, extra)


if __name__ == '__main__':
  cli.run(main, PRESETS, __doc__)
