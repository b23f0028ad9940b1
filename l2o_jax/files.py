"""Opening, locking and replacing files safely, whatever else is at work."""

import contextlib
import errno
import os
import re
import secrets
import stat

_KINDS = {
  stat.S_IFDIR: 'a directory',
  stat.S_IFIFO: 'a FIFO',
  stat.S_IFCHR: 'a character device',
  stat.S_IFBLK: 'a block device',
}
_TEMPORARY = re.compile(r'\..*\.l2o-[0-9a-f]{16}\.tmp')


def open_regular(path):
  """Opens a regular file to read bytes; any other is refused and not read.

  Raises:
    OSError: there is no such file, or it is a directory, FIFO or device.
  """

  def opener(path, flags):  # plain `open` waits for somebody to write to a FIFO
    return os.open(path, flags | getattr(os, 'O_NONBLOCK', 0))

  f = open(path, 'rb', opener=opener)
  kind = stat.S_IFMT(os.fstat(f.fileno()).st_mode)
  if kind != stat.S_IFREG:
    f.close()
    raise OSError(errno.EINVAL, _what(kind), os.fspath(path))
  return f


def _what(kind):
  return f'{_KINDS.get(kind, "special")}, not a regular file'


def lock(file, wait=True) -> bool:
  """Locks an open file until it is closed or this process ends.

  Args:
    file: opened for writing.
    wait: for another process that has the lock, rather than return False.

  Returns:
    Whether the file is locked now; False also where there are no locks.
  """
  try:
    import fcntl  # not on Windows

    fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
  except (ImportError, OSError):
    return False
  return True


def _remove_stale(directory):
  """Removes what processes that were killed in `replacing` have left."""
  for entry in os.scandir(directory):
    if not _TEMPORARY.fullmatch(entry.name) or not entry.is_file():
      continue
    # Whoever writes a file has it locked; the lock ends with the process.
    with contextlib.suppress(OSError), open(entry.path, 'r+b') as f:
      if lock(f, wait=False):
        os.unlink(entry.path)


@contextlib.contextmanager
def replacing(path):
  """A new file that takes the place of `path` once all of it is on the disk.

  An exception leaves nothing new behind.  A process that is killed leaves its
  temporary file; the next to call this for the same directory removes it.  A
  link stays a link, and a file keeps its permissions.

  Raises:
    OSError: `path` is a directory or a device, or cannot be written.
  """
  path = os.path.realpath(os.fsdecode(path))
  mode = os.stat(path).st_mode if os.path.exists(path) else None
  kind = stat.S_IFMT(mode or 0)
  if kind in (stat.S_IFDIR, stat.S_IFCHR, stat.S_IFBLK):
    raise OSError(errno.EINVAL, _what(kind), path)
  directory, name = os.path.split(path)
  _remove_stale(directory)
  while True:
    temporary = f'.{name[:40]}.l2o-{secrets.token_hex(8)}.tmp'
    temporary = os.path.join(directory, temporary)
    f = open(temporary, 'xb')
    lock(f)
    if os.fstat(f.fileno()).st_nlink:  # else removed before it was locked
      break
    f.close()
  with f:
    try:
      yield f
      f.flush()
      os.fsync(f.fileno())
      if kind == stat.S_IFREG:
        os.chmod(temporary, stat.S_IMODE(mode))
      os.replace(temporary, path)
    except BaseException:
      os.unlink(temporary)
      raise
  directory = os.open(directory, os.O_RDONLY)
  try:
    os.fsync(directory)  # the renaming
  finally:
    os.close(directory)
