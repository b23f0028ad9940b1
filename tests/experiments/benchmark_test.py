"""The benchmark measures what it says, on a small update."""

import json
import pathlib
import tempfile
from unittest import mock

import pytest
from absl.testing import absltest

from experiments import benchmark
from experiments.common import cli


class BenchmarkTest(absltest.TestCase):
  @pytest.mark.slow
  def test_update(self):
    directory = self.enterContext(tempfile.TemporaryDirectory())
    sizes = {'workloads': ('update',), 'runs': 2, 'coordinates': 3000}
    own = benchmark.Benchmark(**sizes, workdir=directory)
    with mock.patch.object(cli, 'say') as said:
      benchmark.main(benchmark.Settings(own))
    text = '\n'.join(call.args[0] for call in said.call_args_list)
    self.assertIn('ns/param', text)
    file = pathlib.Path(directory) / 'benchmark.json'
    found = json.loads(file.read_text())
    self.assertIn('cpu: ', found['device'])
    rows = found['update, 3,000 parameters']
    self.assertEqual(list(rows)[0], 'shortest program')
    self.assertIn('optax.adam', rows)
    for row in rows.values():
      self.assertLessEqual(0, row['least'])
      self.assertLessEqual(row['least'], row['seconds'])
      self.assertGreaterEqual(row['peak_bytes'], 3000 * 4 * 4)


if __name__ == '__main__':
  absltest.main()
