"""Providers of the OpenTelemetry SDK that keep spans and metrics in memory."""

from __future__ import annotations

from typing import Any

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from sessionstore.telemetry import instrument, uninstrument

Labels = dict[str, Any]


class Telemetry:
    """What instrumented services have reported."""

    def __init__(self) -> None:
        self._reader = InMemoryMetricReader()
        self._exporter = InMemorySpanExporter()
        self.meter_provider = MeterProvider(metric_readers=[self._reader])
        self.tracer_provider = TracerProvider()
        self.tracer_provider.add_span_processor(SimpleSpanProcessor(self._exporter))

    def instrument(self, service: Any, **options: Any) -> None:
        """Instrument a service, or the one that an Awaited wraps."""
        instrument(
            getattr(service, "service", service),
            tracer_provider=self.tracer_provider,
            meter_provider=self.meter_provider,
            **options,
        )

    @staticmethod
    def uninstrument(service: Any) -> None:
        uninstrument(getattr(service, "service", service))

    def take_spans(self) -> list[ReadableSpan]:
        """The spans that have ended since the last call."""
        spans = list(self._exporter.get_finished_spans())
        self._exporter.clear()
        return spans

    def metrics(self) -> dict[str, list[tuple[Labels, Any]]]:
        """By name: the attributes and the value, or for a histogram the count, of each point."""
        data = self._reader.get_metrics_data()
        found: dict[str, list[tuple[Labels, Any]]] = {}
        for resource in data.resource_metrics if data else ():
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    points: list[Any] = list(metric.data.data_points)
                    kind = "value" if hasattr(points[0], "value") else "count"
                    found[metric.name] = [
                        (dict(point.attributes), getattr(point, kind)) for point in points
                    ]
        return found

    def total(self, metric: str, **labels: str) -> int:
        """The sum of a metric over all points with these attributes; dots are underscores."""
        return sum(
            value
            for attributes, value in self.metrics().get(metric, [])
            if labels.items()
            <= {name.replace(".", "_"): text for name, text in attributes.items()}.items()
        )
