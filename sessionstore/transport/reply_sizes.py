"""Which reads may be large. They use the bulk connection, so that small Calls do not wait.

A reply with a few events may be small or hundreds of megabytes. So a read uses the bulk connection
until the size of its reply is known.
"""

from __future__ import annotations

from typing import Any

from ..calls import Call, Command

LARGE_BYTES = 1 << 17
"""Replies and requests from this size on are large."""

_KEYS_LIMIT = 10_000
_READS_PER_KEY_LIMIT = 16


class ReplySizes:
    """Remembers which reads had large replies, for the keys that were read last."""

    def __init__(self) -> None:
        self._is_large: dict[Command, dict[Command, bool]] = {}  # (key,) -> read -> size

    def may_be_large(self, call: Call[Any]) -> bool:
        """Whether the reply was large the last time, or events are read for the first time."""
        read = call.commands[-1]
        found = self._is_large.get(read[1:2])
        is_large = None if found is None else found.get(read)
        return read[0] == "ZRANGE" if is_large is None else is_large

    def note(self, call: Call[Any], is_large: bool) -> None:
        """Remember the size of a reply."""
        read = call.commands[-1]
        reads = self._is_large.get(read[1:2])
        if reads is None:
            if len(self._is_large) >= _KEYS_LIMIT:
                del self._is_large[next(iter(self._is_large))]
            reads = self._is_large[read[1:2]] = {}
        if reads.get(read) is not is_large:
            if len(reads) >= _READS_PER_KEY_LIMIT:
                reads.clear()
            reads[read] = is_large

    def forget(self, call: Call[Any]) -> None:
        """Forget the sizes for the keys of a Call, because it writes a lot."""
        for key in call.keys:
            self._is_large.pop((key,), None)
