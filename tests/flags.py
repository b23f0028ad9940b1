"""Of XLA: quick compilation, to slower code.  JAX reads them when it starts.

Without fusion emitters, which go by way of MLIR, tests of whole runs take a
third of the time; by the level alone they take three quarters.
"""

QUICKLY = ' '.join(
  (
    '--xla_backend_optimization_level=0',
    '--xla_llvm_disable_expensive_passes=true',
    '--xla_cpu_use_fusion_emitters=false',
    '--xla_cpu_parallel_codegen_split_count=1',
  )
)
