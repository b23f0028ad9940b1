"""Neural art without its meta-training, on tiny settings."""

import json
import pathlib
import tempfile
from unittest import mock

import numpy as np
import optax
import pytest
from absl.testing import absltest

from experiments import neural_art
from experiments.common import cli, report, training
from tests.experiments import toy


class NeuralArtTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    directory = self.enterContext(tempfile.TemporaryDirectory())
    self.path = pathlib.Path(directory) / 'run'
    for module in (cli, training):
      self.enterContext(mock.patch.object(module, 'log'))
    self.enterContext(mock.patch.object(report, 'say'))

  @pytest.mark.slow
  def test_a_whole_run(self):
    tiny = {
      'num_epochs': 0,
      'num_steps': 2,
      'unroll_length': 2,
      'num_validation': 1,
      'num_tuning': 1,
      'num_test': 2,
      'panels': ('same',),
      'baselines': ('SGD',),
    }
    s = toy.make_settings(self.path, neural_art.EXPERIMENT, **tiny)
    toy_net = lambda path: lambda pixels: (pixels, [pixels])
    with mock.patch.object(neural_art.vision, 'read_net', toy_net):
      neural_art.main(s)
    summary = json.loads((self.path / 'summary.json').read_text())
    rows = summary['panels']['unseen contents, 64 x 64']
    names = ['LSTM, log-and-sign (Andrychowicz et al.)', 'SGD']
    self.assertEqual(list(rows), names)
    for name in ('learning_curves.png', 'pictures.png', 'theta.npz'):
      self.assertGreater((self.path / name).stat().st_size, 1000, name)

  def test_each_content_once(self):
    contents = np.arange(5 * 4 * 4 * 3, dtype=np.uint8).reshape(5, 4, 4, 3)
    net = lambda pixels: (pixels, [pixels])
    make = neural_art.neural_art
    f = make(contents, contents[0], net)
    keys = neural_art.each_once(f, 'test', 5)
    sgd = lambda: optax.sgd(0.1)
    problem = neural_art.Problem(f, keys, 2, 1)
    found, pictures = neural_art.paint(problem, sgd, keys)
    self.assertEqual(pictures.shape, (5, 4, 4, 3))
    self.assertEqual(found.tolist(), [0, 1, 2, 3, 4])
    self.assertLen(neural_art.each_once(f, 'test', 2), 2)


if __name__ == '__main__':
  absltest.main()
