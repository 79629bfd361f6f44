"""Measures how long the calls of a service take."""

from __future__ import annotations

from array import array
from collections import defaultdict
from time import perf_counter_ns
from typing import Any

from msgspec import Struct

from ...calls import AsyncExecutor, Call


class Recorder:
    """An executor that records the latency of successful Calls.

    Attributes:
        executor: executes the Calls.
        latencies_ns: nanoseconds from sending a Call until its reply is back, by operation.
    """

    def __init__(self, executor: AsyncExecutor) -> None:
        self.executor = executor
        self.latencies_ns: defaultdict[str, array[int]] = defaultdict(lambda: array("q"))

    async def execute(self, call: Call[Any]) -> list[Any]:
        start_ns = perf_counter_ns()
        replies = await self.executor.execute(call)
        self.latencies_ns[call.name].append(perf_counter_ns() - start_ns)
        return replies

    async def aclose(self) -> None:
        await self.executor.aclose()


class OperationFigures(Struct):
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
    everything = array("q", (ns for latencies in latencies_ns.values() for ns in latencies))
    figures = []
    for operation, latencies in [*sorted(latencies_ns.items()), ("all", everything)]:
        ordered, count = sorted(latencies), len(latencies)
        if count:
            times = (ordered[(count * percent - 1) // 100] / 1e6 for percent in (50, 95, 99))
            figures.append(OperationFigures(operation, count, count / elapsed_seconds, *times))
    return figures
