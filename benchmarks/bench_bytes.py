"""How many bytes does an operation replicate and write to the append-only file?

A primary with a replica and an append-only file, and messages of synthetic conversations. Servers
replicate the commands that a script has run, and not the script. Bytes are the growth of
`master_repl_offset` and of `aof_current_size` for each operation.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from sessionstore import RedisSessionService, Session

from .harness import Harness, main
from .results import Figure, Result
from .rigs.nodes import CONFIG, HOST, Group, Node, wait_until
from .scale.filling import event_of, messages, trained

_MEAN_BYTES = 772  # the longest messages are left out if their mean is above it
_LIMIT = 200
_TTL_S = 86_400
_DELTA = {"turns": 4, "topic": "travel", "user:mood": "curious"}


class _Pair(Group):
    """A primary that writes an append-only file, and its replica."""

    def __init__(self) -> None:
        super().__init__(None)

    def _form(self) -> None:
        settings = {
            **CONFIG,
            "appendonly": "yes",
            "appendfsync": "no",
            "auto-aof-rewrite-percentage": "0",
            "repl-ping-replica-period": "3600",  # its PINGs would count
        }
        primary, replica = self._add(["primary", "replica"], settings)
        for node in (primary, replica):
            node.wait_for_answer()
        replica.run("REPLICAOF", HOST, primary.port)

    def _is_settled(self) -> bool:
        found = self.nodes[1].info("replication")
        return bool(found["master_link_status"] == "up")


def _read(node: Node) -> tuple[int, int]:
    """Bytes that were replicated, and bytes of the append-only file."""
    return (
        node.info("replication")["master_repl_offset"],
        node.info("persistence")["aof_current_size"],
    )


class _Measured:
    """Operations on sessions, with or without compression.

    Args:
        primary: the primary of the pair.
        compression: compress what is stored.
        count: how many operations of each kind.
    """

    def __init__(self, primary: Node, *, compression: bool, count: int) -> None:
        self._primary = primary
        self._url = f"redis://{HOST}:{primary.port}"
        self._compression = compression
        self._count = count
        self._name = "dense" if compression else "plain"  # equally long
        pool = messages(_MEAN_BYTES)
        self._contents = [pool[number % len(pool)] for number in range(count)]

    async def measure(self) -> dict[str, tuple[float, float]]:
        """Bytes replicated and bytes of the file, by operation."""
        async with self._service() as service, self._service(2 * _TTL_S) as longer:
            below, full = [await self._session(service, name) for name in ("room", "full")]
            each = [await self._session(service, f"s{number}") for number in range(self._count)]
            fill = [event_of(self._contents[number % self._count]) for number in range(_LIMIT)]
            await service.append_events(full, fill)

            def append(session: Session, **state: Any) -> Callable[[int], Awaitable[object]]:
                def one(number: int) -> Awaitable[object]:
                    event = event_of(self._contents[number])
                    return service.append_event(
                        session.key, msgspec.structs.replace(event, **state)
                    )

                return one

            def read(service: RedisSessionService) -> Callable[[int], Awaitable[object]]:
                def one(number: int) -> Awaitable[object]:
                    return service.get_session(
                        app_name="bytes",
                        user_id=self._name,
                        session_id=each[number].id,
                        event_num=20,
                    )

                return one

            def create(number: int) -> Awaitable[object]:
                return service.create_session(
                    app_name="bytes", user_id=f"{self._name}{number}", state={"topic": "travel"}
                )

            for session in (below, full):  # later appends refresh no TTL
                await append(session)(0)
            with_state = append(full, state_delta=_DELTA)
            await self._cost(with_state)  # its keys are there
            return {
                "create a session": await self._cost(create),
                "append an event": await self._cost(append(below), _LIMIT // 2),
                "append an event, log full": await self._cost(append(full)),
                "the same with state": await self._cost(with_state),
                "read, TTL is refreshed": await self._cost(read(longer)),
                "read, TTL was refreshed lately": await self._cost(read(longer)),
            }

    @asynccontextmanager
    async def _service(self, ttl_s: float = _TTL_S) -> AsyncIterator[RedisSessionService]:
        options: dict[str, Any] = {"compression": trained()} if self._compression else {}
        service = RedisSessionService(
            self._url,
            session_event_limit=_LIMIT,
            session_ttl=ttl_s,
            user_state_ttl=ttl_s,
            app_state_ttl=ttl_s,
            **options,
        )
        async with service:
            yield service

    async def _session(self, service: RedisSessionService, name: str) -> Session:
        return await service.create_session(
            app_name="bytes", user_id=self._name, session_id=name, state={"user:name": "Ada"}
        )

    async def _cost(
        self, operation: Callable[[int], Awaitable[object]], at_most: int | None = None
    ) -> tuple[float, float]:
        """Bytes of one operation, which is run for each content, or for some."""
        count = min(self._count, at_most or self._count)
        before = _read(self._primary)
        for number in range(count):
            await operation(number)
        after = _read(self._primary)
        return (after[0] - before[0]) / count, (after[1] - before[1]) / count


def run(harness: Harness) -> Result:
    """Measure."""
    pair = _Pair()
    harness.at_end(pair.close)
    pair.start()
    primary = pair.nodes[0]
    wait_until(lambda: primary.info("replication")["connected_slaves"] == 1, "the replica")
    count = harness.pick(1000, 20)
    sizes = [len(msgspec.json.encode(event_of(each))) for each in messages(_MEAN_BYTES)[:count]]
    figures = [Figure("an encoded event", sum(sizes) / len(sizes), "bytes")]
    notes = []
    all_replicated, all_written = 0.0, 0.0
    for compression in (False, True):
        measured = _Measured(primary, compression=compression, count=count)
        try:
            found = harness.run(measured.measure())
        except ImportError as reason:
            notes.append(f"Compression was not measured: {reason}.")
            continue
        for name, (replicated, written) in found.items():
            suffix = ", compressed" if compression else ""
            figures.append(Figure(f"{name}{suffix}: replicated", replicated, "bytes"))
            all_replicated += replicated
            all_written += written
    figures.append(Figure("append-only file / replicated", all_written / all_replicated, "x"))
    return harness.result(
        "bench_bytes",
        "How many bytes does an operation replicate and write to the append-only file?",
        figures=figures,
        notes=notes,
    )


if __name__ == "__main__":
    main(run)
