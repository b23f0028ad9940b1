"""What the policy of `predicted_step_descent` is, and its meta-training."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags

from experiments.common import cli, projected
from experiments.common import run as harness
from l2o_jax import checkpoint
from l2o_jax.cells.lstm import lstm_cell
from l2o_jax.features import log_and_sign, relative_changes
from l2o_jax.gps import costs
from l2o_jax.gps.guided_policy_search import guided_policy_search
from l2o_jax.gps.policy import policy_optimizer
from l2o_jax.gps.state_features import state_features
from l2o_jax.groups import Groups

FEATURES = {'changes': relative_changes(), 'log_and_sign': log_and_sign()}
NAMES = ('w0', 'b0', 'w1', 'b1')  # coordinate groups
KEYS = {'validation': 1_000_001, 'tuning': 1_500_003, 'test': 2_000_003}

flags.DEFINE_enum(
  'trainer',
  'mdgps',
  ['mdgps', 'badmm', 'bptt'],
  'Guided policy search by '
  "mirror descent or by the papers' Bregman ADMM, or truncated "
  'back-propagation through time.',
)
flags.DEFINE_enum(
  'features',
  'changes',
  list(FEATURES),
  'changes: relative changes and one '
  'LSTM layer (Li & Malik); log_and_sign: of the gradient, and two layers of '
  '20 units (Andrychowicz et al.).',
)
flags.DEFINE_integer(
  'lstm_units',
  128,
  'With --features=changes: units of the LSTM, >= 1; 128 in the paper.',
  lower_bound=1,
  upper_bound=10**4,
)
flags.DEFINE_bool(
  'shared',
  False,
  'One theta for all weights and biases instead of one for each.',
)
flags.DEFINE_enum(
  'initial',
  'momentum',
  ['momentum', 'SGD', 'AdaGrad', 'ADAM', 'RMSprop', 'ADAM_decaying'],
  'Tuned optimizer whose steps the policy learns first; momentum, as in the '
  'paper, is also the first guide; the others need --trainer=mdgps.',
)
flags.DEFINE_float(
  'initial_rate',
  0.25,
  'Learning rate of --initial, relative to the tuned one, > 0.',
  lower_bound=1e-6,
  upper_bound=1.0,
)
flags.DEFINE_integer(
  'cloning_epochs',
  1,
  'First epochs of mirror descent in which the policy '
  'learns the steps of --initial, >= 1; from the second on along its own '
  'rollouts.',
  lower_bound=1,
  upper_bound=1000,
)
flags.DEFINE_float(
  'cloning_rate',
  1e-3,
  'Learning rate of Adam while the policy learns '
  '--initial, in 600 steps an epoch, > 0.',
  lower_bound=1e-9,
  upper_bound=1.0,
)
flags.DEFINE_float(
  'cloning_scale',
  0.0,
  'While the policy learns --initial, gradients and '
  'losses of each rollout are multiplied by exp(U(-s, s)), >= 0; without '
  'effect with --initial=momentum.',
  lower_bound=0.0,
  upper_bound=10.0,
)
flags.DEFINE_enum(
  'cost',
  None,
  list(costs.NAMES),
  'Of the guide; sample_taylor by default '
  'with mdgps, gradient_share with badmm, which has no costs of samples.',
)
flags.DEFINE_float(
  'kl_step',
  1.0,
  'Largest step of the guide at first, for each time and '
  'coordinate, in nats, > 0; falls to 2 % by a cosine.',
  lower_bound=1e-9,
  upper_bound=1e3,
)
flags.DEFINE_float(
  'tolerance',
  1.05,
  'A policy is taken back if its rollouts cost more than '
  'that times the last accepted ones, >= 0.5.',
  lower_bound=0.5,
  upper_bound=100.0,
)
flags.DEFINE_integer(
  'num_rollouts',
  12,
  'Rollouts in an epoch of guided policy search, >= 2.',
  lower_bound=2,
  upper_bound=10**4,
)
flags.DEFINE_integer(
  'num_coordinates',
  256,
  'Coordinates of each group and rollout that are looked at, >= 1.',
  lower_bound=1,
  upper_bound=10**6,
)
flags.DEFINE_float(
  'max_noise',
  0.6,
  'Largest noise of rollouts, relative to the actions of a group, >= 0.001.',
  lower_bound=1e-3,
  upper_bound=10.0,
)
flags.DEFINE_integer(
  'state_depth',
  10,
  "Depth of the guide's state features, >= 0; 25 in the paper.",
  lower_bound=0,
  upper_bound=100,
)
flags.DEFINE_integer(
  'regression_steps',
  300,
  "Steps of Adam in the policy's regression, in an "
  'epoch of guided policy search, >= 1.',
  lower_bound=1,
  upper_bound=10**6,
)
flags.DEFINE_float(
  'regression_rate',
  1e-3,
  'Learning rate of Adam in that regression, > 0.',
  lower_bound=1e-9,
  upper_bound=1.0,
)
flags.DEFINE_integer(
  'batch_size',
  128,
  'Coordinate sequences in each step of that regression, >= 1.',
  lower_bound=1,
  upper_bound=10**6,
)


def labels(params):
  """Weights and biases of each layer: a coordinate group each."""
  return [{k: f'{k}{i}' for k in layer} for i, layer in enumerate(params)]


def optimizer(config):
  """(features, cell, learned optimizer) of a run's config.json."""
  seen = FEATURES[config['features']]
  hidden = (
    (20, 20)
    if config['features'] == 'log_and_sign'
    else (config['lstm_units'],)
  )
  scale = config['output_scale'] or (
    0.01 if config['trainer'] == 'bptt' else 1.0
  )
  cell = lstm_cell(hidden, scale=scale)
  return (
    seen,
    cell,
    policy_optimizer(
      seen, cell, Groups(labels, NAMES), shared=config['shared']
    ),
  )


def keys_of(what):
  """Of the runs for 'validation', 'tuning' or 'test'."""
  count = {
    'validation': flags.FLAGS.num_validation,
    'tuning': flags.FLAGS.num_tuning,
    'test': flags.FLAGS.num_test,
  }
  return jax.random.split(jax.random.key(KEYS[what]), count[what])


def train(optimizee):
  """Meta-trains; (run directory, learned optimizer, theta, for summary)."""
  args = flags.FLAGS
  if args.trainer == 'bptt' and args.remat == 'blocks':
    raise cli.UsageError(
      '--remat=blocks: the groups of coordinates are not one vector'
    )
  seen, cell, learned = optimizer(cli.config())
  theta = None
  if args.theta is not None:
    theta = checkpoint.load(args.theta, learned.init(jax.random.key(0)))
  sharding = (
    harness.sharding(args.num_optimizees) if args.trainer == 'bptt' else None
  )
  workdir = harness.open_workdir(args.workdir, cli.config(), args.resume)
  if args.trainer == 'bptt':
    trainer = harness.make_trainer(
      learned, learning_rate=args.learning_rate, num_epochs=args.num_epochs
    )
  else:
    initial = projected.tune(
      optimizee, keys_of('tuning'), args.initial, args.num_steps
    )
    initial = args.initial_rate * initial[0], *initial[1:]
    if args.initial != 'momentum':
      initial = projected.OPTIMIZERS[args.initial][0](*initial)
    trainer = guided_policy_search(
      seen,
      cell,
      state_features(5, args.state_depth),
      num_steps=args.num_steps,
      initial=initial,
      method=args.trainer,
      groups=Groups(labels, NAMES),
      shared=args.shared,
      num_rollouts=args.num_rollouts,
      num_coordinates=args.num_coordinates,
      policy_rollouts=0.5,
      common_noise=0.8,
      batch_size=args.batch_size,
      regression_steps=args.regression_steps,
      noise_limits=(min(0.02, args.max_noise), args.max_noise),
      initial_noise=min(0.3, args.max_noise),
      learning_rate=lambda iteration: jnp.where(
        (iteration < args.cloning_epochs) & (args.theta is None),
        args.cloning_rate,
        args.regression_rate,
      ),
      cloning_steps=600 if args.theta is None else 0,
      cloning_iterations=args.cloning_epochs,
      cloning_scale=args.cloning_scale,
      cost=args.cost
      or ('sample_taylor' if args.trainer == 'mdgps' else 'gradient_share'),
      kl_step=optax.cosine_decay_schedule(
        args.kl_step, max(args.num_epochs, 1), alpha=0.02
      ),
      tolerance=args.tolerance,
    )
  run = jax.jit(
    lambda theta, data: jnp.mean(
      projected.curves(
        data[0], learned.transform(theta), data[1], args.num_steps
      ),
      0,
    )
  )
  data = optimizee, keys_of('validation')
  theta, loss = harness.meta_train(
    workdir,
    trainer,
    optimizee,
    lambda theta: run(theta, data),
    num_epochs=args.num_epochs,
    evaluation_period=args.evaluation_period,
    seed=args.seed,
    theta=theta,
    max_nonfinite=args.max_nonfinite,
    sharding=sharding,
    select=np.sum,
    cpu_options=None if args.trainer == 'bptt' else harness.COMPILE_QUICKLY,
  )
  return workdir, learned, theta, {'validation_sum': loss}
