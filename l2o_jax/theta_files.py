"""Files of theta that say how to rebuild the optimizer they are for."""

import inspect
import json

import jax
import jax.numpy as jnp

from l2o_jax import checkpoint
from l2o_jax.base import LearnedOptimizer
from l2o_jax.checks import require, same_arrays
from l2o_jax.learned_optimizers import BY_NAME, LATER


def build(call) -> LearnedOptimizer:
  """The learned optimizer that {'name', 'arguments'} describes.

  Raises:
    ValueError: `learned_optimizers` has no function of that name, or an
      argument is wrong.
  """
  try:
    arguments = {**LATER.get(call['name'], {}), **call['arguments']}
    return BY_NAME[call['name']](**arguments)
  except (KeyError, TypeError) as error:
    raise ValueError(
      f'no learned optimizer of this library: {call!r:.200} ({error})'
    ) from None


def save_learned(path, learned: LearnedOptimizer, theta, metadata=None) -> None:
  """Writes theta and the call that builds its optimizer; see `checkpoint.save`.

  Args:
    path: where to.
    learned: an optimizer built by a function of `learned_optimizers`.
    theta: its weights.
    metadata: {name: anything JSON can hold}, such as command, seed, versions.

  Raises:
    ValueError: `learned` does not say how it was built, or in words that JSON
      does not keep, such as tuples or arrays; theta is for another optimizer;
      or the metadata are no dict, or have the key 'optimizer'.
  """
  own = 'an optimizer of parts of your own cannot be rebuilt from a file'
  require(learned.call, f'save_learned: {own}; use save and load')
  plain, shape = _plain(learned.call), jax.tree.structure
  kept = plain == learned.call and shape(plain) == shape(learned.call)
  lost = f'a file would not keep the arguments of {spelled(learned.call)}'
  require(kept, f'save_learned: {lost}; use dicts, lists, numbers and text')
  metadata = {} if metadata is None else metadata
  free = isinstance(metadata, dict) and 'optimizer' not in metadata
  named = "metadata must be a dict without the key 'optimizer'"
  require(free, f'save_learned: {named}')
  other = f'save_learned: theta is not for {spelled(learned.call)}'
  kind = lambda x: f'{jnp.result_type(x)}{[*jnp.shape(x)]}'
  same_arrays(other, theta, _shapes_of_theta(learned), kind)
  metadata = {'optimizer': learned.call, **metadata}
  checkpoint.save(path, theta, metadata=metadata)


def load_learned(path, expected: LearnedOptimizer | None = None):
  """Rebuilds the optimizer and the theta that `save_learned` wrote.

  Args:
    path: of the file.
    expected: the optimizer that the file should be for.  None: any.

  Returns:
    (learned, theta).

  Raises:
    CheckpointError: the file is missing or damaged, names no optimizer, or is
      for another optimizer than expected; the message names both.
  """
  metadata = checkpoint.metadata(path)
  call = metadata.get('optimizer') if isinstance(metadata, dict) else None
  silent = f'{path}: does not say which optimizer it is for'
  todo = 'l2o_jax.load reads it'
  require(call is not None, f'{silent}; {todo}', checkpoint.CheckpointError)
  try:
    learned = build(call)
  except ValueError as error:
    raise checkpoint.CheckpointError(f'{path}: {error}') from None
  if expected is not None and _plain(expected.call) != _plain(learned.call):
    raise checkpoint.CheckpointError(
      f'{path}: is for {spelled(learned.call)}, not {spelled(expected.call)}'
    )
  return learned, checkpoint.load(path, _shapes_of_theta(learned))


def _shapes_of_theta(learned):
  """theta as `jax.ShapeDtypeStruct`; nothing is run."""
  return jax.eval_shape(learned.init, jax.eval_shape(jax.random.key, 0))


def _plain(call):
  """The call as a file returns it: tuples have become lists."""
  try:
    return json.loads(json.dumps(call))
  except (TypeError, ValueError):
    return None  # what JSON cannot hold


def spelled(call: dict | None) -> str:
  """The call as one would type it today."""
  if call is None:
    return 'an optimizer of other parts'
  of = inspect.signature(BY_NAME[call['name']]).parameters
  later = LATER.get(call['name'], {}).items()
  other = {k: v for k, v in later if v != of[k].default}
  arguments = {**other, **call['arguments']}.items()
  arguments = ', '.join(f'{k}={v!r}' for k, v in arguments)
  return f'{call["name"]}({arguments})'
