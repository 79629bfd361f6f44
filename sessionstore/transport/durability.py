"""Waiting until replicas have a write. Does no I/O; both transports use it."""

from __future__ import annotations

from typing import Any

import hiredis

from ..calls import Call
from ..errors import NotReplicated
from .failures import ConnectionLost
from .wire import pack_command

_GRACE_S = 2.0  # how much longer than the WAIT itself its reply may take


class Durability:
    """How many replicas have to confirm a write, and how long the server waits for them.

    Attributes:
        request: the WAIT command in RESP. It has one reply.
        timeout_s: if the WAIT has no reply after this time, the connection is closed.
    """

    def __init__(self, replicas: int, timeout_s: float) -> None:
        self._replicas = replicas
        self.request = pack_command(("WAIT", replicas, max(round(timeout_s * 1000), 1)))
        self.timeout_s = timeout_s + _GRACE_S

    def check_confirmed(self, call: Call[Any], replies: list[Any], answer: Any) -> None:
        """Check that enough replicas have a write.

        `answer` is the reply to `request`: the number of replicas that have the write, or an error.
        It is None if no reply came before the call's deadline.

        Raises:
            NotReplicated: too few replicas confirmed the write.
            ConnectionLost: the server has become a replica; the Call has to be sent again.
        """
        if isinstance(answer, hiredis.ReplyError):
            if "replica instances" in str(answer):
                raise ConnectionLost("the server has become a replica")
            why = f"the server refuses WAIT: {answer}"
        elif answer is None:
            why = "the server did not report in time how many replicas have it"
        elif answer < self._replicas:
            why = f"{answer} of {self._replicas} replicas confirmed it in time"
        else:
            return
        raise NotReplicated(
            f"{call.name}: the write is done, but {why}",
            confirmed=answer if isinstance(answer, int) else 0,
            replies=replies,
        )
