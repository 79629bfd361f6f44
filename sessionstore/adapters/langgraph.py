"""LangGraph: a `BaseCheckpointSaver` that is kept in sessionstore, on plain Redis or in memory.

A thread is a session. checkpoints.py says how it is stored.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import sessionstore.sync

from ..calls import Flow
from ..errors import CorruptData, InvalidArgument
from ..ops import Ops
from ..options import check_int
from . import checkpoints_0_1, framework
from .checkpoint_fields import ThreadFields
from .checkpoint_listing import Pages
from .checkpoint_threads import CheckpointRemoved, Found, Threads
from .checkpoints import LAYOUT, Blob, Parts, Record, Write
from .json_events import find_fault
from .langgraph_store import StoredStore
from .services import AnyService, Services, both

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

__all__ = ["CheckpointRemoved", "StoredCheckpointSaver", "StoredStore"]

KEEP_CHECKPOINTS = 200
"""How many of the newest checkpoints of a namespace are kept by default."""


class StoredCheckpointSaver(BaseCheckpointSaver[Any]):
    """Checkpoints of LangGraph: `builder.compile(checkpointer=StoredCheckpointSaver(service))`.

    A thread is the session `(app_name, user_id, thread_id)`, with all namespaces of its subgraphs.
    The service's `session_ttl` is its idle time. The other limits of the service do not apply.

    Every namespace keeps its newest `keep_checkpoints` checkpoints, and up to a quarter more. What
    the newest ones need is kept too: the values of channels, and for delta channels the last
    snapshot and the writes since. A namespace of one call of a subgraph is removed together with
    the checkpoint of the root graph that the call started from.

    Reading a checkpoint takes two round trips, and a third if another process has written a newer
    one, O(its size). Storing one takes one, O(what changed), and a few for each quarter more.

    Args:
        service: a service of sessionstore. With one of `sessionstore.sync` the asynchronous methods
            run in threads. With one for asyncio the others run on its event loop, if they are
            called from another thread, as LangGraph does for nodes that are not asynchronous.
        app_name: 1 to 256 bytes of UTF-8.
        user_id: the user whose sessions the threads are; or a function from a thread id to a user,
            which spreads threads over the slots of a cluster.
        sync_service: a service of `sessionstore.sync` on the same server, with one for asyncio.
        serde: LangGraph's serializer; None = its default.
        keep_checkpoints: how many checkpoints of each namespace are kept, 1 or more; None = all.

    Raises:
        InvalidArgument: an argument is not valid.

    Methods raise BackendError if the store refused the call or did not answer (maybe_applied), and
    CorruptData if stored bytes do not decode.
    """

    def __init__(
        self,
        service: AnyService,
        *,
        app_name: str = "langgraph",
        user_id: str | Callable[[str], str] = "threads",
        sync_service: sessionstore.sync.SessionService | None = None,
        serde: SerializerProtocol | None = None,
        keep_checkpoints: int | None = KEEP_CHECKPOINTS,
    ) -> None:
        super().__init__(serde=serde)
        if keep_checkpoints is not None:
            check_int("keep_checkpoints", keep_checkpoints, low=1)
        self._services = Services("StoredCheckpointSaver", service, sync_service)
        self._threads = Threads(app_name, user_id, keep_checkpoints, self._convert)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._services!r})"

    def get_next_version(self, current: Any, channel: None) -> Any:
        """The version after `current`: an int, or a text if another saver wrote texts."""
        if isinstance(current, str):
            # As LangGraph's savers write them. The fraction tells the versions of forks apart.
            return f"{int(current.partition('.')[0]) + 1:032}.{random.random():016}"
        return super().get_next_version(current, channel)

    # -- one checkpoint ------------------------------------------------------------------------

    def _get_tuple(self, ops: Ops, config: RunnableConfig) -> Flow[CheckpointTuple | None]:
        """A checkpoint with its pending writes, without an id the newest; None: it is not stored.

        Raises:
            InvalidArgument: no thread is named.
            CheckpointRemoved: the checkpoint is at most as new as one that retention has removed.
        """
        thread_id, namespace = _place(config)
        thread = self._threads.at(ops, thread_id)
        found = yield from thread.get(namespace, get_checkpoint_id(config))
        return self._tuple(thread_id, namespace, found) if found else None

    get_tuple, aget_tuple = both(_get_tuple)

    def _put(
        self,
        ops: Ops,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> Flow[RunnableConfig]:
        """Store a checkpoint, in one atomic step; storing it again changes nothing.

        Values of channels that are not in `new_versions` are not serialized again.

        Raises:
            InvalidArgument: no thread is named, or a value cannot be serialized.
        """
        thread_id, namespace = _place(config)
        full = get_checkpoint_metadata(config, metadata)
        parent = get_checkpoint_id(config)

        def build(head: Record | None) -> tuple[Record, dict[str, bytes]]:
            return self._record(parent, checkpoint, full, new_versions, head)

        thread = self._threads.at(ops, thread_id)
        yield from thread.put(namespace, _root(namespace, full), build)
        return _config(thread_id, namespace, checkpoint["id"])

    put, aput = both(_put)

    def _put_writes(
        self,
        ops: Ops,
        config: RunnableConfig,
        writes: Sequence[tuple[str, Any]],
        task_id: str,
        task_path: str = "",
    ) -> Flow[None]:
        """Store what a task wrote, in one atomic step. The checkpoint may be stored later.

        What a task wrote before stays: only errors, interrupts and the like are replaced.

        Raises:
            InvalidArgument: no thread or no checkpoint is named, or a value cannot be serialized.
        """
        thread_id, namespace = _place(config)
        checkpoint_id = get_checkpoint_id(config)
        if checkpoint_id is None:
            raise InvalidArgument("config must name a checkpoint: checkpoint_id is missing")
        parts = Parts(f"{checkpoint_id}/{task_id}")
        written = []
        for number, (channel, value) in enumerate(writes):
            blob = parts.blob(*self._dump(value, f"writes[{number}]"))
            index = WRITES_IDX_MAP.get(channel, number)
            written.append(Write(task_id, index, task_path, channel, blob))
        if written:
            thread = self._threads.at(ops, thread_id)
            yield from thread.put_writes(namespace, checkpoint_id, written, parts.data)

    put_writes, aput_writes = both(_put_writes)

    def _get_delta_channel_history(
        self, ops: Ops, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Flow[Mapping[str, Any]]:
        """What delta channels are rebuilt from: their last snapshot, and the writes since.

        Raises:
            CorruptData: a part of the history that is needed was removed, or does not decode.
        """
        thread_id, namespace = _place(config)
        thread = self._threads.at(ops, thread_id)
        bases, cut, parts = yield from thread.history(
            namespace, get_checkpoint_id(config), channels
        )
        if cut is not None:
            rebuilt = self.serde.loads_typed(cut.checkpoint)["channel_versions"].keys()
            if lost := sorted(rebuilt & set(channels) - bases.keys()):
                where = f"checkpoint {cut.id!r} of thread {thread_id!r}"
                raise CorruptData(
                    f"the history before {where} was removed, from which the channels {lost} are "
                    "rebuilt: they were not known to be delta channels",
                    key=where,
                )
        result: dict[str, dict[str, Any]] = {channel: {"writes": []} for channel in channels}
        for channel, base in bases.items():
            result[channel]["writes"] = [
                (write.task_id, channel, self._load(parts, write.value)) for write in base.writes
            ]
            if base.seed is not None:
                result[channel]["seed"] = self._load(parts, base.seed)
        return result

    get_delta_channel_history, aget_delta_channel_history = both(_get_delta_channel_history)

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
        pages = self._pages(config, filter, before, limit)
        while found := self._services.run(pages.next):
            for each in found:
                yield self._tuple(*each)

    async def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,  # noqa: A002  # the interface's name
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        """Checkpoints with their pending writes, newest first.

        It reads the ids of the checkpoints in a thread, then the checkpoints in pages of up to 20.
        Without `config` it lists all threads, the last written first.

        Raises:
            InvalidArgument: `config` is None, and `user_id` a function.
        """
        pages = self._pages(config, filter, before, limit)
        while found := await self._services.arun(pages.next):
            for each in found:
                yield self._tuple(*each)

    def _delete_thread(self, ops: Ops, thread_id: str) -> Flow[None]:
        """Remove a thread with all its namespaces. No error if it does not exist."""
        thread = self._threads.at(ops, thread_id)
        if (yield ops.read_fields(thread.key, [LAYOUT])) == [None]:
            old = yield from checkpoints_0_1.read_thread(ops, thread.key)
            yield from checkpoints_0_1.remove_rest(ops, old)
        yield from thread.delete()

    delete_thread, adelete_thread = both(_delete_thread)

    def _copy_thread(self, ops: Ops, source_thread_id: str, target_thread_id: str) -> Flow[None]:
        """Replace a thread by a copy of another one. No error if that does not exist.

        O(size of the thread). Not atomic: the newest checkpoints appear last. To complete a copy
        that failed, copy again.
        """
        source = self._threads.at(ops, source_thread_id)
        yield from source.copy_to(self._threads.at(ops, target_thread_id))

    copy_thread, acopy_thread = both(_copy_thread)

    def _delete_for_runs(self, ops: Ops, run_ids: Sequence[str]) -> Flow[None]:
        """Remove the checkpoints of some runs, with their writes, from all threads.

        Later checkpoints keep what their delta channels need. Reads every thread.

        Raises:
            InvalidArgument: `user_id` is a function, so threads cannot be listed.
        """
        wanted = frozenset(run_ids)
        pages = Pages(self._threads, lambda each: self._metadata(each).get("run_id") in wanted)
        victims: dict[tuple[str, str], set[str]] = defaultdict(set)
        while wanted and (page := (yield from pages.next(ops))):
            for thread_id, namespace, found in page:
                victims[thread_id, namespace].add(found.record.id)
        for (thread_id, namespace), ids in victims.items():
            thread = self._threads.at(ops, thread_id)
            yield from thread.remove(namespace, ids.intersection, is_retention=False)

    delete_for_runs, adelete_for_runs = both(_delete_for_runs)

    def _prune(
        self,
        ops: Ops,
        thread_ids: Sequence[str],
        *,
        strategy: str = "keep_latest",
        keep_last: int = 1,
    ) -> Flow[None]:
        """Remove history.

        Args:
            thread_ids: the threads. Missing ones are ignored.
            strategy: "keep_latest" keeps the newest checkpoints of each namespace, their writes,
                and what delta channels need; "delete" removes the threads.
            keep_last: how many "keep_latest" keeps, 1 or more.

        Raises:
            InvalidArgument: there is no such strategy, or `keep_last` is below 1.
        """
        if strategy not in ("keep_latest", "delete"):
            raise InvalidArgument(f'strategy must be "keep_latest" or "delete", not {strategy!r}')
        check_int("keep_last", keep_last, low=1)
        for thread_id in thread_ids:
            if strategy == "delete":
                yield from self._delete_thread(ops, thread_id)
                continue
            thread = self._threads.at(ops, thread_id)
            for namespace in (yield from thread.namespaces()):
                yield from thread.remove(namespace, lambda ids: ids[:-keep_last])

    prune, aprune = both(_prune)

    # -- parts ---------------------------------------------------------------------------------

    def _convert(self, thread: ThreadFields) -> Flow[None]:
        """Store again what release 0.1.0 stored of a thread."""
        return checkpoints_0_1.convert(thread, self.serde.loads_typed, self._record, _root)

    def _pages(
        self,
        config: RunnableConfig | None,
        wanted: Mapping[str, Any] | None,
        before: RunnableConfig | None,
        limit: int | None,
    ) -> Pages:
        def matches(record: Record) -> bool:
            metadata = self._metadata(record) if wanted else {}
            return all(metadata.get(name) == value for name, value in (wanted or {}).items())

        pages = Pages(self._threads, matches, limit)
        if config is not None:
            pages.thread_id, _ = _place(config)
            pages.namespace = config["configurable"].get("checkpoint_ns")
            pages.checkpoint_id = get_checkpoint_id(config)
        if before is not None:
            pages.before = get_checkpoint_id(before)
        return pages

    def _metadata(self, record: Record) -> Mapping[str, Any]:
        return self.serde.loads_typed(record.metadata)

    def _record(
        self,
        parent: str | None,
        checkpoint: Checkpoint,
        metadata: Mapping[str, Any],
        new_versions: ChannelVersions,
        head: Record | None,
    ) -> tuple[Record, dict[str, bytes]]:
        """A checkpoint to store, and the parts of its values. It shares values with its parent."""
        known = head.values if head is not None and head.id == parent else {}
        versions = checkpoint.get("channel_versions") or {}
        parts = Parts()
        values: dict[str, Blob] = {}
        for channel, value in checkpoint["channel_values"].items():
            version = versions.get(channel)
            blob = known.get(channel)
            if (
                blob is None
                or version is None
                or blob.version != version
                or channel in new_versions
            ):
                path = f"checkpoint['channel_values'][{channel!r}]"
                blob = parts.blob(*self._dump(value, path), version)
            values[channel] = blob
        rest = {name: part for name, part in checkpoint.items() if name != "channel_values"}
        counters = metadata.get("counters_since_delta_snapshot") or {}
        record = Record(
            checkpoint["id"],
            parent or None,
            self._dump(rest, "checkpoint"),
            self._dump(metadata, "metadata"),
            values,
            tuple(name for name in counters if name in versions and name not in values),
        )
        return record, parts.data

    def _tuple(self, thread_id: str, namespace: str, found: Found) -> CheckpointTuple:
        record = found.record
        values = {name: self._load(found.parts, blob) for name, blob in record.values.items()}
        return CheckpointTuple(
            config=_config(thread_id, namespace, record.id),
            checkpoint=self.serde.loads_typed(record.checkpoint) | {"channel_values": values},
            metadata=self.serde.loads_typed(record.metadata),
            parent_config=_config(thread_id, namespace, record.parent) if record.parent else None,
            pending_writes=[
                (write.task_id, write.channel, self._load(found.parts, write.value))
                for write in found.writes
            ],
        )

    def _dump(self, value: Any, path: str) -> tuple[str, bytes]:
        try:
            return self.serde.dumps_typed(value)
        except Exception as error:
            path, part = find_fault(value, path, self.serde.dumps_typed)
            raise InvalidArgument(
                f"{path} is a {type(part).__name__}, which {type(self.serde).__name__} does not "
                f"serialize ({type(error).__name__})"
            ) from error

    def _load(self, parts: Mapping[str, bytes], blob: Blob) -> Any:
        return self.serde.loads_typed((blob.type, blob.join(parts)))


def _place(config: RunnableConfig) -> tuple[str, str]:
    """Thread and namespace.

    Raises:
        InvalidArgument: no thread is named.
    """
    configurable = config.get("configurable") or {}
    if "thread_id" not in configurable:
        raise InvalidArgument("config must name a thread: configurable.thread_id is missing")
    return configurable["thread_id"], configurable.get("checkpoint_ns") or ""


def _config(thread_id: str, namespace: str, checkpoint_id: str) -> RunnableConfig:
    return {
        "configurable": {
            "thread_id": thread_id,
            "checkpoint_ns": namespace,
            "checkpoint_id": checkpoint_id,
        }
    }


def _root(namespace: str, metadata: Mapping[str, Any]) -> str:
    """The root checkpoint from which a subgraph was called; "" = it does not belong to one call."""
    parents = metadata.get("parents")
    if ":" in namespace and isinstance(parents, dict):  # it contains the id of a task
        return str(parents.get("", ""))
    return ""
