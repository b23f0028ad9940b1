"""Special files, locks, and what killed processes leave."""

import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import threading

from absl.testing import absltest

from l2o_jax import files

KILLED = """
import os, pathlib, signal, sys
from l2o_jax.files import replacing
with replacing(sys.argv[1]) as f:
  f.write(b'half')
  f.flush()
  os.kill(os.getpid(), signal.SIGKILL)
"""


def write(path, data):
  with files.replacing(path) as f:
    f.write(data)


class FilesTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.directory = pathlib.Path(
      self.enterContext(tempfile.TemporaryDirectory())
    )
    self.path = self.directory / 'a.npz'

  def test_refuses_what_is_no_regular_file(self):
    fifo = self.directory / 'fifo'
    os.mkfifo(fifo)
    for path, message in (
      (fifo, 'a FIFO, not a regular file'),
      ('/dev/zero', 'a character device, not a regular file'),
      (self.directory, 'directory'),
      (self.directory / 'missing', 'No such file'),
    ):
      with self.assertRaisesRegex(OSError, f'{message}.*{path}'):
        files.open_regular(path)
    self.path.write_bytes(b'seen')
    link = self.directory / 'link'
    link.symlink_to(self.path)
    with files.open_regular(link) as f:
      self.assertEqual(f.read(), b'seen')

  def test_what_is_there_stays_what_it_is(self):
    """A link stays a link, permissions stay; devices are not replaced."""
    self.path.write_bytes(b'old')
    self.path.chmod(0o600)
    link = self.directory / 'link'
    link.symlink_to(self.path)
    write(os.fsencode(link), b'new')
    self.assertTrue(link.is_symlink())
    self.assertEqual(self.path.read_bytes(), b'new')
    self.assertEqual(self.path.stat().st_mode & 0o777, 0o600)
    null = pathlib.Path(os.devnull)
    for path, kind in ((null, 'a character device'), (null.parent, 'a direc')):
      with self.assertRaisesRegex(OSError, f'{kind}.*, not a regular file'):
        write(path, b'new')
    self.assertTrue(null.is_char_device())

  def test_replaces_or_leaves_nothing(self):
    write(self.path, b'old')
    with self.assertRaises(KeyError), files.replacing(self.path) as f:
      f.write(b'new')
      raise KeyError
    self.assertEqual(self.path.read_bytes(), b'old')
    write(self.path, b'new')
    self.assertEqual(self.path.read_bytes(), b'new')
    self.assertEqual(os.listdir(self.directory), ['a.npz'])
    long = self.directory / ('é' * 120)  # as long as a name may be
    write(long, b'long')
    self.assertEqual(long.read_bytes(), b'long')

  def test_removes_what_a_killed_process_left(self):
    for target in (self.path, self.directory / 'another.npz'):
      process = subprocess.run([sys.executable, '-c', KILLED, target])
      self.assertEqual(process.returncode, -signal.SIGKILL)
    foreign = self.directory / '.a.npz.12345678.tmp'
    foreign.touch()
    left = re.escape('.another.npz.l2o-') + '[0-9a-f]{16}[.]tmp'
    self.assertRegex(' '.join(os.listdir(self.directory)), left)
    write(self.path, b'whole')
    self.assertCountEqual(os.listdir(self.directory), ['a.npz', foreign.name])

  def test_leaves_what_another_is_writing(self):
    with files.replacing(self.path) as f:
      f.write(b'slow')
      write(self.path, b'quick')
      self.assertLen(os.listdir(self.directory), 2)
    self.assertEqual(self.path.read_bytes(), b'slow')
    self.assertEqual(os.listdir(self.directory), ['a.npz'])

  def test_many_at_once(self):
    def work(i):
      for _ in range(50):
        write(self.path, bytes([i]) * 1000)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
    data = self.path.read_bytes()
    self.assertEqual(data, data[:1] * 1000)
    self.assertEqual(os.listdir(self.directory), ['a.npz'])


if __name__ == '__main__':
  absltest.main()
