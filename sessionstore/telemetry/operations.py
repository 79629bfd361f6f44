"""Watches the operations of a service: counts them, times them, and makes their spans."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from time import perf_counter
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
from ..calls import Call, Flow, Step
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

    def __init__(self, attributes: Attributes = ()) -> None:
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
        self._num_skipped = 0
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
            span = self.start_span(name)
            observer = self if span is None else SpanObserver(self, span, name)
            self.num_started += 1
            started = perf_counter()
            error = ""
            try:
                return await run(flow, observer)
            except BaseException as failure:
                error = type(failure).__name__
                raise
            finally:
                self.end(name, error, started, span)

        return observed

    def observe_sync(self, run: SyncRun) -> SyncRun:
        """The same for threads."""

        def observed(flow: Flow[Any]) -> Any:
            name: str = flow.__name__  # type: ignore[attr-defined]  # it is a function's generator
            span = self.start_span(name)
            observer = self if span is None else SpanObserver(self, span, name)
            self.num_started += 1
            started = perf_counter()
            error = ""
            try:
                return run(flow, observer)
            except BaseException as failure:
                error = type(failure).__name__
                raise
            finally:
                self.end(name, error, started, span)

        return observed

    def start_span(self, name: str) -> Span | None:
        """A span that is recorded, or None."""
        parent = get_current_span().get_span_context()
        if not parent.trace_flags and parent.is_valid:
            return None  # making a span only to drop it costs several times as much
        attributes = {**dict(self.common), "db.operation.name": name}
        span = self._tracer.start_span(name, kind=SpanKind.CLIENT, attributes=attributes)
        return span if span.is_recording() else None

    def end(self, name: str, error: str, started: float, span: Span | None) -> None:
        """Count an operation that has ended, record its duration if it is due, end its span."""
        now = perf_counter()
        cell = self.operations[(name, error) if error else name]
        cell.count += 1
        self._num_skipped += 1
        if error or self._num_skipped >= self._stride or now >= self._window_until:
            context = None if span is None else set_span_in_context(span)
            self._duration.record(now - started, cell.attributes, context)
            self._choose_stride(now)
        if span is not None:
            if error:
                span.set_attribute("error.type", error)
                span.set_status(Status(StatusCode.ERROR))
            span.end()

    def _choose_stride(self, now: float) -> None:
        """Measure the rate of operations now and then, and choose how many durations to record."""
        self._num_in_window += self._num_skipped
        self._num_skipped = 0
        if now >= self._window_until or self._num_in_window >= _OPERATIONS_PER_RATE:
            elapsed_s = max(now - self._window_until + _WINDOW_S, 1e-6)
            self._stride = 1 + int(self._num_in_window / elapsed_s / _DURATIONS_PER_S)
            self._num_in_window = 0
            self._window_until = now + _WINDOW_S

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


class SpanObserver:
    """Notes on the span of an operation what the operation sends."""

    def __init__(self, instrumentation: Instrumentation, span: Span, name: str) -> None:
        self._instrumentation = instrumentation
        self._span = span
        self._name = name
        self._num_calls = 0

    def ended(self, step: Step, result: Any) -> None:
        """Note the Calls of a step."""
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
