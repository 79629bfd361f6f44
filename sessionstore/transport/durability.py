"""Waiting until replicas have what was written. Sans I/O: both transports use it."""

from __future__ import annotations

from typing import Any

import hiredis

from ..calls import Call
from ..errors import NotReplicated
from .retry import ConnectionLost
from .wire import pack_command

_GRACE_S = 2.0  # that the answer may take beyond the time that the server waits


class Durability:
    """How many replicas have to confirm a write, and how long the server waits for them.

    Args:
        replicas: 1 or more.
        timeout_s: from a millisecond up to the service's `call_timeout`.

    Attributes:
        request: the WAIT, in RESP; has one reply.
        timeout_s: time after which a server that has not answered it is given up.
    """

    def __init__(self, replicas: int, timeout_s: float) -> None:
        self._replicas = replicas
        self.request = pack_command(("WAIT", replicas, max(round(timeout_s * 1000), 1)))
        self.timeout_s = timeout_s + _GRACE_S

    def judge(self, call: Call[Any], replies: list[Any], answer: Any) -> None:
        """Whether the answer to `request` confirms a write.

        Args:
            call: what was written.
            replies: what the server answered to that.
            answer: replicas that have it, an error reply, or None for no answer in time.

        Raises:
            NotReplicated: it does not.
            ConnectionLost: the server may have been replaced; the Call has to be sent again.
        """
        if isinstance(answer, hiredis.ReplyError):
            if "replica instances" in str(answer):
                raise ConnectionLost("the server is a replica now")
            why = f"the server refuses WAIT: {answer}"
        elif answer is None:
            why = "the server did not say in time how many replicas have it"
        elif answer < self._replicas:
            why = f"{answer} of {self._replicas} replicas confirmed it in time"
        else:
            return
        raise NotReplicated(
            f"{call.name}: it is done, but {why}",
            confirmed=answer if isinstance(answer, int) else 0,
            replies=replies,
        )
