"""Of XLA: quick compilation, to slower code.  JAX reads them when it starts.

Without fusion emitters, which go by way of MLIR, tests of whole runs take a
third of the time; by the level alone they take three quarters.  XLA ends the
process at an option that it does not know, and jaxlib 0.11 no longer knows the
one of fusion emitters.
"""

from importlib import metadata

JAXLIB = tuple(map(int, metadata.version('jaxlib').split('.')[:2]))
QUICKLY = ' '.join(
  (
    '--xla_backend_optimization_level=0',
    '--xla_llvm_disable_expensive_passes=true',
    '--xla_cpu_parallel_codegen_split_count=1',
    *['--xla_cpu_use_fusion_emitters=false'] * (JAXLIB < (0, 11)),
  )
)
