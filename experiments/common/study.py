"""A study: meta-training, then the comparison, in one run directory."""

import contextlib

import jax

from experiments.common import bptt, comparison, problems, settings, training
from experiments.common import run as run_lib


def keys(s, what: str) -> jax.Array:
  """As many keys for 'validation', 'tuning' or 'test' as the flags say."""
  return problems.keys(what, settings.flat(s)[f'num_{what}'])


@contextlib.contextmanager
def opened(experiment, s, learned, families, like=None, **parts):
  """Opens a run directory, once all that can be wrong is found to be good.

  Args:
    experiment: the binary.
    s: its flags.
    learned: the optimizer whose theta is trained.
    families: of optimizees, trained on.
    like: --rivals must work on its parameters; by default the first family.
    **parts: more of `training.Training`.

  Yields:
    (the Training, compare).  `compare(progress, facts, panels, **how)` is
    `comparison.compare` of the selected theta with the rivals; `facts` go into
    summary.json.
  """
  parts['theta'] = training.given_theta(learned, s)
  unused = settings.unused(experiment, s)
  if hasattr(s, 'bptt') and 'num_optimizees' not in unused:
    parts['sharding'] = bptt.sharding(s.bptt.num_optimizees)
    if s.bptt.remat == 'blocks' and learned.communicates:
      raise settings.UsageError(
        '--remat=blocks needs one theta for all coordinates, which must not '
        'depend on each other or on their array'
      )
  others = comparison.rivals(s.comparison.rivals, like or families[0])
  with run_lib.opened(experiment, s) as path:
    t = training.prepare(experiment, s, path, learned, families, **parts)

    def compare(progress, facts, panels, **how):
      mine = comparison.contenders(learned, progress.best_theta, s, others)
      facts = {**facts, 'validation_loss': float(progress.best)}
      comparison.compare(path, mine, panels, s.comparison, extra=facts, **how)

    yield t, compare
