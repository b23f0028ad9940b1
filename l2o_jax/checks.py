"""Bad arguments: one line that names what was wrong."""


def require(condition, message: str, error=ValueError) -> None:
  """Raises an error with this message unless the condition holds."""
  if not condition:
    raise error(message)


def positive(who: str, **sizes) -> None:
  """Raises a ValueError unless all are whole numbers of at least 1."""
  for name, size in sizes.items():
    whole = f'{who}: {name} must be a whole number, got {size!r}'
    require(hasattr(size, '__index__'), whole)
    require(size >= 1, f'{who}: {name} must be positive, got {size}')
