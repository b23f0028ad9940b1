"""Meta-training by evolution strategies: no gradient through the run."""

import functools
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import optax

from l2o_jax.base import Info, LearnedOptimizer, MetaTrainer
from l2o_jax.checks import above_zero, ready, trainable
from l2o_jax.truncated_bptt import (
  checked_weights,
  first_state,
  fresh,
  meta_update,
  run_one,
)
from l2o_jax.unroll import unroll


def evolution(
  learned: LearnedOptimizer,
  meta_optimizer: optax.GradientTransformation,
  *,
  unroll_length: int,
  num_unrolls: int,
  num_optimizees: int = 1,
  std: float = 0.01,
  reuse_noise: bool = True,
  weights: chex.Array | None = None,
  of_loss: Callable = lambda loss: loss,
) -> MetaTrainer:
  r"""Evolution strategies over unrolls: one meta-step per unroll of T steps.

  Every optimizee b is run twice, with θ + ε_b and θ - ε_b, on the same function
  with the same minibatches.  With ΔL_b the difference of their losses along an
  unroll, sum_t w_t h(f(x_t)), the estimate of the meta-gradient is

      g = 1 / (2 σ² B) sum_b ξ_b ΔL_b,   ε_b ~ N(0, σ²)

  Noise reuse (Li et al. 2023): ε_b is drawn once for the whole run, ξ_b = ε_b.
  Persistent evolution strategies (PES, Vicol et al. 2021): ε_b is drawn anew in
  every unroll, and ξ_b is the sum of those drawn so far.

  Over a run of U unrolls with the same θ the estimates add up, in the mean, to
  the gradient of the losses of the whole run, smoothed by σ: unlike truncated
  back-propagation there is no bias towards the near future.  Memory does not
  depend on T, and chaotic runs have no exploding gradients.  The variance grows
  with the number of weights: good for a few thousand.

  What is constant to back-propagation, such as the units of `standardised`, is
  trained like the rest.

  Args:
    learned: the learned optimizer.
    meta_optimizer: the optimizer of θ.
    unroll_length: T, steps.
    num_unrolls: U.
    num_optimizees: B, pairs of runs.
    std: σ, in units of θ.
    reuse_noise: ε once a run; False: PES.
    weights: w_t along the whole run, [U T + 1]; all ones by default.  The first
      is not used, since f(x_0) does not depend on θ.
    of_loss: h, see `meta_loss`.

  Returns:
    MetaTrainer with state `truncated_bptt.MetaState`.  Info.losses are the
    means of both runs [U, B, T + 1], Info.meta_loss the sums of w_t h(f) over
    an unroll, in the mean over both runs and B [U];
    Info.summary['gradient_norm'] is the epoch's largest.

  Raises:
    ValueError: a size or σ is not positive, or weights have a wrong shape or
      are not finite.
    TypeError: the meta-optimizer is no optax transformation.
  """
  ready('evolution', meta_optimizer=meta_optimizer)
  trainable('evolution', learned)
  sizes = unroll_length, num_unrolls, num_optimizees
  weights = checked_weights('evolution', weights, *sizes)[1:]
  above_zero('evolution', std=std)
  copies = lambda x: jnp.zeros((num_optimizees, *x.shape), x.dtype)

  def noise(theta, key):  # [B, *leaf]
    normal = optax.tree.random_like(key, jax.tree.map(copies, theta))
    return optax.tree.scale(std, normal)

  run = functools.partial(unroll, remat=False)

  def step(state, optimizee, key):
    key_init, key_loss, key_noise = jax.random.split(key, 3)
    keys = jax.random.split(key_init, num_optimizees)
    params, tasks = fresh(optimizee, keys)
    states = jax.vmap(learned.transform(state.theta).init)(params)
    pairs = jax.tree.map(lambda x: jnp.stack([x, x]), (params, states))
    shape = (num_unrolls, num_optimizees, unroll_length + 1)
    keys = jax.random.split(key_loss, shape)  # [U, B, T + 1]
    one = functools.partial(run_one, run, 'evolution', learned, optimizee)
    both = jax.vmap(jax.vmap(one), (0, None, 0, 0, None))  # [2, B]

    def meta_step(carry, inputs):
      state, pairs, drawn = carry
      keys, index, w = inputs
      which = 0 if reuse_noise else index
      epsilon = noise(state.theta, jax.random.fold_in(key_noise, which))
      plus_minus = lambda x, e: jnp.stack([x + e, x - e])  # [2, B, *leaf]
      thetas = jax.tree.map(plus_minus, state.theta, epsilon)
      pairs, losses = both(thetas, tasks, *pairs, keys)  # [2, B, T + 1]
      values = of_loss(losses)[..., 1:] * w
      change = jnp.sum(values[0] - values[1], -1)  # [B]
      drawn = epsilon if reuse_noise else optax.tree.add(drawn, epsilon)
      scale = 2 * std**2 * num_optimizees
      mean = lambda xi: jnp.tensordot(change, xi, 1) / scale
      estimate = lambda xi: mean(xi).astype(xi.dtype)
      gradient = jax.tree.map(estimate, drawn)
      loss = jnp.mean(jnp.sum(values, -1))
      state, skipped, norm = meta_update(meta_optimizer, state, loss, gradient)
      return (state, pairs, drawn), (losses.mean(0), loss, skipped, norm)

    start = state, pairs, jax.tree.map(copies, state.theta)
    windows = jnp.asarray(weights).reshape(num_unrolls, unroll_length)
    inputs = keys, jnp.arange(num_unrolls), windows
    (state, *_), (losses, loss, skipped, norm) = jax.lax.scan(
      meta_step, start, inputs
    )
    return state, Info(losses, loss, skipped, {'gradient_norm': jnp.max(norm)})

  init = functools.partial(first_state, learned, meta_optimizer)
  return MetaTrainer(init, step)
