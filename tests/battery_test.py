"""Every attack of the battery, few times."""

import pytest
from absl.testing import absltest, parameterized

from tests.battery.__main__ import BATTERY, run


@pytest.mark.slow
class BatteryTest(parameterized.TestCase):
  @parameterized.named_parameters((name, name) for name in BATTERY)
  def test(self, name):
    """An attack raises an AssertionError, and says in a line what it saw."""
    line = run(name)
    self.assertRegex(line, r'^[^\n]{20,}$')


if __name__ == '__main__':
  absltest.main()
