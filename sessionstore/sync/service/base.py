# Generated from sessionstore/service/base.py by tests/support/generate_sync.py. Do not edit.
"""What every service has: an executor, `ping` and `close`."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from ... import flows
from ...calls import Flow, Observer, R, SyncExecutor
from ...drive import drive
from ...model import Ping
from ...ops import Ops
from ..watchers import Watchers


class BaseService:
    """Runs flows on an executor. The operations are in its subclasses."""

    _address = ""  # shown by repr

    def __init__(self, ops: Ops, executor: SyncExecutor) -> None:
        self._ops = ops
        self._executor = executor
        self._watchers = Watchers(ops, self._run, getattr(executor, "listen", None))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._address})"

    def ping(self) -> Ping:
        """How long a server takes to answer, and its role. It reads and writes no data.

        In a cluster the node that holds slot 0 answers. With `read_from="replica"` a replica does,
        as for reads. The time includes connecting, if there is no connection yet, and retries.

        Raises:
            BackendError: no server answered within `call_timeout`.

        Plain HELLO; one round trip, O(1).
        """
        return self._run(flows.ping(self._ops))

    def close(self) -> None:
        """Release connections or memory. Later calls raise BackendUnavailable. Safe to repeat.

        Watchers of sessions end with BackendUnavailable.
        """
        self._watchers.close()
        self._executor.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _run(self, flow: Flow[R], observer: Observer | None = None) -> R:
        return drive(flow, self._executor, observer)
