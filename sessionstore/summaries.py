"""Where the summaries of sessions end, so that reads leave out the events that they cover.

The position is in a session's header, and one round trip cannot read the header first. So a service
remembers it from the last read. If the session has another summary by then, the read notices.
"""

from __future__ import annotations

from collections.abc import Sized
from typing import Any

from .model import Session, SessionKey

SESSIONS_LIMIT = 10_000
"""How many sessions a service remembers. At the limit it forgets all and starts again."""


def is_empty(content: Any) -> bool:
    """Whether the content of a summary says nothing: None, blank text, or an empty collection."""
    text = content.strip() if isinstance(content, str) else content
    return text is None or (isinstance(text, Sized) and not len(text))


class Summaries:
    """Remembers up to which position the summaries of sessions cover the log. Thread-safe."""

    def __init__(self) -> None:
        self._upto: dict[SessionKey, int] = {}

    def upto(self, key: SessionKey) -> int | None:
        """The position that was last seen; None = no summary."""
        return self._upto.get(key)

    def note(self, session: Session, upto: int | None) -> bool:
        """Remember the summary of a session. False if events are missing.

        Args:
            session: as it was read.
            upto: only events after this position were read; None = no such bound.
        """
        summary = session.summary
        if summary is None:
            self._upto.pop(session.key, None)
            return upto is None or session.event_count == 0
        self.put(session.key, summary.upto)
        return upto is None or upto <= summary.upto

    def put(self, key: SessionKey, upto: int) -> None:
        """Remember the position of a new summary."""
        if len(self._upto) >= SESSIONS_LIMIT:
            self._upto.clear()
        self._upto[key] = upto
