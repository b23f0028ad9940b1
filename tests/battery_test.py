"""Every attack of the battery, few times."""

from absl.testing import absltest, parameterized

from tests.battery.__main__ import BATTERY, run


class BatteryTest(parameterized.TestCase):
  @parameterized.named_parameters((name, name) for name in BATTERY)
  def test(self, name):
    self.assertTrue(run(name))


if __name__ == '__main__':
  absltest.main()
