"""What does telemetry cost? Appends of 64 agents with and without it.

Metrics are counted for every operation in all variants but "off". In the others an agent runs
within a span, as in an application that traces its requests, and that span is sampled or not.
Finished spans are dropped in batches, so the cost of sending them is not included.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextvars import Context, copy_context

from opentelemetry import context, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from sessionstore import SessionKey
from sessionstore.telemetry import instrument

from .harness import Harness, Server, Variant, main
from .results import Figure, Result, Target, bars_of, client_cpu_of, time_of
from .workload import make_sessions, new_event, service_of, split

OFF = "off"
METRICS = "metrics, no agent is traced"
SAMPLED = "metrics, 1 of 64 agents is traced"
TRACED = "metrics, all agents are traced"


class _Dropping(SpanExporter):
    """Drops spans."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:  # noqa: ARG002
        return SpanExportResult.SUCCESS


def _within_a_span(*, sampled: bool) -> Context:
    """A context whose span comes from elsewhere, such as from the caller of a web server."""
    parent = SpanContext(1, 2, is_remote=True, trace_flags=TraceFlags(int(sampled)))

    def attach() -> Context:
        context.attach(trace.set_span_in_context(NonRecordingSpan(parent)))
        return copy_context()

    return copy_context().run(attach)


def _variant(
    harness: Harness,
    server: Server,
    name: str,
    number: int,
    tracer: TracerProvider,
    is_traced: Sequence[bool],
) -> Variant:
    """Appends of agents, each of them traced or not."""
    service = service_of(server.url)
    harness.at_end(service.aclose)
    sessions = harness.run(make_sessions(service, f"telemetry{number}", len(is_traced), 200))
    if name != OFF:
        meter = MeterProvider(metric_readers=[InMemoryMetricReader()])
        harness.at_end(meter.shutdown)
        instrument(service, tracer_provider=tracer, meter_provider=meter)
    each = split(harness.pick(20_000, 64), len(is_traced))
    contexts = [_within_a_span(sampled=sampled) for sampled in is_traced]

    async def agent(key: SessionKey) -> None:
        for _ in range(each):
            await service.append_event(key, new_event())

    async def work() -> None:
        agents = zip(sessions, contexts, strict=True)
        tasks = [
            asyncio.get_running_loop().create_task(agent(session.key), context=within)
            for session, within in agents
        ]
        await asyncio.gather(*tasks)

    return Variant(name, each * len(is_traced), work)


def run(harness: Harness) -> Result:
    """Measure."""
    server = harness.start_server()
    tracer = TracerProvider()
    tracer.add_span_processor(BatchSpanProcessor(_Dropping(), max_queue_size=100_000))
    harness.at_end(tracer.shutdown)
    agents = harness.pick(64, 8)
    traced = {
        OFF: [False] * agents,
        METRICS: [False] * agents,
        SAMPLED: [True, *[False] * (agents - 1)],
        TRACED: [True] * agents,
    }
    variants = [
        _variant(harness, server, name, number, tracer, is_traced)
        for number, (name, is_traced) in enumerate(traced.items())
    ]
    group = harness.measure(server, f"{agents} agents append", "append", variants)
    return harness.result(
        "bench_telemetry",
        "What does telemetry cost?",
        groups=[group],
        figures=[
            Figure(f"client CPU per append: {name}", group.ratio(name, OFF, client_cpu_of), "x")
            for name in (METRICS, SAMPLED, TRACED)
        ]
        + [Figure("append throughput: all are traced", group.ratio(OFF, TRACED, time_of), "x")],
        targets=[
            Target(f"append throughput: {name}", group.ratio(OFF, name, time_of), ">=", 0.85)
            for name in (METRICS, SAMPLED)
        ],
        notes=[
            "A span costs more than an append. Applications that need throughput sample traces.",
        ],
        panels=[bars_of(group, tuple(traced))],
    )


if __name__ == "__main__":
    main(run)
