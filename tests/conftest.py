"""Of all tests and of the programs that they start: quick compilation.

Compilation is most of their time.  XLA's flags are set before JAX starts, and a
program that was compiled before is read from a cache.
"""

import os
import shutil
import tempfile

from tests import flags

if flags.QUICKLY not in (given := os.environ.get('XLA_FLAGS', '')):
  os.environ['XLA_FLAGS'] = f'{flags.QUICKLY} {given}'.strip()
# Each worker has its own: JAX would read a file that another still writes.
CACHE = tempfile.mkdtemp()
os.environ['JAX_COMPILATION_CACHE_DIR'] = CACHE
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
# Programs do not say which line each of their operations is from.
os.environ['JAX_TRACEBACK_IN_LOCATIONS_LIMIT'] = '0'
# A GPU multiplies float32 with fewer bits by default, to 1e-3.
os.environ.setdefault('JAX_DEFAULT_MATMUL_PRECISION', 'highest')


def pytest_unconfigure():
  """The cache lives as long as the session."""
  shutil.rmtree(CACHE, ignore_errors=True)
