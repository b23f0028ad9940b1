"""Bad arguments: one line that names what was wrong."""

import inspect
import math
import operator

import jax
import jax.numpy as jnp


def require(condition, message: str, error=ValueError) -> None:
  """Raises an error with this message unless the condition holds."""
  if not condition:
    raise error(message)


def traced(*numbers) -> bool:
  """Whether bounds cannot be checked, as under `optax.inject_hyperparams`."""
  return any(isinstance(x, jax.core.Tracer) for x in numbers)


def plain_number(x):
  """A number of NumPy or JAX as one of Python; anything else as it is."""
  number = getattr(x, 'shape', None) == ()
  return x.item() if number and not traced(x) else x


def takes(who: str, f, *names: str) -> None:
  """Raises a TypeError unless f can be called with these, by position."""
  try:
    inspect.signature(f).bind(*names)
  except TypeError:
    message = f'{who} must take ({", ".join(names)})'
    raise TypeError(message) from None
  except ValueError:  # written in C: its arguments are not known
    pass


def ready(who: str, **opts) -> None:
  """Raises a TypeError unless all are optax transformations."""
  for name, opt in opts.items():
    other = f'{who}: {name} is no optax transformation: {type(opt).__name__}'
    use = '; give its transform(theta)' if hasattr(opt, 'transform') else ''
    require(hasattr(opt, 'update'), other + use, TypeError)


def trainable(who: str, learned) -> None:
  """Raises a TypeError unless it is a learned optimizer, without its theta."""
  kind = f'{who}: learned must be a LearnedOptimizer, got '
  given_both = ', a tuple; give its first part' * (type(learned) is tuple)
  found = type(learned).__name__ + given_both
  require(hasattr(learned, 'transform'), kind + found, TypeError)


def several_keys(who: str, keys) -> None:
  """Raises a ValueError unless keys are an array of keys, typed or raw."""
  raw = getattr(keys, 'dtype', jnp.uint32) == jnp.uint32  # keys are pairs
  several = f'{who}: keys must be several, as jax.random.split(key, n) is'
  require(jnp.ndim(keys) >= 1 + raw, several)


def same_arrays(what: str, found, wanted, kind) -> None:
  """Raises a ValueError with the first array that is not of the wanted kind.

  Args:
    what: the trees are, and must be.
    found: a tree.
    wanted: a tree of the same arrays.
    kind: what is compared, for example `jnp.shape`.
  """
  kinds = lambda tree: {
    jax.tree_util.keystr(path): kind(x)
    for path, x in jax.tree.leaves_with_path(tree)
  }
  found, wanted = kinds(found), kinds(wanted)
  for path in wanted | found:
    here, there = found.get(path, 'missing'), wanted.get(path, 'none')
    require(here == there, f'{what}: {path} is {here}, expected {there}')


def pair(found):
  """What `Optimizee.init` returned; a TypeError unless (params, task)."""
  both = isinstance(found, tuple) and len(found) == 2
  form = 'Optimizee.init must return a tuple (params, task), task () for none'
  require(both, f'{form}; it returned {type(found).__name__}', TypeError)
  return found


def given(**values):
  """The values that are not None, to be checked."""
  return {name: x for name, x in values.items() if x is not None}


def positive(who: str, **sizes) -> None:
  """Raises a ValueError unless all are whole numbers of at least 1.

  A tuple stands for all numbers in it.
  """
  at_least(1, who, **sizes)


def at_least(least: int, who: str, **sizes) -> None:
  """The same for whole numbers of at least 0 or 1."""
  must = 'be positive' if least else 'not be negative'
  for name, found in sizes.items():
    for size in found if isinstance(found, tuple) else (found,):
      try:
        operator.index(size)
      except TypeError:
        whole = f'{who}: {name} must be a whole number, got {size!r}'
        raise ValueError(whole) from None
      require(size >= least, f'{who}: {name} must {must}, got {size}')


def above_zero(who: str, **numbers) -> None:
  """Raises a ValueError unless all are positive and finite, or traced."""
  for name, x in numbers.items():
    positive = traced(x) or x > 0
    require(positive, f'{who}: {name} must be positive, got {x!r}')
    finite = traced(x) or x < math.inf
    require(finite, f'{who}: {name} must be finite, got {x!r}')


def finite(who: str, least: float = -math.inf, **numbers) -> None:
  """Raises a ValueError unless all are finite, not below `least`, or traced."""
  for name, x in numbers.items():
    number = traced(x) or isinstance(plain_number(x), float | int)
    sane = number and (traced(x) or (math.isfinite(x) and x >= least))
    within = f'>= {least} and finite' if least > -math.inf else 'finite'
    require(sane, f'{who}: {name} must be {within}, got {x!r}')


def one_of(who: str, known, **values) -> None:
  """Raises a ValueError unless all values are among the known ones."""
  for name, x in values.items():
    require(x in known, f'{who}: {name} must be one of {[*known]}, got {x!r}')
