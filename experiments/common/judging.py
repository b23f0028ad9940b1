"""One optimizer on one task: tuned, run, judged."""

import functools
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib

from experiments.common import problems
from experiments.common.tasks import Task
from l2o_jax.evaluation import learning_curves

RATES = 10 ** np.linspace(-4, -1, 7)  # the same for every optimizer
FURTHER = 8  # rates beyond an end, at most, while the best is there
EVERY = 100  # steps between two judgements
TIMED = 100  # steps of a run of which the time is taken
FELL = 0.5  # of f(x_0): a run that was below this and ends above it rose


class Contender(NamedTuple):
  """An optimizer, learned or not.

  Attributes:
    make: (rate, num_steps, *arguments) -> optax transformation.
    rates: to tune, in equal ratios; the grid grows while the best is at an end.
      One: nothing is tuned.
    scheduled: whether it is run anew for each horizon, as it must be told the
      number of steps.
    arguments: arrays that it is made of, theta for example.
    point: (opt_state, params, rate, *arguments) -> where it is judged; None: at
      the parameters, or where optax's schedule-free form is to be judged.
  """

  make: Callable
  rates: Sequence[float] = RATES
  scheduled: bool = False
  arguments: tuple = ()
  point: Callable | None = None


def _judge(task: Task, params, drawn) -> dict:
  """What is known of x_t, by name; `drawn` is what the optimizee drew."""
  f = task.optimizee
  objective = f.objective or (lambda *at: f.loss(*at, jax.random.key(0)))
  found = {'loss': objective(params, drawn), 'norm': optax.tree.norm(params)}
  if task.held_out is not None:
    found['held_out'], found['accuracy'] = task.held_out(params)
  return found


def _runner(contender: Contender, task: Task, num_steps: int) -> Callable:
  """(rate, keys) -> {name: [B, T / EVERY + 1]}.

  It is compiled once, and no run is made twice.
  """
  every, seen = min(EVERY, num_steps), {}

  @jax.jit
  def run(arguments, task, rate, key):  # {name: [T / EVERY + 1]}
    f = task.optimizee
    opt = contender.make(rate, num_steps, *arguments)
    state = jax.eval_shape(lambda key: opt.init(f.init(key)[0]), key)
    point = None
    if contender.point is not None:
      point = lambda state, x: contender.point(state, x, rate, *arguments)
    elif isinstance(state, optax.contrib.ScheduleFreeState):
      point = optax.contrib.schedule_free_eval_params
    judge = functools.partial(_judge, task)
    how = {'objective': judge, 'every': every, 'point': point}
    found = learning_curves(f, opt, key[None], num_steps, **how)
    return jax.tree.map(lambda x: x[0], found)

  def curves(rate, keys):
    names = [(float(rate), jax.random.key_data(key).tobytes()) for key in keys]
    for name, key in zip(names, keys):
      if name not in seen:
        found = run(contender.arguments, task, jnp.float32(rate), key)
        seen[name] = jax.tree.map(np.asarray, found)
    return jax.tree.map(lambda *x: np.stack(x), *(seen[n] for n in names))

  return curves


def _cost(contender: Contender, task: Task):
  """(milliseconds, FLOPs) of a step with its gradient; nothing is judged.

  FLOPs are what XLA counts; None if there is a loop in the loss, which it would
  count once.
  """
  f, key, rate = task.optimizee, jax.random.key(0), contender.rates[0]
  make = lambda arguments: contender.make(rate, TIMED, *arguments)

  @jax.jit
  def several(arguments, f, key):
    return learning_curves(f, make(arguments), key[None], TIMED)

  @jax.jit
  def one(arguments, f, params, drawn, state, key):
    value, g = jax.value_and_grad(f.loss)(params, drawn, key)
    return make(arguments).update(g, state, params, value=value)

  arguments, seconds = contender.arguments, []
  for _ in range(4):  # the first one compiles
    began = time.monotonic()
    several(arguments, f, key).block_until_ready()
    seconds.append(time.monotonic() - began)
  params, drawn = jax.jit(f.init)(key)
  state = make(arguments).init(params)
  step = one.trace(arguments, f, params, drawn, state, key)
  # Not in the lowered program: there random numbers are a loop, too.
  loops = any(f'{loop}[' in str(step.jaxpr) for loop in ('scan', 'while'))
  flops = None if loops else step.lower().cost_analysis().get('flops')
  return 1000 * min(seconds) / TIMED, flops


def _best(rates: Sequence[float], mean_loss: Callable) -> float:
  """The rate with the lowest loss; the grid grows while it is at an end."""
  rates = sorted(float(rate) for rate in rates)
  if len(rates) == 1:
    return rates[0]
  factor, losses = rates[1] / rates[0], {r: mean_loss(r) for r in rates}
  for _ in range(FURTHER):
    best = min(losses, key=losses.get)
    further = {min(losses): best / factor, max(losses): best * factor}
    if best not in further:
      break
    losses[further[best]] = mean_loss(further[best])
  return min(losses, key=losses.get)


def judged(
  contender: Contender,
  task: Task,
  horizons: Sequence[int],
  num_tuning: int,
  num_test: int,
) -> dict:
  """{horizon: {'rate', 'loss' [B], 'held_out', 'accuracy', 'norm', ...}}.

  A rate is tuned for each horizon by the mean of `objective`, on
  `num_tuning` seeds, and judged on `num_test` others.  `diverged` counts runs
  whose loss is not finite or above the start, `rose` those of the others that
  had fallen below half of the start and ended above that half.  `curve` and
  `quartiles` have the losses of all judgements until then; `ms` and `flops` are
  of a step with its gradient.
  """
  tuning = problems.keys('tuning', num_tuning)
  test = problems.keys('test', num_test)
  found, runners = {}, {}
  ms, flops = _cost(contender, task)
  for horizon in horizons:
    steps = horizon if contender.scheduled else max(horizons)
    if steps not in runners:
      runners[steps] = _runner(contender, task, steps)
    run, rates = runners[steps], contender.rates
    last = horizon // min(EVERY, steps)

    def mean_loss(rate, run=run, last=last):
      loss = np.mean(run(rate, tuning)['loss'][:, last])
      return loss if np.isfinite(loss) else np.inf

    rate = _best(rates, mean_loss)
    curves = run(rate, test)
    end = {k: v[:, last] for k, v in curves.items()}
    first, until = curves['loss'][:, 0], curves['loss'][:, : last + 1]
    quartiles = np.quantile(until, [0.25, 0.75], axis=0)
    fell = np.nanmin(until, 1) < FELL * first
    diverged = ~(end['loss'] <= first)
    found[horizon] = {
      'rate': float(rate),
      **{k: v.tolist() for k, v in end.items()},
      'start': float(first.mean()),
      'diverged': int(np.sum(diverged)),
      'rose': int(np.sum(fell & ~diverged & (end['loss'] > FELL * first))),
      'curve': until.mean(0).tolist(),
      'quartiles': quartiles.tolist(),
      'flops': flops,
      'ms': ms,
    }
  return found
