"""Lists the checkpoints of a LangGraph saver, reading no more than is asked for."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable

from ..calls import Flow
from ..model import SessionKey
from ..ops import Ops
from ..replies import Place
from .checkpoint_reads import PAGE_LIMIT, Found, ThreadReader
from .checkpoints import Fields, Record, Space

_LIST_STEP = 20  # checkpoints that are read at once

Listed = tuple[str, str, Found]
"""A thread id, a namespace, and a checkpoint."""


class Listing:
    """A listing of checkpoints, newest first, that is read page by page.

    Args:
        threads: reads them.
        thread_id: the thread; None = all threads, the one written last first.
        namespace: the namespace; None = all.
        checkpoint_id: the only checkpoint to list; None = all.
        before: list only checkpoints with lower ids; None = all.
        limit: how many to list; None = all.
        matches: whether to list a checkpoint, of which only the metadata has been read; None = all.
    """

    def __init__(
        self,
        threads: ThreadReader,
        thread_id: str | None,
        namespace: str | None,
        checkpoint_id: str | None,
        before: str | None,
        limit: int | None,
        matches: Callable[[Found], bool] | None,
    ) -> None:
        self._threads = threads
        self._namespace = namespace
        self._id = checkpoint_id
        self._before = before
        self._left = max(limit, 0) if limit is not None else 1 << 62
        self._matches = matches
        self._ids: list[tuple[str, str]] = []  # id and namespace, of the thread that is read
        self._pages: list[tuple[Space, int]] = []  # pages of ids, the next one last
        self._thread_ids = [] if thread_id is None else [thread_id]
        self._thread_id = ""
        self._more_threads = thread_id is None
        self._after: Place | None = None
        self._seen: set[str] = set()

    def next(self, ops: Ops) -> Flow[list[Listed]]:
        """The next checkpoints; empty at the end."""
        while self._left and (self._ids or (yield from self._fill(ops))):
            size = min(self._left, _LIST_STEP)
            ids, self._ids = self._ids[:size], self._ids[size:]
            found = yield from self._read(ops, ids)
            if found:
                self._left -= len(found)
                return found
        return []

    def _read(self, ops: Ops, ids: list[tuple[str, str]]) -> Flow[list[Listed]]:
        key = self._threads.key(self._thread_id)
        found: dict[tuple[str, str], Listed] = {}
        for namespace in dict.fromkeys(namespace for _, namespace in ids):
            fields = Fields(namespace)
            wanted = [checkpoint_id for checkpoint_id, name in ids if name == namespace]
            records = yield from self._threads.records(ops, key, fields, wanted)
            matching = list(records.values())
            if self._matches is not None:
                matching = yield from self._matching(ops, key, fields, matching)
            for each in (yield from self._threads.complete(ops, key, fields, matching)):
                place = (each.record.id, namespace)
                found[place] = (self._thread_id, namespace, each)
        return [found[place] for place in ids if place in found]

    def _matching(
        self, ops: Ops, key: SessionKey, fields: Fields, records: list[Record]
    ) -> Flow[list[Record]]:
        """Records with the metadata that is asked for."""
        blobs = [record.metadata for record in records]
        parts = yield from self._threads.parts(ops, key, fields, blobs)
        matching = []
        for record in records:
            is_there = all(name in parts for name in record.metadata.parts)
            if is_there and self._matches and self._matches(Found(record, [], parts)):
                matching.append(record)
        return matching

    def _fill(self, ops: Ops) -> Flow[bool]:
        """Read the next ids; False at the end."""
        while not self._ids:
            if self._pages:
                space, number = self._pages.pop()
                key = self._threads.key(self._thread_id)
                ids = yield from self._threads.earlier_ids(ops, key, space, number)
                self._take([(checkpoint_id, space.name) for checkpoint_id in ids])
            elif self._thread_ids:
                self._thread_id = self._thread_ids.pop(0)
                yield from self._open(ops)
            elif self._more_threads:
                page = yield from self._threads.page(ops, self._after)
                self._after = page[-1] if page else None
                self._more_threads = len(page) == PAGE_LIMIT
                # A thread that is written meanwhile moves from page to page.
                self._thread_ids = [
                    place.session_id for place in page if place.session_id not in self._seen
                ]
                self._seen.update(self._thread_ids)
            else:
                return False
        return True

    def _open(self, ops: Ops) -> Flow[None]:
        """Read the ids of a thread: of several namespaces all, of a single one the newest."""
        key = self._threads.key(self._thread_id)
        names = [self._namespace] if self._namespace is not None else []
        if not names:
            names = list((yield from self._threads.namespaces(ops, key)))
        elif not (yield from self._threads.exists(ops, key)):
            return
        if self._id is not None:
            self._take([(self._id, name) for name in names])
            return
        spaces = yield from self._threads.spaces(ops, key, names)
        ids = [(checkpoint_id, space.name) for space in spaces for checkpoint_id in space.ids]
        if len(spaces) == 1:
            self._pages = [(spaces[0], number) for number in range(spaces[0].num_pages)]
        else:
            for space in spaces:
                if space.num_pages:
                    every = yield from self._threads.all_ids(ops, key, space)
                    earlier = every[: bisect_left(every, space.ids[0])]
                    ids += [(checkpoint_id, space.name) for checkpoint_id in earlier]
        self._take(ids)

    def _take(self, ids: list[tuple[str, str]]) -> None:
        if self._before is not None:
            ids = [place for place in ids if place[0] < self._before]
        self._ids = sorted(ids, key=lambda place: place[0], reverse=True)
