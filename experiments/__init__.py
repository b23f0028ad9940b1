"""Binaries of the experiments: python -m experiments.NAME."""

import sys

if sys.argv[0] == '-m':  # a binary starts: Ctrl-C in its imports is one line
  from experiments.common import signals

  signals.install()
