"""Every preset of every experiment against a list of contracts."""

from unittest import mock

import chex
import jax
import jax.numpy as jnp
from absl.testing import absltest, parameterized

from experiments import (
  cifar10,
  learning_to_optimize,
  mnist,
  neural_art,
  predicted_step_descent,
  quadratics,
  robust,
)
from experiments.common import bptt, families, policies, run, settings
from l2o_jax.learned_optimizers import autonomous_optimizer
from l2o_jax.optimizees.classifier import classifier, mlp
from l2o_jax.optimizees.convnet import convnet
from l2o_jax.optimizees.quadratic import quadratic
from l2o_jax.theta_files import build


def by_bptt(s, learned, optimizee):
  how = s.bptt, s.run.num_epochs, [s.run.num_steps]
  return learned, bptt.make_trainers(learned, *how), optimizee


def of_quadratics(s):
  f = s.functions
  family = f.dimension, f.entries, 0.01, f.num_problems, f.batch_form
  learned = quadratics.make_learned(s.learned)
  return by_bptt(s, learned, quadratic(*family))


def of_mnist(s):
  learned = bptt.learned_optimizer(s)
  images, labels = jnp.zeros((9, 28, 28, 1), jnp.uint8), jnp.arange(9)
  net = mlp((784, 20, 10), initial_std=s.images.initial_std)
  size = s.images.batch_size
  return by_bptt(s, learned, classifier(images, labels, net, size))


def of_cifar10(s):
  images, labels = jnp.zeros((9, 8, 8, 3), jnp.uint8), jnp.arange(9)
  net = convnet((8, 8, 3), 9)
  optimizee = classifier(images, labels, net, s.images.batch_size)
  labels = None if s.layers.shared else cifar10.GROUPS
  learned = bptt.learned_optimizer(s, labels)
  return by_bptt(s, learned, cifar10.in_vectors(optimizee))


def of_neural_art(s):
  images = jnp.ones((2, 6, 6, 3), jnp.uint8)
  net = lambda pixels: (pixels, [pixels])
  learned = bptt.learned_optimizer(s)
  optimizee = neural_art.make_optimizee(s, net, images, images[0])
  return by_bptt(s, learned, optimizee)


def of_learning_to_optimize(s):
  optimizee = learning_to_optimize.FAMILIES[s.functions.family][0]()
  params, _ = jax.eval_shape(optimizee.init, jax.random.key(0))
  labels, size = {k: k for k in params}, sum(x.size for x in params.values())
  learned = autonomous_optimizer(labels)
  if s.gps.policy == 'joint':
    learned = autonomous_optimizer(coordinates=size)
  functions = jax.random.split(jax.random.key(0), 2)
  tuned = {'rate': 0.1, 'momentum': 0.9}
  make = learning_to_optimize.make_trainer
  return learned, [make(s, learned, labels, size, functions, tuned)], None


def of_predicted_step_descent(s):
  data = jnp.zeros((10, 4, 4, 1), jnp.uint8), jnp.arange(10)
  net, _ = predicted_step_descent.make_optimizee(s, data, (0, 1, 1, 1, None))
  learned = policies.learned_optimizer(s.policy, net)
  if s.policy.trainer == 'bptt':
    return by_bptt(s, learned, None)
  tuned = {'rate': 0.1}
  if s.search.initial == 'momentum':
    tuned['momentum'] = 0.9
  stages = policies.make_stages(s, learned, tuned)
  assert sum(stage.num_epochs for stage in stages) == s.run.num_epochs
  return learned, [stage.trainers[0] for stage in stages], None


def of_robust(s):
  learned = robust.optimizer(s.optimizer)
  with mock.patch.object(families, 'reference_curves', lambda f, _: [0.0]):
    found = robust.stages(learned, s, ())
  assert sum(stage.num_epochs for stage in found) == s.run.num_epochs
  return learned, [stage.trainers[0] for stage in found], None


BINARIES = {
  'quadratics': (quadratics, of_quadratics),
  'mnist': (mnist, of_mnist),
  'cifar10': (cifar10, of_cifar10),
  'neural_art': (neural_art, of_neural_art),
  'learning_to_optimize': (learning_to_optimize, of_learning_to_optimize),
  'predicted_step_descent': (predicted_step_descent, of_predicted_step_descent),
  'robust': (robust, of_robust),
}
PRESETS = [
  (f'{name}_{preset}', name, preset)
  for name, (module, _) in BINARIES.items()
  for preset in module.EXPERIMENT.presets
]


class PresetsTest(parameterized.TestCase):
  @parameterized.named_parameters(*PRESETS)
  def test_builds_its_trainers(self, name, preset):
    """They train what the theta file will name; the program can be traced."""
    module, make = BINARIES[name]
    s = settings.preset(module.EXPERIMENT, preset)
    module.EXPERIMENT.check(s)
    learned, trainers, optimizee = make(s)
    key = jax.random.key(0)
    theta = jax.eval_shape(learned.init, key)
    again = jax.eval_shape(build(learned.call).init, key)
    chex.assert_trees_all_equal_shapes_and_dtypes(theta, again)
    for trainer in trainers:
      state = jax.eval_shape(trainer.init, key)
      chex.assert_trees_all_equal_shapes_and_dtypes(state.theta, theta)
      if optimizee is not None:
        new, info = jax.eval_shape(trainer.step, state, optimizee, key)
        chex.assert_trees_all_equal_shapes_and_dtypes(new, state)
        unrolls = s.run.num_steps // s.bptt.unroll_length
        shape = (unrolls, s.bptt.num_optimizees, s.bptt.unroll_length + 1)
        self.assertEqual(info.losses.shape, shape)

  def test_every_binary_that_trains_is_here(self):
    self.assertEqual(set(run.EXPERIMENTS), set(BINARIES))


if __name__ == '__main__':
  absltest.main()
