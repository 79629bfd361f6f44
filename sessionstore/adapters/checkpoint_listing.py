"""Lists the checkpoints of a LangGraph saver, reading no more of them than are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ..calls import Flow
from ..ops import Ops
from .checkpoint_threads import Found, Threads
from .checkpoints import Record

_CHECKPOINTS_PER_READ = 20


class Pages:
    """A listing of checkpoints, newest first, page by page.

    Without a thread it lists all threads, the one written last first, and without a namespace all
    namespaces. A checkpoint id lists that one, `before` only those with lower ids.

    Args:
        threads: reads them.
        matches: whether to list a checkpoint. Values of others are not read.
        limit: how many to list; None = all.
    """

    thread_id: str | None = None
    namespace: str | None = None
    checkpoint_id: str | None = None
    before: str | None = None

    def __init__(
        self, threads: Threads, matches: Callable[[Record], bool], limit: int | None = None
    ) -> None:
        self._threads = threads
        self._matches = matches
        self._left = 1 << 62 if limit is None else limit
        self._thread_ids: list[str] | None = None  # that were not read yet
        self._places: list[tuple[str, str, str]] = []  # id, namespace and thread, the next one last

    def next(self, ops: Ops) -> Flow[list[tuple[str, str, Found]]]:
        """The next checkpoints, each with its thread and namespace; empty at the end."""
        while self._left > 0 and (self._places or (yield from self._open_thread(ops))):
            size = min(self._left, _CHECKPOINTS_PER_READ)
            places, self._places = self._places[-size:], self._places[:-size]
            found: dict[tuple[str, str, str], Found] = {}
            for namespace, thread_id in {place[1:] for place in places}:
                thread = self._threads.at(ops, thread_id)
                ids = [each for each, name, _ in places if name == namespace]
                records = yield from thread.records(namespace, ids)
                matching = [each for each in records.values() if self._matches(each.record)]
                for each in (yield from thread.complete(namespace, matching)):
                    found[each.record.id, namespace, thread_id] = each
            self._left -= len(found)
            if found:
                listed = [place for place in reversed(places) if place in found]
                return [(place[2], place[1], found[place]) for place in listed]
        return []

    def _open_thread(self, ops: Ops) -> Flow[bool]:
        """Read which checkpoints the next thread has; False if there is no other thread."""
        if self._thread_ids is None:
            all_threads = self._threads.ids(ops)
            self._thread_ids = [self.thread_id] if self.thread_id else (yield from all_threads)
        if not self._thread_ids:
            return False
        thread_id = self._thread_ids.pop(0)
        thread = self._threads.at(ops, thread_id)
        names: Iterable[str] = yield from thread.namespaces()
        for name in names if self.namespace is None else [self.namespace]:
            ids = [self.checkpoint_id] if self.checkpoint_id else (yield from thread.ids(name))
            self._places += [(each, name, thread_id) for each in ids]
        if self.before is not None:
            self._places = [place for place in self._places if place[0] < self.before]
        self._places.sort()
        return True
