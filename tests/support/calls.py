"""The Calls that the operations of the registry send, for tests of their content."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sessionstore import SessionKey, SessionService
from sessionstore.calls import AsyncExecutor, Call
from sessionstore.observe import wrap_executor
from sessionstore.ops import Ops
from sessionstore.twin import AsyncMemoryExecutor, MemoryExecutor

from .operations import Operation
from .scene import set_scene
from .services import make_options

_CLOCK_S = 1_700_000_000.0


class _Recorder:
    """Records Calls on their way to an executor."""

    def __init__(self, inner: AsyncExecutor) -> None:
        self.calls: list[Call[Any]] = []
        self._inner = inner

    async def execute(self, call: Call[Any]) -> list[Any]:
        self.calls.append(call)
        return await self._inner.execute(call)

    async def aclose(self) -> None:
        await self._inner.aclose()


class _RecordingOps(Ops):
    """Records which builders are called."""

    builders: set[str]

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if callable(found) and not name.startswith("_"):
            self.builders.add(name)
        return found


@dataclass(frozen=True)
class Sent:
    """What an operation sent to a store in memory whose clock stands still.

    Attributes:
        calls: the Calls, in order.
        builders: the methods of Ops that made them.
    """

    calls: list[Call[Any]]
    builders: set[str]


async def sent_by(operation: Operation, *, app_in_own_slot: bool = False, **options: Any) -> Sent:
    """Run an operation of the registry.

    Args:
        operation: the operation.
        app_in_own_slot: build Calls for a cluster.
        **options: options of the service.
    """
    ops = _RecordingOps(make_options(**options), app_in_own_slot=app_in_own_slot)
    ops.builders = set()
    memory = MemoryExecutor(clock=lambda: _CLOCK_S)

    def expire(key: SessionKey) -> None:
        names = ops.options.keys.session(key.app_name, key.user_id, key.session_id)
        memory.keyspace.unlink(names.session, names.events)

    service = SessionService(ops, AsyncMemoryExecutor(memory))
    scene = await set_scene(service, operation, expire=expire)
    recorder = _Recorder(AsyncMemoryExecutor(memory))
    wrap_executor(service, lambda _: recorder)
    ops.builders.clear()
    await operation.run(service, scene)
    return Sent(recorder.calls, ops.builders)


async def calls_of(operation: Operation, **options: Any) -> list[Call[Any]]:
    """The Calls alone; the arguments are those of `sent_by`."""
    return (await sent_by(operation, **options)).calls
