"""`jax.jit` for tests: most of their time is compilation."""

import functools
from unittest import mock

import jax

from l2o_jax import checks

QUICKLY = {'xla_backend_optimization_level': 0}
jit = functools.partial(jax.jit, compiler_options=QUICKLY)
SLOWLY = {'xla_backend_optimization_level': 2}


def optimized():
  """A context whose `jax.jit` is for what runs longer than it compiles."""
  plain = jax.jit

  def slow(function, **how):
    """Options of the compiler are for the outermost `jax.jit` alone."""
    inner = plain(function, **how)
    outer = plain(function, compiler_options=SLOWLY, **how)

    @functools.wraps(function)
    def call(*args, **kwargs):
      traced = map(checks.traced, jax.tree.leaves((args, kwargs)))
      return (inner if any(traced) else outer)(*args, **kwargs)

    return call

  return mock.patch.object(jax, 'jit', slow)
