"""Lists the checkpoints of a LangGraph saver, reading only as many as needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from ..calls import Flow
from ..ops import Ops
from .checkpoint_threads import Found, Threads
from .checkpoints import Record

_CHECKPOINTS_PER_READ = 20


class Pages:
    """A listing of checkpoints, newest first, page by page.

    Without a thread it lists all threads, the last written first, and without a namespace all
    namespaces. A checkpoint id lists that one, `before` only those with lower ids.

    Args:
        threads: reads them.
        matches: whether to list a checkpoint. Values of others are not read.
        limit: how many to list; None = all.
    """

    thread_id: Any = None
    namespace: str | None = None
    checkpoint_id: str | None = None
    before: str | None = None

    def __init__(
        self, threads: Threads, matches: Callable[[Record], bool], limit: int | None = None
    ) -> None:
        self._threads = threads
        self._matches = matches
        self._left = 1 << 62 if limit is None else limit
        self._waiting: list[Any] | None = None  # threads, the next one last
        self._thread_id: Any = None
        self._places: list[tuple[str, str]] = []  # ids and namespaces in it, the next one last

    def next(self, ops: Ops) -> Flow[list[tuple[Any, str, Found]]]:
        """The next checkpoints, each with its thread and namespace; empty at the end."""
        while self._left > 0 and (self._places or (yield from self._open_thread(ops))):
            size = min(self._left, _CHECKPOINTS_PER_READ)
            places, self._places = self._places[-size:], self._places[:-size]
            thread = self._threads.at(ops, self._thread_id)
            found: dict[tuple[str, str], Found] = {}
            for namespace in {name for _, name in places}:
                ids = [each for each, name in places if name == namespace]
                records = yield from thread.records(namespace, ids)
                matching = [each for each in records.values() if self._matches(each.record)]
                for each in (yield from thread.complete(namespace, matching)):
                    found[each.record.id, namespace] = each
            if found:
                self._left -= len(found)
                listed = [place for place in reversed(places) if place in found]
                return [(self._thread_id, place[1], found[place]) for place in listed]
        return []

    def _open_thread(self, ops: Ops) -> Flow[bool]:
        """Read the ids of the next thread; False if there is none."""
        if self._waiting is None:
            is_all = self.thread_id is None
            self._waiting = (yield from self._threads.ids(ops)) if is_all else [self.thread_id]
        if not self._waiting:
            return False
        self._thread_id = self._waiting.pop()
        thread = self._threads.at(ops, self._thread_id)
        names: Iterable[str] = yield from thread.namespaces()
        for name in names if self.namespace is None else [self.namespace]:
            ids = [self.checkpoint_id] if self.checkpoint_id else (yield from thread.ids(name))
            self._places += [(each, name) for each in ids]
        if self.before is not None:
            self._places = [place for place in self._places if place[0] < self.before]
        self._places.sort()
        return True
