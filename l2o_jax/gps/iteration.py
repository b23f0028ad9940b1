"""What the forms of guided policy search share."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from l2o_jax.base import Theta
from l2o_jax.gps.costs import CostModel
from l2o_jax.gps.lqr import Controller
from l2o_jax.gps.policy import Regression
from l2o_jax.gps.rollouts import Samples


class Iterate(NamedTuple):
  """What an iteration improves.

  Attributes:
    theta: weights of the policy.
    guide: psi, Controller [P, M, T, ...].
    dual: multipliers of the constraints; `Improve.init` says which.
  """

  theta: Theta
  guide: Controller
  dual: chex.ArrayTree


class Evidence(NamedTuple):
  """What the rollouts of an iteration have shown, and how far it may go.

  Attributes:
    samples: of all guides; zero where they are not accepted.
    accept: whether a function's rollouts were no worse than before, [P].
    trust: how far guides may go: (largest KL(new ‖ old) for each time and
      action [P, M], limits of the noise that made the rollouts [P, M, 2]).
    first: whether theta starts from nothing, [].
    regression: of this iteration, see `of_iteration`.
    key: of the regression.
  """

  samples: Samples
  accept: chex.Array
  trust: tuple[chex.Array, chex.Array]
  first: chex.Array
  regression: Regression
  key: chex.PRNGKey


class Report(NamedTuple):
  """What the guide step of one guide reports.

  Attributes:
    kl: KL(psi ‖ the previous guide), summed over t; with mirror descent the
      linearized policy is the previous guide.
    policy_kl: KL(pi ‖ psi), summed over t; with mirror descent `kl` again.
    predicted: relative fall of the modelled cost.
  """

  kl: chex.Array
  policy_kl: chex.Array
  predicted: chex.Array


class Improve(NamedTuple):
  """A form of guided policy search: `badmm(...)` or `mirror_descent(...)`.

  Attributes:
    init: shape (P, M, T, A) -> dual of the first iterate.
    step: Policy, Iterate, Evidence -> (Iterate, Report [P, M], error of the
      regression []): the guide step and the regression of the policy.
    cost: the cost model; the rollouts record what it needs.
    policy_rollouts: share of the rollouts that the policy makes.
    judges_policy: True: the policy's rollouts judge an iteration, and theta is
      taken back with the guides.  False: the guides' rollouts judge it.
  """

  init: Callable
  step: Callable
  cost: CostModel
  policy_rollouts: float
  judges_policy: bool


def for_each_guide(step: Callable, *args) -> Any:
  """Runs `step`, which is for one guide, for [P, M] guides, in float64.

  Covariances of histories are close to singular in float32.

  Args:
    step: function of one guide's arrays.
    *args: leaves [P, M, ...].

  Returns:
    What `step` returns, with leaves [P, M, ...], in float32 again.
  """
  with jax.enable_x64(True):
    args = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), args)
    out = jax.vmap(jax.vmap(step))(*args)
    return jax.tree.map(lambda x: x.astype(jnp.float32), out)


def choose(condition: chex.Array, new: Any, old: Any) -> Any:
  """`jnp.where` for trees; `condition` [] or [P] against leaves [P, ...]."""
  wide = lambda x: jnp.expand_dims(condition, range(condition.ndim, x.ndim))
  return jax.tree.map(lambda a, b: jnp.where(wide(a), a, b), new, old)


def guide_actions(guide: Controller, states: chex.Array) -> chex.Array:
  """K_t s_t + k_t, states [..., S, T, D] -> [..., S, T, A]."""
  moved = jnp.einsum('...tad,...std->...sta', guide.gain, states)
  return moved + guide.offset[..., None, :, :]
