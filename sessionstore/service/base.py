"""What every service has: an executor, `ping` and `aclose`."""

from __future__ import annotations

from collections.abc import Awaitable
from types import TracebackType
from typing import Self

from .. import flows
from ..calls import AsyncExecutor, Flow, Observer, R
from ..drive import drive_async
from ..model import Ping
from ..ops import Ops
from ..watchers import Watchers


class BaseService:
    """Runs flows on an executor. The operations are in its subclasses."""

    _address = ""  # shown by repr

    def __init__(self, ops: Ops, executor: AsyncExecutor) -> None:
        self._ops = ops
        self._executor = executor
        self._watchers = Watchers(ops, self._run, getattr(executor, "listen", None))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._address})"

    async def ping(self) -> Ping:
        """How long a server takes to answer, and its role. It reads and writes no data.

        In a cluster the node that holds slot 0 answers. With `read_from="replica"` a replica does,
        as for reads. The time includes connecting, if there is no connection yet, and retries.

        Raises:
            BackendError: no server answered within `call_timeout`.

        Plain HELLO; one round trip, O(1).
        """
        return await self._run(flows.ping(self._ops))

    async def aclose(self) -> None:
        """Release connections or memory. Later calls raise BackendUnavailable. Safe to repeat.

        Watchers of sessions end with BackendUnavailable.
        """
        await self._watchers.aclose()
        await self._executor.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    def _run(self, flow: Flow[R], observer: Observer | None = None) -> Awaitable[R]:
        return drive_async(flow, self._executor, observer)
