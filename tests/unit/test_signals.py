"""A signal handler may raise at any time, also while a Call is packed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

# In a process of its own, because it used to crash.
SCRIPT = """
import signal, sys, time
from support.services import make_ops
from sessionstore import SessionKey
from sessionstore.transport.wire import Form, pack

class Interrupt(Exception): pass

def interrupt(*_): raise Interrupt

call = make_ops(session_ttl=60).get_session(SessionKey("a", "u", "s"), 20, None)
signal.signal(signal.SIGALRM, interrupt)
count = 0
end = time.monotonic() + 60
while count < 2000 and time.monotonic() < end:
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.0001)
        while True:
            pack(call, "EVALSHA")
    except Interrupt:
        count += 1
print(count)
"""


def test_a_signal_handler_that_raises_while_calls_are_packed() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "2000\n"), done.stderr
