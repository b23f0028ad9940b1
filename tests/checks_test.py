"""What constructors say of bad arguments."""

from absl.testing import absltest

from l2o_jax import checks


class ChecksTest(absltest.TestCase):
  def test_require(self):
    checks.require(True, 'nothing')
    for false in (False, 0, ()):
      with self.assertRaisesRegex(ValueError, '^f: n must be positive$'):
        checks.require(false, 'f: n must be positive')


if __name__ == '__main__':
  absltest.main()
