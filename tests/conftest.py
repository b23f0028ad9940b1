"""Of all tests and of the programs that they start: quick compilation.

XLA's compilation is most of their time.  It makes slower code in less time
here, and a program that was compiled before is read from a cache that lives as
long as the session.
"""

import os
import shutil
import tempfile

QUICKLY = (
  '--xla_backend_optimization_level=0',
  '--xla_llvm_disable_expensive_passes=true',
  '--xla_cpu_use_fusion_emitters=false',
  '--xla_cpu_parallel_codegen_split_count=1',
)
# Set before JAX is imported; workers of xdist inherit it.
IS_FIRST = 'PYTEST_XDIST_WORKER' not in os.environ
if IS_FIRST:
  flags = *QUICKLY, os.environ.get('XLA_FLAGS', '')
  os.environ['XLA_FLAGS'] = ' '.join(flags).strip()
  os.environ['JAX_COMPILATION_CACHE_DIR'] = tempfile.mkdtemp()
  os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'


def pytest_unconfigure():
  """The directory goes when the last test is done."""
  if IS_FIRST:
    cache = os.environ['JAX_COMPILATION_CACHE_DIR']
    shutil.rmtree(cache, ignore_errors=True)
