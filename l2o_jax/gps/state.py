"""What guided policy search carries from one iteration to the next."""

from typing import NamedTuple

import chex

from l2o_jax.gps.guide import Dual
from l2o_jax.gps.lqr import Controller


class Iterate(NamedTuple):
  """What an iteration improves.

  Attributes:
    theta: weights of the policy.
    guide: psi of P functions and M groups, Controller [P, M, T, ...].
    dual: λ, ν, η, likewise.
  """

  theta: chex.ArrayTree
  guide: Controller
  dual: Dual


class GpsState(NamedTuple):
  """Between two iterations.

  Attributes:
    theta: weights of the policy.
    guide: see Iterate; so is dual.
    dual: λ, ν, η.
    accepted: the last iterate whose rollouts were no worse than before.
    accepted_cost: of these rollouts, sum over t of f, [P].
    kl_scale: of the step size, [P].
    function_keys: each rollout's function and x_0, the same in all iterations,
      [P, N].
    iteration: number of iterations done.
  """

  theta: chex.ArrayTree
  guide: Controller
  dual: Dual
  accepted: Iterate
  accepted_cost: chex.Array
  kl_scale: chex.Array
  function_keys: chex.Array
  iteration: chex.Array


class GpsInfo(NamedTuple):
  """What an iteration reports, beside the fields of truncated BPTT's Info.

  Attributes:
    losses: exact f along the rollouts, [P, N, T + 1].
    meta_loss: mean sum over t of f over the rollouts, [1].
    gradient_norm: root of the mean squared error of the policy's regression,
      in units of the action, [1].
    skipped: whether no guide was accepted, [1].
    accepted_cost: mean over functions of the accepted rollouts' sum over t of
      f: those of the guide, or with 'mdgps' of the policy, [].
    policy_cost: the policy's own rollouts, nan if there were none, [].
    kl: mean over guides of KL(new ‖ old), [].
    policy_kl: mean over guides of KL(pi ‖ psi), [].
    predicted: mean fall of cost that the model predicts, relative, [].
    rejected: share of the functions whose guides were not accepted, [].
    kl_scale: mean, [].
  """

  losses: chex.Array
  meta_loss: chex.Array
  gradient_norm: chex.Array
  skipped: chex.Array
  accepted_cost: chex.Array
  policy_cost: chex.Array
  kl: chex.Array
  policy_kl: chex.Array
  predicted: chex.Array
  rejected: chex.Array
  kl_scale: chex.Array
