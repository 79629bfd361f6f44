"""What the transport logs.

Records hold addresses, operation names, error codes and fixed texts. They never hold values, ids,
keys, credentials or the text of an error reply to a Call, which can quote any of these.
"""

from __future__ import annotations

import logging
import time

logger = logging.getLogger("sessionstore.transport")

# Without any handler Python prints warnings to stderr. The calls that matter fail with an exception
# anyway, so an application that has not set up logging sees nothing.
logging.getLogger("sessionstore").addHandler(logging.NullHandler())

_INCIDENT_S = 1.0  # connections to one node that fail within this time fail for the same reason


class NodeLog:
    """Logs when a node fails and when it is back: one WARNING and one INFO for each incident.

    A process has several connections to a node, and an incident usually ends all of them. Further
    failures are logged at DEBUG until the node is back. Threads may share a NodeLog: a race costs
    a duplicate record at most.

    Args:
        name: host:port, or the path of a socket.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._is_down = False
        self._failed_at = float("-inf")

    def lost(self, reason: str, num_calls: int) -> None:
        """Log that a connection ended unexpectedly, and how many calls waited."""
        self._log_failure("lost the connection to %s (%s); calls waiting: %d", reason, num_calls)

    def not_connected(self, reason: str, num_calls: int) -> None:
        """Log that no connection could be opened to a node that was expected to be there."""
        self._log_failure("cannot connect to %s (%s); calls waiting: %d", reason, num_calls)

    def connected(self) -> None:
        """Log that the node is back, if it was gone."""
        if self._is_down:
            self._is_down = False
            logger.info("connected to %s again", self._name)

    def _log_failure(self, text: str, reason: str, num_calls: int) -> None:
        now = time.monotonic()
        is_new = not self._is_down and now - self._failed_at > _INCIDENT_S
        self._is_down, self._failed_at = True, now
        level = logging.WARNING if is_new else logging.DEBUG
        logger.log(level, text, self._name, reason, num_calls)


def node_name(host: str, port: int) -> str:
    """host:port."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
