"""python -m l2o_jax.datasets: the command line of `prepare`."""

import argparse
import sys

from l2o_jax.datasets import PREPARABLE, DatasetError, default_data_dir
from l2o_jax.datasets.prepare import prepare


def main(argv=None) -> int:
  """Runs a command; returns the exit status."""
  parser = argparse.ArgumentParser(
    prog='python -m l2o_jax.datasets',
    description='Prepare image data sets without TensorFlow.',
  )
  what = 'write a data set as tensorflow-datasets does'
  parser.add_argument('command', choices=['prepare'], help=what)
  parser.add_argument('name', help=', '.join(PREPARABLE))
  what = 'directory with the archives or unpacked files; default: download them'
  parser.add_argument('--from', dest='source', metavar='DIR', help=what)
  default = default_data_dir().replace('%', '%%')  # argparse formats it
  what = f'where to write; default: {default}'
  parser.add_argument('--data_dir', metavar='DIR', help=what)
  arguments = parser.parse_args(argv)
  say = lambda text: print(text, file=sys.stderr, flush=True)
  try:
    print(prepare(arguments.name, arguments.data_dir, arguments.source, say))
  except (DatasetError, OSError) as error:
    say(f'error: {error}')
    return 2
  except KeyboardInterrupt:
    say('interrupted')
    return 130
  return 0


if __name__ == '__main__':
  sys.exit(main())
