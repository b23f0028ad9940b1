"""Learned optimizers on eight devices."""

import pathlib
import subprocess
import sys

import pytest
from absl.testing import absltest

from tests.contracts.on_devices import SUBJECTS

ROOT = pathlib.Path(__file__).parents[2]


class DevicesTest(absltest.TestCase):
  @pytest.mark.slow
  def test_state_and_updates_are_where_the_parameters_are(self):
    run = subprocess.run(
      [sys.executable, '-W', 'error', '-m', 'tests.contracts.on_devices'],
      cwd=ROOT,
      capture_output=True,
      text=True,
      timeout=300,
    )
    self.assertEqual(run.returncode, 0, run.stderr)
    self.assertLen(run.stdout.splitlines(), len(SUBJECTS))


if __name__ == '__main__':
  absltest.main()
