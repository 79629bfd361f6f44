"""The metrics. All services that report to a provider share its instruments.

| metric | unit | what it counts |
|---|---|---|
| `db.client.operation.duration` | s | how long operations take, by operation and error type |
| `sessionstore.operations` | {operation} | all operations, likewise |
| `sessionstore.operations.active` | {operation} | operations that have not ended |
| `sessionstore.calls` | {call} | round trips, by script; without retries |
| `sessionstore.repeats` | {event} | events of appends that were stored already |
| `sessionstore.retries` | {attempt} | attempts that were repeated, by reason |
| `sessionstore.network.io` | By | bytes that were sent and received, by direction |
| `sessionstore.connections.opened` | {connection} | connections that were opened |
| `sessionstore.connections.lost` | {connection} | connections that ended unexpectedly |
| `db.client.connection.count` | {connection} | open connections, used and idle |
| `sessionstore.watchers` | {watcher} | watchers of sessions |
"""

from __future__ import annotations

import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Histogram, MeterProvider, Observation

from .. import __version__
from .operations import SCOPE, Attributes, Instrumentation

DURATION_BOUNDS_S = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0)
"""The buckets of durations that the conventions ask for."""

_Counts = Counter[tuple[str, Attributes]]  # by metric and attributes

_COUNTERS = {
    "sessionstore.operations": ("{operation}", "Operations that have ended."),
    "sessionstore.calls": ("{call}", "Round trips, without retries."),
    "sessionstore.repeats": ("{event}", "Events of appends that were stored already."),
    "sessionstore.retries": ("{attempt}", "Attempts that were repeated."),
    "sessionstore.network.io": ("By", "Bytes sent and received."),
    "sessionstore.connections.opened": ("{connection}", "Connections that were opened."),
    "sessionstore.connections.lost": ("{connection}", "Connections that ended unexpectedly."),
}
_GAUGES = {
    "sessionstore.operations.active": ("{operation}", "Operations that have not ended."),
    "db.client.connection.count": ("{connection}", "Open connections."),
    "sessionstore.watchers": ("{watcher}", "Watchers of sessions."),
}


class Exported:
    """The instruments of one provider, and the services that report to it.

    Attributes:
        duration: records how long operations take, in seconds.
    """

    def __init__(self, provider: MeterProvider | None) -> None:
        meter = metrics.get_meter(SCOPE, __version__, provider)
        self.duration: Histogram = meter.create_histogram(
            "db.client.operation.duration",
            unit="s",
            description="Duration of database client operations.",
            explicit_bucket_boundaries_advisory=DURATION_BOUNDS_S,
        )
        # Reentrant: while it is held, garbage collection may end a service, which calls `remove`.
        self._lock = threading.RLock()
        self._reporting: list[Instrumentation] = []
        self._ended = _Counts()  # counts of services that no longer report
        for name, (unit, text) in _COUNTERS.items():
            meter.create_observable_counter(name, [self._observe(name)], unit, text)
        for name, (unit, text) in _GAUGES.items():
            meter.create_observable_up_down_counter(name, [self._observe(name)], unit, text)

    def add(self, service: Instrumentation) -> None:
        """Report about a service, too."""
        with self._lock:
            self._reporting.append(service)

    def remove(self, service: Instrumentation) -> None:
        """Report nothing new about a service. Its counts stay: they must not decrease."""
        with self._lock:
            self._reporting.remove(service)
            self._ended.update(dict(_counters_of(service)))

    def _observe(self, name: str) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def observe(_: CallbackOptions) -> Iterator[Observation]:
            with self._lock:
                found = _Counts(self._ended)
                for service in list(self._reporting):
                    found.update(dict(_counters_of(service)))
                    found.update(dict(_gauges_of(service)))
            for (metric, attributes), count in found.items():
                if metric == name:
                    yield Observation(count, dict(attributes))

        return observe


def _counters_of(service: Instrumentation) -> Iterator[tuple[tuple[str, Attributes], int]]:
    for name, cells in (
        ("sessionstore.operations", list(service.operations.values())),
        ("sessionstore.calls", list(service.calls.values())),
        ("sessionstore.repeats", [service.repeats]),
    ):
        for cell in cells:
            yield (name, tuple(cell.attributes.items())), cell.count
    if service.traffic is None:
        return
    common = service.common
    history = service.traffic().history
    for reason, count in list(history.retries.items()):
        yield ("sessionstore.retries", (*common, ("error.type", reason))), count
    for direction, count in (("transmit", history.sent), ("receive", history.received)):
        attributes = (*common, ("network.io.direction", direction))
        yield ("sessionstore.network.io", attributes), count
    yield ("sessionstore.connections.opened", common), history.opened
    yield ("sessionstore.connections.lost", common), history.lost


def _gauges_of(service: Instrumentation) -> Iterator[tuple[tuple[str, Attributes], int]]:
    common = service.common
    yield ("sessionstore.operations.active", common), service.num_active
    yield ("sessionstore.watchers", common), service.num_watchers
    if service.traffic is None:
        return
    traffic = service.traffic()
    for state, count in (("used", traffic.num_used), ("idle", traffic.num_idle)):
        attributes = (
            *common,
            ("db.client.connection.pool.name", "sessionstore"),
            ("db.client.connection.state", state),
        )
        yield ("db.client.connection.count", attributes), count


_exported: weakref.WeakKeyDictionary[MeterProvider, Exported] = weakref.WeakKeyDictionary()
_global: list[Exported] = []
_lock = threading.Lock()


def exported_to(provider: MeterProvider | None) -> Exported:
    """The instruments of a provider; None = the provider of the application."""
    with _lock:
        if provider is None or provider is metrics.get_meter_provider():
            if not _global:
                _global.append(Exported(None))
            return _global[0]
        found = _exported.get(provider)
        if found is None:
            found = _exported[provider] = Exported(provider)
        return found
