"""What constructors say of bad arguments."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest

import l2o_jax
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
    checks.at_least(0, 'f', n=0)
    negative = '^f: n must not be negative, got -1$'
    with self.assertRaisesRegex(ValueError, negative):
      checks.at_least(0, 'f', n=-1)

  def test_above_zero(self):
    checks.above_zero('f', n=0.5, m=jnp.float32(1))
    jax.jit(lambda n: checks.above_zero('f', n=n))(-1.0)
    for bad, what in (
      (0, 'positive'),
      (-1.0, 'positive'),
      (float('nan'), 'positive'),
      (float('inf'), 'finite'),
    ):
      message = f'^f: n must be {what}, got {bad!r}$'
      with self.assertRaisesRegex(ValueError, message):
        checks.above_zero('f', m=1, n=bad)
    with self.assertRaises(TypeError):
      checks.above_zero('f', n=None)

  def test_finite(self):
    checks.finite('f', n=-1, m=np.float32(2.5))
    checks.finite('f', 0, n=0)
    for bad in np.nan, np.inf, '1', None:
      message = f'^f: n must be finite, got {bad!r}'
      with self.assertRaisesRegex(ValueError, message):
        checks.finite('f', m=1, n=bad)
    with self.assertRaisesRegex(ValueError, 'must be >= 0 and finite, got -1'):
      checks.finite('f', 0, n=-1)

  def test_trainable(self):
    message = r'^f: learned must be a LearnedOptimizer, got '
    for wrong in optax.sgd(1.0), l2o_jax.pretrained('robust'):
      with self.assertRaisesRegex(TypeError, message):
        checks.trainable('f', wrong)
    checks.trainable('f', l2o_jax.lstm_raw())

  def test_one_of(self):
    checks.one_of('f', {'a': 1, 'b': 2}, n='a', m='b')
    message = r"^f: m must be one of \['a', 'b'\], got 'c'$"
    with self.assertRaisesRegex(ValueError, message):
      checks.one_of('f', ('a', 'b'), n='a', m='c')


if __name__ == '__main__':
  absltest.main()
