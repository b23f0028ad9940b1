"""`jax.jit` for tests: most of their time is compilation."""

import functools

import jax

QUICKLY = {'xla_backend_optimization_level': 0}
jit = functools.partial(jax.jit, compiler_options=QUICKLY)
