"""SIGINT and SIGTERM: finish the step, save, leave within seconds.

The first signal is noted for the loop to see (`received`).  A program that has
not left after PATIENCE seconds, because it compiles or validates, leaves then;
so does one that has nothing to save, and any on the second signal.
"""

import os
import select
import signal
import sys
import threading

PATIENCE = 4.0  # seconds

_NUMBERS = (signal.SIGINT, signal.SIGTERM)
_state = {'received': None, 'saving': False, 'message': 'stopped', 'on': False}


class Stopped(Exception):
  """The loop ended because of a signal; its state is saved."""


def received() -> int | None:
  """The number of the signal that came, if any."""
  return _state['received']


def announce(message: str, *, saving: bool) -> None:
  """What to say when a signal ends the program from now on.

  Args:
    message: the line to be printed.
    saving: whether the loop looks at `received`, saves and leaves by itself.
  """
  _state.update(message=message, saving=saving)


def leave(number: int) -> None:
  """Prints the line and ends the process at once, status 128 + number."""
  try:
    print(_state['message'], file=sys.stderr, flush=True)
  finally:
    os._exit(128 + number)


def install() -> None:
  """Takes over both signals for the rest of the program; opens what is closed.

  Python runs signal handlers only between its own instructions, not inside a
  compilation; so the C handler writes to a pipe, and a thread reads it.  Where
  one of the standard streams is closed, the next file that is opened would take
  its number, and messages would go into that file: /dev/null takes it first.
  """
  if _state['on'] or threading.current_thread() is not threading.main_thread():
    return
  _state['on'] = True
  while (descriptor := os.open(os.devnull, os.O_RDWR)) < 3:
    pass
  os.close(descriptor)
  sys.stdout = sys.stdout or open(os.devnull, 'w')
  sys.stderr = sys.stderr or open(os.devnull, 'w')
  reader, writer = os.pipe()
  os.set_blocking(writer, False)
  signal.set_wakeup_fd(writer)
  for number in _NUMBERS:
    signal.signal(number, lambda *unused: None)

  def watch():
    number = os.read(reader, 1)[0]
    while number not in _NUMBERS:
      number = os.read(reader, 1)[0]
    _state['received'] = number
    if _state['saving']:
      select.select([reader], [], [], PATIENCE)  # or the second signal
    leave(number)

  threading.Thread(target=watch, daemon=True).start()
