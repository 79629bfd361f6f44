"""Watches the operations of a service: counts them, times them, and makes their spans."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from time import perf_counter
from types import TracebackType
from typing import Any

from opentelemetry import trace
from opentelemetry.metrics import Histogram
from opentelemetry.trace import (
    Span,
    SpanKind,
    Status,
    StatusCode,
    TracerProvider,
    get_current_span,
    set_span_in_context,
)

import sessionstore.sync

from .. import __version__
from ..calls import Call, Flow, Observer, Step
from ..observe import AsyncRun, SyncRun
from ..replies import WriteResult
from ..service import SessionService

Attributes = tuple[tuple[str, str | int], ...]

SCOPE = "sessionstore"

# Recording a duration costs about as much as an append. So about this many are recorded, and the
# rate is measured after so many operations, or after a second.
_DURATIONS_PER_S = 200
_OPERATIONS_PER_RATE = 64
_WINDOW_S = 1.0


class Cell:
    """A count. Adding to it needs no lock: the interpreter does not switch threads in between."""

    __slots__ = ("attributes", "count")

    def __init__(self, attributes: Attributes) -> None:
        self.attributes = dict(attributes)
        self.count = 0


class Cells(dict[Any, Cell]):
    """Counts by name. A new one gets the attributes that `attributes_of` returns for the name."""

    def __init__(self, attributes_of: Callable[[Any], Attributes]) -> None:
        self._attributes_of = attributes_of

    def __missing__(self, name: Any) -> Cell:
        return self.setdefault(name, Cell(self._attributes_of(name)))


class Instrumentation:
    """What is known about the operations of one service. It does not keep the service alive.

    Attributes:
        common: attributes of all spans and metrics.
        operations: by name, or by name and error type.
        calls: by the name of the script; "" = plain commands.
        repeats: events of appends that were stored already.
        num_started: operations that have started.
    """

    def __init__(
        self,
        service: SessionService | sessionstore.sync.SessionService,
        tracer_provider: TracerProvider | None,
        duration: Histogram,
        *,
        user_ids: bool,
    ) -> None:
        # An executor in memory has no connections, nor may one that observes another.
        self.traffic = getattr(service._executor, "traffic", None)
        self._watchers = weakref.ref(service._watchers)
        self.common = self._common_attributes()
        self.operations = Cells(self._operation_attributes)
        self.calls = Cells(self._call_attributes)
        self.repeats = Cell(self.common)
        self.num_started = 0
        self.user_ids = user_ids
        self.parse_key = service._ops.options.keys.parse
        self._duration = duration
        self._tracer = trace.get_tracer(SCOPE, __version__, tracer_provider)
        self._stride = 1  # one of so many durations is recorded
        self._num_skipped = 1
        self._num_in_window = 0
        self._window_until = perf_counter() + _WINDOW_S

    @property
    def num_active(self) -> int:
        """How many operations have not ended."""
        return self.num_started - sum(cell.count for cell in list(self.operations.values()))

    @property
    def num_watchers(self) -> int:
        """How many watchers the service has."""
        watchers = self._watchers()
        return 0 if watchers is None else watchers.count

    def observe_async(self, run: AsyncRun) -> AsyncRun:
        """A function that runs and watches flows."""

        async def observed(flow: Flow[Any]) -> Any:
            name: str = flow.__name__  # type: ignore[attr-defined]  # it is a function's generator
            operation = self.begin(name)
            if operation is None:  # fast path
                try:
                    result = await run(flow, self)
                except BaseException as failure:
                    self.operations[name, type(failure).__name__].count += 1
                    raise
                self.operations[name].count += 1
                return result
            with operation as observer:
                return await run(flow, observer)

        return observed

    def observe_sync(self, run: SyncRun) -> SyncRun:
        """The same for threads."""

        def observed(flow: Flow[Any]) -> Any:
            name: str = flow.__name__  # type: ignore[attr-defined]  # it is a function's generator
            operation = self.begin(name)
            if operation is None:  # fast path
                try:
                    result = run(flow, self)
                except BaseException as failure:
                    self.operations[name, type(failure).__name__].count += 1
                    raise
                self.operations[name].count += 1
                return result
            with operation as observer:
                return run(flow, observer)

        return observed

    def begin(self, name: str) -> Operation | None:
        """An operation that starts now; None if it is only counted."""
        self.num_started += 1
        now = perf_counter()
        is_due = now >= self._window_until or self._num_skipped >= self._stride
        if is_due:
            self._choose_stride(now)
        else:
            self._num_skipped += 1
        parent = get_current_span().get_span_context()
        # A span that is only made to be dropped costs several times as much as this check.
        if parent.trace_flags or not parent.is_valid:
            span = self._start_span(name)
        elif is_due:
            span = None
        else:
            return None
        return Operation(self, name, span, now if is_due else None)

    def _start_span(self, name: str) -> Span | None:
        attributes = {**dict(self.common), "db.operation.name": name}
        span = self._tracer.start_span(name, kind=SpanKind.CLIENT, attributes=attributes)
        return span if span.is_recording() else None

    def _choose_stride(self, now: float) -> None:
        """Measure the rate of operations now and then, and choose how many durations to record."""
        self._num_in_window += self._num_skipped
        self._num_skipped = 1
        if now >= self._window_until or self._num_in_window >= _OPERATIONS_PER_RATE:
            elapsed_s = max(now - self._window_until + _WINDOW_S, 1e-6)
            self._stride = 1 + int(self._num_in_window / elapsed_s / _DURATIONS_PER_S)
            self._num_in_window = 0
            self._window_until = now + _WINDOW_S

    def record(self, cell: Cell, duration_s: float, span: Span | None) -> None:
        """Record the duration of an operation."""
        context = None if span is None else set_span_in_context(span)
        self._duration.record(duration_s, cell.attributes, context)

    def ended(self, step: Step, result: Any) -> None:
        """Count the Calls of a step, and events that were stored already."""
        if type(step) is tuple:
            for call in step:
                self.ended(call, None)
            return
        script = step.script  # type: ignore[union-attr]  # it is a Call
        self.calls["" if script is None else script.name].count += 1
        if type(result) is WriteResult and result.num_duplicates:
            self.repeats.count += result.num_duplicates

    # -- attributes ----------------------------------------------------------------------------

    def _common_attributes(self) -> Attributes:
        if self.traffic is None:
            return (("db.system.name", "sessionstore.memory"),)
        traffic = self.traffic()
        found: list[tuple[str, str | int]] = [("db.system.name", "redis")]
        if traffic.server is not None:
            host, port = traffic.server
            found += [("db.namespace", str(traffic.database)), ("server.address", host)]
            found += [] if port is None else [("server.port", port)]
        return tuple(found)

    def _operation_attributes(self, name: str | tuple[str, str]) -> Attributes:
        if isinstance(name, str):
            return (*self.common, ("db.operation.name", name))
        return (*self.common, ("db.operation.name", name[0]), ("error.type", name[1]))

    def _call_attributes(self, script: str) -> Attributes:
        return (*self.common, ("db.stored_procedure.name", script)) if script else self.common


class Operation:
    """An operation that has a span, or whose duration is recorded.

    As a context it gives an observer of what the operation sends.

    Args:
        instrumentation: counts it.
        name: its name.
        span: its span, if it has one.
        started: when it started, if its duration is recorded.
    """

    def __init__(
        self, instrumentation: Instrumentation, name: str, span: Span | None, started: float | None
    ) -> None:
        self._instrumentation = instrumentation
        self._name = name
        self._span = span
        self._started = started
        self._num_calls = 0

    def __enter__(self) -> Observer:
        return self._instrumentation if self._span is None else self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        name, span = self._name, self._span
        cell = self._instrumentation.operations[name if kind is None else (name, kind.__name__)]
        cell.count += 1
        if self._started is not None:
            self._instrumentation.record(cell, perf_counter() - self._started, span)
        if span is not None:
            if kind is not None:
                span.set_attribute("error.type", kind.__name__)
                span.set_status(Status(StatusCode.ERROR))
            span.end()

    def ended(self, step: Step, result: Any) -> None:
        """Note the Calls of a step on the span."""
        self._instrumentation.ended(step, result)
        attributes: dict[str, str | int] = {}
        for call in step if isinstance(step, tuple) else (step,):
            self._num_calls += 1
            if self._num_calls == 1:
                attributes |= self._session_of(call)
            # Of several scripts the one of the operation, or that of the first Call.
            script = "" if call.script is None else call.script.name
            if script and (self._num_calls == 1 or script == self._name):
                attributes["db.stored_procedure.name"] = script
        if self._num_calls > 1:
            attributes["sessionstore.calls"] = self._num_calls
        assert self._span is not None
        self._span.set_attributes(attributes)

    def _session_of(self, call: Call[Any]) -> dict[str, str]:
        key: Any = None
        if call.keys:
            key = call.keys[0]
        elif len(call.commands[0]) > 1:
            key = call.commands[0][1]
        found = self._instrumentation.parse_key(key) if isinstance(key, bytes) else None
        if found is None:
            return {}
        attributes = {"sessionstore.app.name": found.app_name}
        if found.session_id:
            attributes["gen_ai.conversation.id"] = found.session_id
        if found.user_id and self._instrumentation.user_ids:
            attributes["user.id"] = found.user_id
        return attributes
