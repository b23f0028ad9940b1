"""Learned optimizers by name."""

import functools
import inspect
import warnings

from l2o_jax.base import LearnedOptimizer
from l2o_jax.cells.gated import gated_cell
from l2o_jax.cells.lstm import lstm_cell
from l2o_jax.cells.mlp import mlp_cell
from l2o_jax.cells.ntm_bfgs import ntm_bfgs_cell
from l2o_jax.cells.schedule_free import schedule_free
from l2o_jax.cells.standardised import standardised
from l2o_jax.checks import one_of, plain_number, require, traced
from l2o_jax.coordinatewise import coordinatewise
from l2o_jax.features import adam_ratios, gradient, log_and_sign
from l2o_jax.groups import by_label, grouped, sized
from l2o_jax.policy_features import history, relative_changes
from l2o_jax.scale_free import scale_free

# The constructors that a file of theta may name; nothing else in a file selects
# code.
BY_NAME = {}
# Arguments added later; at these values files leave them out, as old ones do.
LATER = {
  'predicted_step_descent': {'features': 'changes', 'sizes': None},
  'lstm_log_and_sign': {'labels': None, 'averaged': 0},
  'robust_optimizer': {
    'labels': None,
    'long_memory': False,
    'size': None,
    'agreement': None,
    'warmup': 0.0,
  },
}


def _named(constructor):
  """Makes every optimizer that it builds record the call that built it."""

  @functools.wraps(constructor)
  def build_and_say(*args, **kwargs):
    bound = inspect.signature(constructor).bind(*args, **kwargs)
    bound.apply_defaults()
    # Numbers of Python, since files of theta hold JSON.
    said = {name: plain_number(x) for name, x in bound.arguments.items()}
    name = constructor.__name__
    for argument, value in LATER.get(name, {}).items():
      if not traced(said[argument]) and said[argument] == value:
        del said[argument]
    call = {'name': name, 'arguments': said}
    return constructor(*args, **kwargs)._replace(call=call)

  BY_NAME[constructor.__name__] = build_and_say
  return build_and_say


@_named
def lstm_raw(scale: float = 1.0) -> LearnedOptimizer:
  """LSTM on the raw gradient, as in the paper on quadratics (section 3.1)."""
  return coordinatewise(gradient(), lstm_cell(scale=scale))


@_named
def lstm_log_and_sign(
  p: float = 10.0, scale: float = 0.1, labels=None, averaged: int = 0
) -> LearnedOptimizer:
  """LSTM on logarithm and sign, as in the paper on MNIST (section 3.2).

  The released code has p = 5 and scale = 0.01.

  Args:
    p: see `log_and_sign`.
    scale: see `lstm_cell`.
    labels: tree of group names like the parameters, or a prefix of one; each
      group has its own theta, as in the paper on CIFAR-10 (section 3.3): one
      for convolutional and one for fully connected layers.  None: one for all.
    averaged: see `lstm_averaging`; over the coordinates of a group.
  """
  cell = lstm_cell(scale=scale, averaged=averaged)
  return _of_labels(coordinatewise(log_and_sign(p), cell), labels)


def _of_labels(learned, labels):
  """One theta for each label; None: one for all."""
  return learned if labels is None else grouped(learned, by_label(labels))


def _policy(features, cell, labels, coordinates=1):
  """A standardised cell; one theta for each label."""
  cell = standardised(cell, coordinates=coordinates)
  return _of_labels(coordinatewise(features, cell), labels)


def policy_parts(hidden: int = 128, features: str = 'changes'):
  """(Features, Cell) of `predicted_step_descent`, without `standardised`.

  Raises:
    ValueError: there are no features of that name.
  """
  if features == 'scale_free':
    # In units of the first actions: no step is longer than ten of them.
    cell = gated_cell(hidden, scale=10.0, rate=1.0, even=4)
    return scale_free(), cell
  one_of('predicted_step_descent', ('changes', 'scale_free'), features=features)
  return relative_changes(), lstm_cell((hidden,), scale=1.0)


@_named
def predicted_step_descent(
  labels=None,
  hidden: int = 128,
  features: str = 'changes',
  sizes: dict[str, int] | None = None,
) -> LearnedOptimizer:
  """Predicted Step Descent (Li & Malik 2017, sections 3.5 and 4).

  One LSTM layer sees the relative changes of value, gradient and step.
  `update` needs `value` and `params`.

  With `features='scale_free'` the changes are ratios at every scale, and the
  LSTM sets the length of the step: -10 tanh(d) σ(m) in units of the first
  actions, with d a mix of the steps of Adam and AdaGrad (`gated_cell`).  A
  factor of f then changes no step.

  With `sizes` the steps suit layers of other widths, too (`groups.sized`).

  Args:
    labels: tree of group names like the parameters; each group has its own
      theta.  In the paper every weight matrix and every bias vector is a group.
      None: one theta for all.
    hidden: units of the LSTM; 128 in the paper.
    features: 'changes', Ψ as in the paper (`relative_changes`), or
      'scale_free'.
    sizes: {label: weights that a leaf had in meta-training}, of some labels or
      all.  None: steps do not depend on how large a leaf is.

  Raises:
    ValueError: there are no features of that name, or a size is not
      positive, or of another label.
  """
  learned = _policy(*policy_parts(hidden, features), labels)
  return learned if sizes is None else sized(learned, by_label(labels), sizes)


@_named
def lstm_policy(
  labels=None, p: float = 10.0, scale: float = 1.0
) -> LearnedOptimizer:
  """The LSTM of Andrychowicz et al. as a policy: standardised, in groups.

  Args:
    labels: see `predicted_step_descent`.
    p: see `log_and_sign`.
    scale: see `lstm_cell`.
  """
  return _policy(log_and_sign(p), lstm_cell(scale=scale), labels)


@_named
def autonomous_optimizer(
  labels=None, coordinates: int | None = None, depth: int = 25, hidden: int = 50
) -> LearnedOptimizer:
  """The policy of Li & Malik 2016 (section 4): a net that sees the recent past.

  `update` needs `value`.

  Args:
    labels: see `predicted_step_descent`.
    coordinates: n: one net sees all n coordinates of a function, as in the
      paper.  None: the net sees one coordinate.
    depth: how many past steps it sees; 25 in the paper.
    hidden: softplus units; 50 in the paper.

  Raises:
    ValueError: labels and coordinates are both given.
  """
  apart = labels is None or coordinates is None
  require(apart, 'autonomous_optimizer: one net for all has no labels')
  cell = mlp_cell((hidden,), coordinates=coordinates)
  return _policy(history(depth), cell, labels, coordinates or 1)


@_named
def robust_optimizer(
  hidden: int = 0,
  scale: float = 0.9,
  age: float = 100.0,
  labels=None,
  long_memory: bool = True,
  size: float | None = 1000.0,
  agreement: float | None = 1.0,
  warmup: float = 10.0,
) -> LearnedOptimizer:
  """Schedule-free Adam with a learned gate on the length of its steps.

  It sees ratios of Adam's moments (RNNprop, Lv et al. 2017) and makes bounded
  steps; the parameters lie between where these steps lead and their average
  over time: see `adam_ratios`, `gated_cell` and `schedule_free`.  Each leaf
  finds the length of its steps; a constant factor of the loss changes nothing
  while gradients are far above 1e-8.

  Args:
    hidden: units of an LSTM in the gate; 0: none.
    scale: bound of a step, > 0.09; > 0.06 without a size, > 0.075 with a short
      memory, > 0.05 with a short memory and no size.
    age: steps after which the length of steps begins to fall, > 0.
    labels: see `lstm_log_and_sign`.
    long_memory: g² is a mean over the last tenth of all steps.  False: over the
      last twenty steps, which is as good where a net fits its data exactly and
      worse where noise limits the loss.
    size: coordinates of a leaf, such as a matrix of weights, from which on its
      steps are shorter: at the start as (1 + n / size)^-1/2, so that layers
      twice as wide have half the steps.  None: steps do not depend on the leaf,
      and are too long for layers of many thousand weights.
    agreement: how quickly the steps of a leaf get longer while its gradients
      agree with the last ones, and shorter while they do not, > 0; needs a
      size.  If parameters are sharded, two numbers a leaf are exchanged.  None:
      lengths do not depend on it, and nothing is exchanged.
    warmup: w >= 0; the w-th step is half as long as without a warm-up.

  Raises:
    ValueError: an argument is out of its bounds, or there is agreement without
      size.
  """
  fits = agreement is None or size is not None
  require(fits, 'robust_optimizer: agreement needs a size')
  leaf = {'age': age, 'size': size, 'agreement': agreement}
  # The direction starts as the newest gradient: averaging is momentum enough.
  if long_memory:
    features = adam_ratios(0.95, 0.999, window=10.0, **leaf)
    start = {'rate': 0.02, 'direction': -1, 'slope': 1 / 3, 'trust': 0.8}
    average = {'momentum': 0.8, 'power': 4.0}
  else:
    features = adam_ratios((0.9, 0.97), 0.95, **leaf)
    start, average = {'rate': 0.05, 'direction': -1}, {'power': 3.0}
  if size is not None:
    start |= {'rate': 1.5 * start['rate'], 'even': 2, 'shrink': 0.5}
  if agreement is not None:
    start |= {'even': 3, 'length': 1.0}
  gated = gated_cell(hidden, scale, **start)
  cell = schedule_free(gated, age, warmup=warmup, **average)
  return _of_labels(coordinatewise(features, cell), labels)


@_named
def rnnprop(scale: float = 0.1) -> LearnedOptimizer:
  """RNNprop (Lv et al. 2017): Adam's ratios through an LSTM, a bounded step.

  A linear layer of 20 ELU units stands before two LSTM layers of 20.
  """
  cell = lstm_cell(scale=scale, projection=20, bounded=True)
  return coordinatewise(adam_ratios(0.95, 0.95), cell)


@_named
def lstm_averaging(scale: float = 0.1, averaged: int = 5) -> LearnedOptimizer:
  """LSTM with global averaging cells on the raw gradient (appendix D, 2016).

  Its coordinates communicate, so an update must have all those of one function.

  Args:
    scale: see `lstm_cell`.
    averaged: cells of the 20 in each of the two layers, 0 ... 20; the paper
      does not give their number.
  """
  return coordinatewise(gradient(), lstm_cell(scale=scale, averaged=averaged))


@_named
def ntm_bfgs(scale: float = 0.25, pairs: int | None = None) -> LearnedOptimizer:
  """NTM-BFGS on the raw gradient (appendix D, 2016); see `ntm_bfgs_cell`.

  Its coordinates communicate, so an update must have all those of one function.

  Args:
    scale: the first inverse Hessian is scale I, > 0.
    pairs: None: a whole memory, n² numbers; K: the last K writes, 3 n K.
  """
  return coordinatewise(gradient(), ntm_bfgs_cell(scale=scale, pairs=pairs))


def flattened(learned: LearnedOptimizer) -> LearnedOptimizer:
  """Deprecated: `learned` itself; trainers put coordinates in one array."""
  text = 'flattened is no longer needed: use the learned optimizer as it is'
  warnings.warn(text, DeprecationWarning, stacklevel=2)
  return learned
