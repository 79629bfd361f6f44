"""Measures how long the calls of a service take."""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Coroutine
from dataclasses import dataclass
from time import perf_counter_ns
from typing import Any

from ...calls import AsyncExecutor, Call


class Recorder:
    """An executor that records the latency of successful Calls while `is_recording` is set.

    Args:
        executor: executes the Calls.

    Attributes:
        latencies_ns: nanoseconds from sending a Call until its reply is back, by operation.
        is_recording: False at first.
    """

    def __init__(self, executor: AsyncExecutor) -> None:
        self.latencies_ns: defaultdict[str, array[int]] = defaultdict(lambda: array("q"))
        self.is_recording = False
        self._executor = executor

    def execute(self, call: Call[Any]) -> Coroutine[Any, Any, list[Any]]:
        return self._timed(call) if self.is_recording else self._executor.execute(call)

    async def _timed(self, call: Call[Any]) -> list[Any]:
        start_ns = perf_counter_ns()
        replies = await self._executor.execute(call)
        self.latencies_ns[call.name].append(perf_counter_ns() - start_ns)
        return replies

    async def aclose(self) -> None:
        await self._executor.aclose()


@dataclass(frozen=True, slots=True)
class OperationFigures:
    """Successful calls of one operation, or of "all"; p95_ms is what 95 % did not exceed."""

    operation: str
    num_calls: int
    per_second: float
    p50_ms: float
    p95_ms: float
    p99_ms: float


def operation_figures(
    latencies_ns: dict[str, array[int]], elapsed_seconds: float
) -> list[OperationFigures]:
    """Figures of each operation by name, then of all together; empty if there were no calls."""
    if not latencies_ns:
        return []
    everything = array("q")
    for latencies in latencies_ns.values():
        everything.extend(latencies)
    return [
        _figures(operation, sorted(latencies), elapsed_seconds)
        for operation, latencies in [*sorted(latencies_ns.items()), ("all", everything)]
    ]


def _figures(operation: str, ordered: list[int], elapsed_seconds: float) -> OperationFigures:
    count = len(ordered)
    p50_ms, p95_ms, p99_ms = (
        ordered[(count * percent - 1) // 100] / 1e6 for percent in (50, 95, 99)
    )
    return OperationFigures(operation, count, count / elapsed_seconds, p50_ms, p95_ms, p99_ms)
