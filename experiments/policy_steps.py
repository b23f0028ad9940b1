"""What a policy sees and does on images that a net learns by heart.

Copy and paste:
  python -m experiments.policy_steps
  python -m experiments.policy_steps --theta=runs/psd/theta.npz

Runs the thetas of Predicted Step Descent and two hand-designed optimizers on a
few images, and draws along the run the loss, the gradients, what the features
make of them, and the steps: medians and quartiles over weights of the first
layer.  Writes policy_steps.png and policy_steps.json to --workdir.
"""

import pathlib
import time
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common import (
  cli,
  comparison,
  images,
  panels,
  plots,
  problems,
  projected,
  run,
  settings,
)
from experiments.predicted_step_descent import EXPERIMENT as PSD
from experiments.predicted_step_descent import PANELS, make_optimizee
from l2o_jax.learned_optimizers import policy_parts
from l2o_jax.unroll import unroll

# As tuned on the objective of meta-training, MNIST and 400 steps.
RIVALS = {'RMSprop': {'rate': 0.01, 'decay': 0.99}, 'AdaGrad': {'rate': 0.1}}
# Which feature has the gradient in it.
SLOPE = {'changes': 1, 'scale_free': 2}
PICTURE = panels.Picture(
  'Medians and quartiles over weights of the first layer',
  2,
  'step',
  {'loss': 'loss', '|': 'size'},
  yscale='log',
)


class Steps(NamedTuple):
  """What is run, and where the picture goes.

  Attributes:
    preset: Values of the flags that are not given; see below.
    workdir: Directory of the results, made if missing.
    resume: auto: run again in a --workdir with a run; never: refuse a --workdir
      with a run in it; must: refuse one without.
    theta: Policies, a flag for each: names of l2o_jax.pretrained, files of
      theta or run directories.
    panel: Problem, as in experiments.predicted_step_descent.
    dataset: Images, a name of python -m l2o_jax.datasets or an .npz.
    data_dir: Where prepared data sets are.
    images: How many of them, drawn at random.
    num_steps: Steps of the run.
    coordinates: Weights that are looked at, at most.
  """

  preset: str = ''
  workdir: str = 'runs/policy_steps'
  resume: Literal['auto', 'never', 'must'] = 'auto'
  theta: tuple[str, ...] = ('predicted_step_descent', 'scale_free')
  panel: Literal[tuple(name for name in PANELS if 'long' not in name)] = 'base'
  dataset: str = 'mnist_5k'
  data_dir: str | None = None
  images: settings.Count = 400
  num_steps: settings.Count = 400
  coordinates: settings.Count = 512


class Settings(NamedTuple):
  """All flags."""

  run: Steps = Steps()


EXPERIMENT = settings.Experiment(
  'policy_steps', Settings(), {'quick': {}}, __doc__
)


def trace(optimizee, opt, num_steps: int, coordinates: int):
  """Along one run: (exact objective [T], x, g, u, values), x ... [T, n]."""

  @jax.jit
  def of_run(key):
    key_init, key_loss, key_rows = jax.random.split(key, 3)
    params, task = optimizee.init(key_init)
    size = params[0]['w'].size
    rows = jax.random.permutation(key_rows, size)[:coordinates]
    pick = lambda tree: tree[0]['w'].ravel()[rows]

    def record(step):
      f = optimizee.objective(step.params, task)
      seen = map(pick, (step.params, step.gradients, step.updates))
      return f, *seen, step.loss

    loss = lambda x, key: optimizee.loss(x, task, key)
    keys = jax.random.split(key_loss, num_steps + 1)
    start = params, opt.init(params)
    return unroll(loss, opt, *start, keys, record=record, remat=False)[1].record

  return of_run(problems.keys('validation', 1)[0])


def slopes(features, which: int, x, g, values):
  """|the feature with the gradient in it| along a run, [T, n]."""

  def along(x, g, values):
    update = lambda memory, inputs: features.update(memory, *inputs)
    inputs = (x, g, values)
    return jax.lax.scan(update, features.init(x[0]), inputs)[1]

  return jnp.abs(jax.jit(along)(x, g, values)[..., which])


def sizes(z, band: bool = True) -> dict:
  """The curve of |z|, z [T] or [T, n]."""
  return panels.curve(np.arange(len(z)), np.abs(z), band)


def end(z) -> float:
  """|z| at the last step, the median over n: z [T] or [T, n]."""
  return float(np.median(np.abs(z[-1])))


def policies(s: Steps, optimizee) -> dict[str, tuple]:
  """{name: (optimizer, its features, the number of that with the gradient)}.

  Raises:
    UsageError: a theta is not of Predicted Step Descent, or for other
      parameters than the optimizee's.
    CheckpointError: it cannot be read.
  """
  found = {}
  for name in s.theta:
    path = pathlib.Path(name)
    _, learned, theta = run.find_theta(name)
    if learned.call['name'] != 'predicted_step_descent':
      what = f'is of {learned.call["name"]}, not of predicted_step_descent'
      raise settings.UsageError(f'--theta={name} {what}')
    comparison.rivals((name,), optimizee, flag='theta')
    call = learned.call['arguments']
    kind = call.get('features', 'changes')
    features = policy_parts(call['hidden'], kind)[0]
    label = f'policy, {comparison.label_of(path)}'
    title = comparison.free_label(found, label, path)
    found[title] = learned.transform(theta), features, SLOPE[kind]
  return found


def measure(s: Steps, contenders: dict[str, tuple], data) -> tuple[dict, dict]:
  """({what: {optimizer: curve}}, {what: {optimizer: size at the end}})."""
  optimizee, _ = make_optimizee(PSD.defaults, data, PANELS[s.panel])
  curves = {'loss': {}, '|gradient|': {}, '|feature|': {}, '|step|': {}}
  ends = {what: {} for what in curves}
  contenders = dict(contenders)
  for name, setting in RIVALS.items():
    contenders[name] = problems.make_baseline(name, setting), None, 0
  for name, (opt, features, which) in contenders.items():
    f, x, g, u, values = trace(optimizee, opt, s.num_steps, s.coordinates)
    found = {'loss': f, '|gradient|': g, '|step|': u}
    if features is not None:
      found['|feature|'] = slopes(features, which, x, g, values)
    for what, z in found.items():
      curves[what][name] = sizes(z, band=name not in RIVALS)
      ends[what][name] = end(z)
    cli.log(f'{name}: loss {f[-1]:.3g} in the end')
  return curves, ends


def main(s: Settings) -> None:
  """Runs and draws."""
  began = time.monotonic()
  data = images.read(s.run.dataset, data_dir=s.run.data_dir)
  data = projected.few(data, s.run.images)
  optimizee, _ = make_optimizee(PSD.defaults, data, PANELS[s.run.panel])
  contenders = policies(s.run, optimizee)
  with run.opened(EXPERIMENT, s) as path:
    curves, ends = measure(s.run, contenders, data)
    styles = plots.looks([*contenders, *RIVALS], list(contenders))
    run.write_json(path / 'policy_steps.json', ends)
    panels.draw(path / 'policy_steps.png', PICTURE, curves, styles)
    cli.say(f'written: {path}/policy_steps.png policy_steps.json')
    comparison.finish(path, began)


if __name__ == '__main__':
  cli.run(main, EXPERIMENT)
