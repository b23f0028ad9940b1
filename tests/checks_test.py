"""What constructors say of bad arguments."""

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from l2o_jax import checks


class ChecksTest(absltest.TestCase):
  def test_require(self):
    checks.require(True, 'nothing')
    for false in (False, 0, ()):
      with self.assertRaisesRegex(ValueError, '^f: n must be positive$'):
        checks.require(false, 'f: n must be positive')

  def test_positive(self):
    checks.positive('f', n=1, m=np.int32(2), k=jnp.int32(3))
    for bad in (1.5, jnp.float32(2.5), '2', None):
      with self.assertRaisesRegex(ValueError, '^f: n must be a whole number'):
        checks.positive('f', n=bad)
    with self.assertRaisesRegex(ValueError, '^f: n must be positive, got 0$'):
      checks.positive('f', n=0)


if __name__ == '__main__':
  absltest.main()
