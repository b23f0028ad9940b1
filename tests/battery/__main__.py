"""Attacks on runs that must be trusted; each a function of how often.

  python -m tests.battery                # as often as the tests do, minutes
  python -m tests.battery --full         # an hour
  python -m tests.battery --only devices processes

An attack returns a line of what it saw and raises AssertionError at the first
thing that should not be.
"""

import argparse
import pathlib
import tempfile
import time

from tests.battery import devices, files, inputs, numbers, programs, runs

# name: (attack, arguments in the tests, arguments in full)
BATTERY = {
  'kill_and_resume': (runs.kill_and_resume, (1, 1), (25, 4)),
  'kill_in_save_loop': (files.kill_in_save_loop, (20,), (500,)),
  'stop_and_resume': (runs.stop_and_resume, (1,), (50,)),
  'damaged_files': (files.damaged_files, (500,), (10_000,)),
  'malicious_files': (files.malicious_files, (0,), (200,)),
  'special_files': (files.special_files, (1,), (5,)),
  'names': (files.names, (50,), (1000,)),
  'nonfinite_gradients': (numbers.nonfinite_gradients, (12,), (1000,)),
  'nonfinite_meta_training': (numbers.nonfinite_meta_training, (12,), (1000,)),
  'nonfinite_experiment': (runs.nonfinite_experiment, (1,), (10,)),
  'extreme_gradients': (numbers.extreme_gradients, (20,), (2000,)),
  'derivatives_at_extremes': (numbers.derivatives_at_extremes, (), ()),
  'bad_flags': (inputs.bad_flags, (30,), (200,)),
  'bad_data': (inputs.bad_data, (21,), (210,)),
  'bad_npz': (inputs.bad_npz, (200,), (5000,)),
  'full_disk': (runs.full_disk, (), ()),
  'vanished_workdir': (runs.vanished_workdir, (), ()),
  'devices': (devices.devices, ((4,),), ((2, 4, 8),)),
  'processes': (devices.processes, (1,), (1,)),
}


def run(name, *, full=False):
  """Runs one attack in a directory of its own; returns its line."""
  attack, fast, all_of_it = BATTERY[name]
  programs.ENVIRONMENT.update({} if full else programs.QUICK)
  with tempfile.TemporaryDirectory() as directory:
    return attack(pathlib.Path(directory), *(all_of_it if full else fast))


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--full', action='store_true')
  parser.add_argument('--only', choices=list(BATTERY), nargs='*')
  arguments = parser.parse_args()
  for name in arguments.only or BATTERY:
    started = time.monotonic()
    line = run(name, full=arguments.full)
    print(f'{name} ({time.monotonic() - started:.0f} s): {line}', flush=True)


if __name__ == '__main__':
  main()
