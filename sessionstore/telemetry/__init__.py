"""Spans and metrics of a service, by the conventions of OpenTelemetry. Needs the extra `otel`.

    instrument(service)      # uses the providers that the application has set

An operation is a span: what the caller awaits, with all of its round trips and retries, and the
error that the caller gets. `metrics.py` has the metrics. dashboard.json shows them in Grafana, and
prometheus.yml collects them. GUIDE.md explains both.
"""

from __future__ import annotations

try:
    import opentelemetry.metrics  # noqa: F401
except ModuleNotFoundError as error:
    raise ImportError(
        "telemetry needs the extra `otel`: pip install 'sessionstore[otel]'", name=error.name
    ) from error

import weakref
from typing import Any

from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import TracerProvider

import sessionstore.sync

from ..errors import InvalidArgument
from ..observe import wrap_runs
from ..options import check_bool
from ..service import SessionService
from .metrics import exported_to
from .operations import Instrumentation

__all__ = ["instrument", "uninstrument"]

AnyService = SessionService | sessionstore.sync.SessionService

_INSTALLED = "_telemetry"  # the attribute of a service that is instrumented


def instrument(
    service: AnyService,
    *,
    tracer_provider: TracerProvider | None = None,
    meter_provider: MeterProvider | None = None,
    user_ids: bool = False,
) -> None:
    """Report what a service does, as spans and metrics.

    Spans name the operation, its script and the session. They never have keys, values, contents or
    the text of an error. Within a trace that is not sampled no spans are made.

    Args:
        service: a service for asyncio or for threads, on servers or in memory.
        tracer_provider: where spans go; None = what the application has set or will set.
        meter_provider: where metrics go, likewise.
        user_ids: spans name the user, too.

    Raises:
        InvalidArgument: an argument is not valid, or the service is instrumented already.

    Counting an operation costs two or three microseconds. Recording its duration costs more than an
    append, so beyond 200 operations a second of a service only some durations are recorded, at
    equal distances. `sessionstore.operations` always counts all.
    """
    _check_service(service)
    check_bool("user_ids", user_ids)
    if _INSTALLED in vars(service):
        raise InvalidArgument("the service is instrumented already: call uninstrument first")
    exported = exported_to(meter_provider)
    found = Instrumentation(service, tracer_provider, exported.duration, user_ids=user_ids)
    wrap: Any = found.observe_async if isinstance(service, SessionService) else found.observe_sync
    unwrap = wrap_runs(service, wrap)
    exported.add(found)
    end = weakref.finalize(service, exported.remove, found)
    end.atexit = False
    vars(service)[_INSTALLED] = (unwrap, end)


def uninstrument(service: AnyService) -> None:
    """Report nothing more about a service. What was counted so far is still exported.

    Raises:
        InvalidArgument: the service is not instrumented.
    """
    _check_service(service)
    if _INSTALLED not in vars(service):
        raise InvalidArgument("the service is not instrumented")
    unwrap, end = vars(service).pop(_INSTALLED)
    unwrap()
    end()


def _check_service(service: object) -> None:
    if not isinstance(service, (SessionService, sessionstore.sync.SessionService)):
        kind = type(service).__name__
        raise InvalidArgument(f"service must be a session service, not {kind}")
