"""LangGraph: a `BaseCheckpointSaver` that is kept in sessionstore, on plain Redis or in memory.

Where things are: the checkpoints of a thread and namespace are one session. Its log is the history:
an event per checkpoint and per call of put_writes. Its state is what a run needs to go on: the
newest checkpoint and the writes that belong to it, under keys of their own. Both change in one
atomic step, since an event carries its change of state. So the newest checkpoint and its writes are
read in one round trip, in whatever order they arrived, and trimming the log never loses them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import uuid4

import msgspec

import sessionstore.sync

from ..calls import Flow
from ..errors import CorruptData, InvalidArgument
from ..model import Event, SessionKey, VerifiedEvent
from ..ops import Ops
from . import framework
from .checkpoints import (
    History,
    Put,
    Serialized,
    StateKeys,
    StoredCheckpoint,
    StoredWrite,
    Threads,
    checkpoint_name,
    instant_of,
    write_name,
)
from .flows import AnyService, Services, append, clear_events

with framework("langgraph-checkpoint", extra="langgraph", tested=">=3.0,<5"):
    from langgraph.checkpoint.base import (
        WRITES_IDX_MAP,
        BaseCheckpointSaver,
        CheckpointTuple,
        get_checkpoint_id,
        get_checkpoint_metadata,
    )

if TYPE_CHECKING:
    from langchain_core.runnables import RunnableConfig
    from langgraph.checkpoint.base import (
        ChannelVersions,
        Checkpoint,
        CheckpointMetadata,
    )
    from langgraph.checkpoint.serde.base import SerializerProtocol

_REMOVED_LIMIT = 500  # superseded state keys that a checkpoint's event names


class StoredCheckpointSaver(BaseCheckpointSaver[int]):
    """Checkpoints of LangGraph: `builder.compile(checkpointer=StoredCheckpointSaver(service))`.

    A thread is the session `(app_name, user_id, thread_id)`, its subgraphs' namespaces are sessions
    of the user `user_id/thread_id`. The service's `session_ttl` is the idle time of each of them;
    `session_event_limit` is the history that each keeps: checkpoints plus calls of put_writes. The
    newest checkpoint and its writes stay whatever the limit. Serialised, a checkpoint may be three
    quarters as large as the service's `event_size_limit` and `value_size_limit`.

    Reading the newest checkpoint takes one round trip, O(its size). Reading an earlier one, or
    listing, reads the history.

    Args:
        service: a service of `sessionstore.sync`, with which the asynchronous methods run in
            threads; or one for asyncio, which has only those.
        app_name: 1 to 256 bytes of UTF-8.
        user_id: the user whose sessions the threads are; or a function that tells it of a thread
            id, to spread threads over users, and so over the slots of a cluster.
        sync_service: one of `sessionstore.sync` beside one for asyncio, to have both kinds of
            methods without threads. In memory the two would share nothing.
        serde: LangGraph's serializer; None = its default.

    Raises:
        InvalidArgument: a service is none, or both are of one kind.
    """

    def __init__(
        self,
        service: AnyService,
        *,
        app_name: str = "langgraph",
        user_id: str | Callable[[str], str] = "threads",
        sync_service: sessionstore.sync.SessionService | None = None,
        serde: SerializerProtocol | None = None,
    ) -> None:
        super().__init__(serde=serde)
        self._services = Services("StoredCheckpointSaver", service, sync_service)
        self._threads = Threads(app_name, user_id)

    # -- one checkpoint ------------------------------------------------------------------------

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._services!r})"

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """A checkpoint with its pending writes. See `aget_tuple`."""
        return self._services.run(self._get_tuple, config)

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """A checkpoint with its pending writes; None if there is none.

        Args:
            config: names the thread; without a `checkpoint_id` its newest checkpoint.

        Raises:
            InvalidArgument: no thread is named.
            CorruptData: stored bytes do not decode.
            BackendError: the store could not be read.

        One round trip for the newest, O(its size); else O(history).
        """
        return await self._services.arun(self._get_tuple, config)

    def put(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,  # noqa: ARG002  # part of the interface
    ) -> RunnableConfig:
        """Store a checkpoint. See `aput`."""
        change = self._checkpoint(config, checkpoint, metadata)
        self._services.run(append, change.key, [change.event], change.root)
        if change.left:
            self._services.run(self._threads.remove_state, change.key, change.left)
        return self._stored(change)

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,  # noqa: ARG002  # part of the interface
    ) -> RunnableConfig:
        """Store a checkpoint; storing it again changes nothing.

        Args:
            config: names the thread, the namespace and the parent.
            checkpoint: what to store, with all its channel values.
            metadata: what `list` filters by.
            new_versions: not used: every checkpoint is stored whole.

        Returns:
            A config that names the checkpoint.

        Raises:
            InvalidArgument: no thread is named. LimitExceeded if the checkpoint is too large.
            BackendError: the store did not carry it out, or (maybe_applied) did not say so.

        One round trip, O(size); the first of a thread takes three.
        """
        change = self._checkpoint(config, checkpoint, metadata)
        await self._services.arun(append, change.key, [change.event], change.root)
        if change.left:
            await self._services.arun(self._threads.remove_state, change.key, change.left)
        return self._stored(change)

    def put_writes(
        self,
        config: RunnableConfig,
        writes: Sequence[tuple[str, Any]],
        task_id: str,
        task_path: str = "",
    ) -> None:
        """Store what a task wrote. See `aput_writes`."""
        change = self._writes(config, writes, task_id, task_path)
        if change is not None:
            self._services.run(append, change.key, [change.event], change.root)
            self._stored(change)

    async def aput_writes(
        self,
        config: RunnableConfig,
        writes: Sequence[tuple[str, Any]],
        task_id: str,
        task_path: str = "",
    ) -> None:
        """Store what a task wrote, in one atomic step; storing it again changes nothing.

        Args:
            config: names thread, namespace and checkpoint; that may be stored later.
            writes: channel and value.
            task_id: the task; what it wrote before under the same number is replaced.
            task_path: the task's path, by which writes are ordered.

        Raises:
            InvalidArgument: no thread or no checkpoint is named. LimitExceeded if the writes are
                too large.
            BackendError: the store did not carry it out, or (maybe_applied) did not say so.

        One round trip, O(size).
        """
        change = self._writes(config, writes, task_id, task_path)
        if change is not None:
            await self._services.arun(append, change.key, [change.event], change.root)
            self._stored(change)

    # -- many ----------------------------------------------------------------------------------

    def list(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,  # noqa: A002  # the interface's name
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> Iterator[CheckpointTuple]:
        """Checkpoints, newest first. See `alist`."""
        wanted = _Wanted(self, config, filter, before, limit)
        offset: int | None = 0
        while offset is not None and wanted.left:
            threads, offset = self._services.run(self._page, config, offset)
            for thread_id in wanted.new(threads):
                yield from wanted.of(self._services.run(self._histories, thread_id, config))

    async def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,  # noqa: A002  # the interface's name
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        """Checkpoints with their pending writes, newest first.

        Args:
            config: names the thread, and if wanted namespace and checkpoint; None = all threads,
                the one written last first.
            filter: metadata that the checkpoints must have, by key.
            before: a config that names a checkpoint: only earlier ones.
            limit: most checkpoints to give; None = all.

        Raises:
            InvalidArgument: `config` is None, and `user_id` a function.
            CorruptData: stored bytes do not decode.
            BackendError: the store could not be read.

        O(history) of each thread.
        """
        wanted = _Wanted(self, config, filter, before, limit)
        offset: int | None = 0
        while offset is not None and wanted.left:
            threads, offset = await self._services.arun(self._page, config, offset)
            for thread_id in wanted.new(threads):
                histories = await self._services.arun(self._histories, thread_id, config)
                for found in wanted.of(histories):
                    yield found

    def delete_thread(self, thread_id: str) -> None:
        """Remove a thread with all its namespaces. See `adelete_thread`."""
        self._services.run(self._threads.delete, thread_id)

    async def adelete_thread(self, thread_id: str) -> None:
        """Remove a thread with all its namespaces; a missing one is fine.

        Raises:
            BackendError: the store did not carry it out, or did not say so.

        Two round trips, and one for each namespace.
        """
        await self._services.arun(self._threads.delete, thread_id)

    def copy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """Copy a thread. See `acopy_thread`."""
        self._services.run(self._threads.copy, source_thread_id, target_thread_id)

    async def acopy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """Copy the whole history of a thread, with all its namespaces; a missing one is fine.

        Raises:
            BackendError: the store did not carry it out, or did not say so. Copying again
                completes it.

        O(history). Not atomic.
        """
        await self._services.arun(self._threads.copy, source_thread_id, target_thread_id)

    def prune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """Remove history. See `aprune`."""
        self._services.run(self._prune, thread_ids, strategy)

    async def aprune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """Remove history.

        A namespace whose newest checkpoint holds delta channels without a snapshot of them is left
        as it is: they are rebuilt from the history.

        Args:
            thread_ids: the threads; missing ones are fine.
            strategy: "keep_latest" keeps the newest checkpoint of each namespace and its writes;
                "delete" removes the threads.

        Raises:
            InvalidArgument: there is no such strategy.
            BackendError: the store did not carry it out, or did not say so.

        Three round trips a thread, and two for each of its subgraphs' namespaces.
        """
        await self._services.arun(self._prune, thread_ids, strategy)

    def get_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, Any]:
        """What delta channels are rebuilt from. See `aget_delta_channel_history`."""
        return self._services.run(self._delta_history, config, channels)

    async def aget_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, Any]:
        """What delta channels are rebuilt from: the writes since their last snapshot, and that.

        Args:
            config: names the checkpoint; without a `checkpoint_id` the thread's newest.
            channels: the channels.

        Returns:
            A `DeltaChannelHistory` of every channel.

        Raises:
            CorruptData: a part of the history that is needed was trimmed, or does not decode.
            BackendError: the store could not be read.

        O(history).
        """
        return await self._services.arun(self._delta_history, config, channels)

    # -- flows ---------------------------------------------------------------------------------

    def _get_tuple(self, ops: Ops, config: RunnableConfig) -> Flow[CheckpointTuple | None]:
        thread_id, namespace = _place(config)
        key = self._threads.key(thread_id, namespace)
        history = yield from self._threads.read_state(ops, key)
        checkpoint_id = get_checkpoint_id(config) or history.newest
        if checkpoint_id != history.newest:
            history = yield from self._threads.read_history(ops, key)
        if checkpoint_id not in history.checkpoints:
            return None
        return self._tuple(thread_id, checkpoint_id, history)

    def _page(
        self, ops: Ops, config: RunnableConfig | None, offset: int
    ) -> Flow[tuple[Sequence[str], int | None]]:
        """A page of thread ids, and where the next one begins; None behind the last."""
        if config is not None:
            return [_place(config)[0]], None
        return (yield from self._threads.page(ops, offset))

    def _histories(
        self, ops: Ops, thread_id: str, config: RunnableConfig | None
    ) -> Flow[Sequence[tuple[str, History]]]:
        """The histories of a thread's namespaces, or of the one that `config` names."""
        namespace = config["configurable"].get("checkpoint_ns") if config else None
        if namespace is not None:
            keys: Sequence[SessionKey] = [self._threads.key(thread_id, namespace)]
        else:
            keys = yield from self._threads.keys(ops, thread_id)
        found = []
        for key in keys:
            history = yield from self._threads.read_history(ops, key)
            found.append((thread_id, history))
        return found

    def _prune(self, ops: Ops, thread_ids: Sequence[str], strategy: str) -> Flow[None]:
        if strategy not in ("keep_latest", "delete"):
            raise InvalidArgument(f'strategy must be "keep_latest" or "delete", not {strategy!r}')
        for thread_id in thread_ids:
            if strategy == "delete":
                yield from self._threads.delete(ops, thread_id)
                continue
            for key in (yield from self._threads.keys(ops, thread_id)):
                history = yield from self._threads.read_state(ops, key)
                newest = history.checkpoints.get(history.newest)
                if newest is None:
                    continue
                if self._load(newest.metadata).get("counters_since_delta_snapshot"):
                    continue
                yield from clear_events(ops, key)
                stale, _ = self._threads.known(key).before(history.newest)
                if stale:
                    yield from self._threads.remove_state(ops, key, sorted(stale))

    def _delta_history(
        self, ops: Ops, config: RunnableConfig, channels: Sequence[str]
    ) -> Flow[Mapping[str, Any]]:
        thread_id, namespace = _place(config)
        history = yield from self._threads.read_history(
            ops, self._threads.key(thread_id, namespace)
        )
        found: dict[str, dict[str, Any]] = {channel: {"writes": []} for channel in channels}
        missing = set(channels)
        child = history.checkpoints.get(get_checkpoint_id(config) or history.newest)
        while missing and child and child.parent:
            parent = history.checkpoints.get(child.parent)
            if parent is None or len(history.writes.get(child.parent, ())) < child.parent_writes:
                where = f"checkpoint {child.parent!r} of thread {thread_id!r}"
                raise CorruptData(
                    f"{where} is gone, or some of its writes, which the delta channels "
                    f"{sorted(missing)} are rebuilt from: session_event_limit is too low for them",
                    key=where,
                )
            for task_id, write in reversed(history.writes_of(child.parent)):
                if write.channel in missing:
                    value = self._load(write.value)
                    found[write.channel]["writes"].append((task_id, write.channel, value))
            values = self._load(parent.checkpoint)["channel_values"]
            for channel in missing & values.keys():
                found[channel]["seed"] = values[channel]
                missing.discard(channel)
            child = parent
        for entry in found.values():
            entry["writes"].reverse()
        return found

    # -- parts ---------------------------------------------------------------------------------

    def _checkpoint(
        self, config: RunnableConfig, checkpoint: Checkpoint, metadata: CheckpointMetadata
    ) -> _Change:
        """What storing a checkpoint changes."""
        thread_id, namespace = _place(config)
        key, checkpoint_id = self._threads.key(thread_id, namespace), checkpoint["id"]
        parent = get_checkpoint_id(config)
        known = self._threads.known(key)
        superseded, parent_writes = known.before(checkpoint_id, parent)
        record = StoredCheckpoint(
            namespace,
            parent,
            self._dump(checkpoint, "checkpoint"),
            self._dump(get_checkpoint_metadata(config, metadata), "metadata"),
            parent_writes,
        )
        if parent is not None and parent < checkpoint_id:
            superseded.add(checkpoint_name(parent))
        removed = sorted(superseded)
        # What is written are texts; only the id is not known to be one.
        event = (VerifiedEvent if type(checkpoint_id) is str and checkpoint_id else Event)(
            "checkpoint",
            id=checkpoint_id,
            timestamp=_instant(checkpoint),
            state_delta={checkpoint_name(checkpoint_id): msgspec.to_builtins(record)},
            state_removed=removed[:_REMOVED_LIMIT],
        )
        root = self._threads.key(thread_id, "") if namespace else None
        answer = _config(thread_id, namespace, checkpoint_id)
        put = checkpoint_id, parent_writes
        return _Change(key, known, event, root, removed[_REMOVED_LIMIT:], answer, put)

    def _writes(
        self,
        config: RunnableConfig,
        writes: Sequence[tuple[str, Any]],
        task_id: str,
        task_path: str,
    ) -> _Change | None:
        """What storing a task's writes changes; None = nothing."""
        thread_id, namespace = _place(config)
        key, checkpoint_id = self._threads.key(thread_id, namespace), get_checkpoint_id(config)
        if checkpoint_id is None:
            raise InvalidArgument("config must name a checkpoint: checkpoint_id is missing")
        delta: dict[str, Any] = {}
        is_special = False
        for number, (channel, value) in enumerate(writes):
            index = WRITES_IDX_MAP.get(channel, number)
            is_special = is_special or index < 0
            name = write_name(checkpoint_id, task_id, index)
            written = StoredWrite(channel, task_path, self._dump(value, f"writes[{number}]"))
            delta[name] = msgspec.to_builtins(written)
        if not delta:
            return None
        # An error or an interrupt may come back to what it was before: that is a change too.
        unique = uuid4().hex if is_special else ""
        event = Event(
            "writes",
            id=f"{checkpoint_id}/{task_id}/{unique}",
            timestamp=instant_of(checkpoint_id),
            state_delta=delta,
        )
        root = self._threads.key(thread_id, "") if namespace else None
        return _Change(key, self._threads.known(key), event, root, [], config)

    def _stored(self, change: _Change) -> RunnableConfig:
        """Note what is stored now; the change's answer."""
        event = change.event
        gone = event.state_removed + change.left
        change.known.replace(gone, event.state_delta, change.put)
        return change.answer

    def _tuple(self, thread_id: str, checkpoint_id: str, history: History) -> CheckpointTuple:
        record = history.checkpoints[checkpoint_id]
        namespace, parent = record.namespace, record.parent
        return CheckpointTuple(
            config=_config(thread_id, namespace, checkpoint_id),
            checkpoint=self._load(record.checkpoint),
            metadata=self._load(record.metadata),
            parent_config=_config(thread_id, namespace, parent) if parent else None,
            pending_writes=[
                (task_id, write.channel, self._load(write.value))
                for task_id, write in history.writes_of(checkpoint_id)
            ],
        )

    def _dump(self, value: Any, path: str) -> Serialized:
        try:
            return Serialized(*self.serde.dumps_typed(value))
        except Exception as error:
            where, part = self._search(value, path)
            raise InvalidArgument(
                f"{where} is a {type(part).__name__}, which {type(self.serde).__name__} does not "
                f"serialise ({type(error).__name__})"
            ) from None

    def _search(self, value: Any, path: str) -> tuple[str, Any]:
        """The innermost part that is at fault of a value which cannot be serialised."""
        parts: Iterable[tuple[Any, Any]] = ()
        if isinstance(value, dict):
            parts = value.items()
        elif isinstance(value, (list, tuple)):
            parts = enumerate(value)
        for key, part in parts:
            try:
                self.serde.dumps_typed(part)
            except Exception:
                return self._search(part, f"{path}[{key!r}]")
        return path, value

    def _load(self, serialized: Serialized) -> Any:
        return self.serde.loads_typed((serialized.type, serialized.data))


class _Change(NamedTuple):
    """An event of a thread's log.

    Attributes:
        key: the session it goes to.
        known: the session's state keys.
        event: the event.
        root: the thread's own session, which is created too, if `key` is a subgraph's.
        left: superseded state keys beyond those that the event names.
        answer: a config that names the checkpoint.
        put: the checkpoint, if the event is one.
    """

    key: SessionKey
    known: StateKeys
    event: Event
    root: SessionKey | None
    left: list[str]
    answer: RunnableConfig
    put: Put | None = None


class _Wanted:
    """Which checkpoints a listing gives, and how many are left to give."""

    def __init__(
        self,
        saver: StoredCheckpointSaver,
        config: RunnableConfig | None,
        metadata: Mapping[str, Any] | None,
        before: RunnableConfig | None,
        limit: int | None,
    ) -> None:
        self.left = max(limit, 0) if limit is not None else 1 << 62
        self._saver = saver
        self._metadata = metadata or {}
        self._id = get_checkpoint_id(config) if config else None
        self._before = get_checkpoint_id(before) if before else None
        self._seen: set[str] = set()

    def new(self, threads: Sequence[str]) -> Sequence[str]:
        """Those not seen before: a thread written meanwhile moves from page to page."""
        found = [thread_id for thread_id in threads if thread_id not in self._seen]
        self._seen.update(found)
        return found

    def of(self, histories: Sequence[tuple[str, History]]) -> Iterator[CheckpointTuple]:
        """Those of one thread, the highest checkpoint id first."""
        found = [
            (checkpoint_id, thread_id, history)
            for thread_id, history in histories
            for checkpoint_id in history.checkpoints
            if (self._id is None or checkpoint_id == self._id)
            and (self._before is None or checkpoint_id < self._before)
        ]
        found.sort(key=lambda entry: entry[0], reverse=True)
        for checkpoint_id, thread_id, history in found:
            if not self.left:
                return
            if self._metadata:
                metadata = self._saver._load(history.checkpoints[checkpoint_id].metadata)
                if any(metadata.get(key) != value for key, value in self._metadata.items()):
                    continue
            self.left -= 1
            yield self._saver._tuple(thread_id, checkpoint_id, history)


def _place(config: RunnableConfig) -> tuple[str, str]:
    """Thread and namespace.

    Raises:
        InvalidArgument: no thread is named.
    """
    configurable = config.get("configurable") or {}
    if "thread_id" not in configurable:
        raise InvalidArgument("config must name a thread: configurable.thread_id is missing")
    return configurable["thread_id"], configurable.get("checkpoint_ns") or ""


def _instant(checkpoint: Checkpoint) -> datetime:
    """When a checkpoint was made, as it says itself; the same whenever it is stored again."""
    try:
        made = datetime.fromisoformat(checkpoint["ts"])
        if made.tzinfo is not None:
            return made
    except (KeyError, TypeError, ValueError):
        pass
    return instant_of(checkpoint["id"])


def _config(thread_id: str, namespace: str, checkpoint_id: str) -> RunnableConfig:
    return {
        "configurable": {
            "thread_id": thread_id,
            "checkpoint_ns": namespace,
            "checkpoint_id": checkpoint_id,
        }
    }
