"""A study: meta-training, then the comparison, in one run directory."""

import contextlib

import jax

from experiments.common import comparison, problems, settings, training
from experiments.common import run as run_lib
from l2o_jax.base import Optimizee


def keys(s, what: str) -> jax.Array:
  """As many keys for 'validation', 'tuning' or 'test' as the flags say."""
  return problems.keys(what, settings.flat(s)[f'num_{what}'])


@contextlib.contextmanager
def opened(experiment, s, learned, optimizee, like=None, **parts):
  """Opens a run directory, once --theta and --rivals are found to be good.

  Args:
    experiment: the binary.
    s: its flags.
    learned: the optimizer whose theta is trained.
    optimizee: trained on, or several families.
    like: --rivals must work on its parameters; by default on those of the
      optimizee, or of the first family.
    **parts: more of `training.Training`.

  Yields:
    (the Training, theta to start from or None, compare).
    `compare(progress, facts, panels, **how)` is `comparison.compare` of the
    selected theta with the rivals; `facts` go into summary.json.
  """
  if like is None:
    like = optimizee if isinstance(optimizee, Optimizee) else optimizee[0]
  theta = training.given_theta(learned, s)
  others = comparison.rivals(s.comparison.rivals, like)
  with run_lib.opened(experiment, s) as path:
    t = training.prepare(experiment, s, path, learned, optimizee, **parts)

    def compare(progress, facts, panels, **how):
      mine = comparison.contenders(learned, progress.best_theta, s, others)
      facts = {**facts, 'validation_loss': float(progress.best)}
      comparison.compare(path, mine, panels, s.comparison, extra=facts, **how)

    yield t, theta, compare
