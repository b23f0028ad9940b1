"""python -m l2o_jax.datasets: the command line of `prepare`."""

import sys

from l2o_jax.datasets import main

if __name__ == '__main__':
  sys.exit(main())
