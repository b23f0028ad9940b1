"""Linear algebra of guided policy search against NumPy."""

import numpy as np
from absl.testing import absltest, parameterized

from l2o_jax.gps import linalg
from tests.gps.problems import run, spd


class LinalgTest(parameterized.TestCase):
  @parameterized.parameters(1, 4)
  def test_positive_definite_matrices(self, size):
    rng = np.random.default_rng(size)
    m, right = spd(rng, 3, size), rng.normal(size=(3, size, 2))
    np.testing.assert_allclose(
      run(linalg.positive_solve, m, right), np.linalg.solve(m, right), rtol=1e-9
    )
    np.testing.assert_allclose(
      run(linalg.inverse, m), np.linalg.inv(m), rtol=1e-9
    )
    np.testing.assert_allclose(
      run(linalg.log_determinant, m), np.linalg.slogdet(m)[1], atol=1e-9
    )

  @parameterized.parameters(1, 3)
  def test_others_are_nan(self, size):
    m = np.stack([np.eye(size), -np.eye(size)])
    found = run(linalg.inverse, m)
    np.testing.assert_array_equal(found[0], np.eye(size))
    self.assertTrue(np.isnan(found[1]).any())
    self.assertTrue(np.isnan(run(linalg.log_determinant, m)[1]))

  def test_semidefinite(self):
    got = run(linalg.semidefinite, np.diag([4.0, -2.0, 1.0]))
    np.testing.assert_allclose(got, np.diag([4.0, 4e-6, 1.0]), atol=1e-12)

  def test_from_diagonal(self):
    x = np.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(
      run(linalg.from_diagonal, x), np.stack([np.diag(row) for row in x])
    )


if __name__ == '__main__':
  absltest.main()
