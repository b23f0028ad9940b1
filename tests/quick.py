"""`jax.jit` for tests: most of their time is compilation."""

import functools
from unittest import mock

import jax

QUICKLY = {'xla_backend_optimization_level': 0}
jit = functools.partial(jax.jit, compiler_options=QUICKLY)
SLOWLY = {'xla_backend_optimization_level': 2}


def optimized():
  """A context whose `jax.jit` is for what runs longer than it compiles."""
  slow = functools.partial(jax.jit, compiler_options=SLOWLY)
  return mock.patch.object(jax, 'jit', slow)
