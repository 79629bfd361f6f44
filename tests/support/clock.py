"""Moving time: a clock for the store in memory, earlier deadlines on a server.

A test that needs something to expire calls `pass_time` and does not wait. Tests of real expiry use
a short TTL and `poll_until`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .servers import Server

# Moves the deadlines of keys, and the times in the headers of sessions. The server deletes a key
# at once if its new deadline is in the past.
_PASS_TIME = """
local shift_ms = ARGV[1]
local function earlier(key, field, shift)
  if tonumber(redis.call('HGET', key, field) or 0) > 0 then
    redis.call('HINCRBY', key, field, string.format('%.0f', 0 - shift))
  end
end
for _, key in ipairs(#KEYS > 0 and KEYS or redis.call('KEYS', '*')) do
  local deadline = redis.call('PEXPIRETIME', key)
  if redis.call('TYPE', key).ok == 'hash' then
    earlier(key, 'deadline_ms', shift_ms)
    earlier(key, 'turn_until_us', shift_ms * 1000)
    earlier(key, 'compactor_until_us', shift_ms * 1000)
  end
  if deadline > 0 then
    redis.call('PEXPIREAT', key, string.format('%.0f', deadline - shift_ms))
  end
end
"""


class Clock:
    """A running clock for `InMemorySessionService(clock=...)`, which a test can move forward."""

    def __init__(self) -> None:
        self._offset_s = 0.0

    def __call__(self) -> float:
        return time.time() + self._offset_s

    def advance(self, seconds: float) -> None:
        """Move the clock forward."""
        self._offset_s += seconds


def pass_time(server: Server, milliseconds: float, keys: Iterable[bytes] = ()) -> None:
    """Let keys of a server expire sooner, as if time had passed.

    Args:
        server: where the keys are.
        milliseconds: how much time passes.
        keys: only these keys; empty = all keys of the server.
    """
    names = list(keys)
    for client in server.clients():
        client.eval(_PASS_TIME, len(names), *names, int(milliseconds))
