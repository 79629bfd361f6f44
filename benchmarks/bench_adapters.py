"""What does an adapter cost, compared with the engine and with the framework's own storage?

The adapter gets the framework's own messages. The engine gets events with the same bytes as the
adapter makes from them. Making the message is not measured, but happens just before, as in an
agent, so that the message is in the processor's cache. The adapter's time includes turning the
message into bytes. If an append updates the framework's session object, the engine appends through
a Session, which is updated too. A framework that is not installed is left out.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
import warnings
from base64 import b64encode
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from sessionstore import Event, InMemorySessionService, RedisSessionService, Session, SessionKey
from sessionstore.calls import Call
from sessionstore.observe import wrap_executor

from .frameworks import FRAMEWORKS, Append
from .harness import Harness, Server, Timing, Variant, VariantFailedError, main
from .results import Bars, Figure, Group, Result, client_cpu_of, time_of
from .workload import EVENT_LIMIT, fill, read, service_of, split

ENGINE = "sessionstore, the same bytes"
ENGINE_BY_KEY = "sessionstore, the same bytes, by key"
SERIALISED = "the framework's own serialisation"

BY_HAND = "serialised by the framework, then the engine"
OWN_STORAGE = "keeps all events"

_BATCH = 8  # messages that are made before an agent appends them one by one

_ID_FIELDS = ("id", "timestamp")
_FIELDS = (
    "author",
    "content",
    "invocation_id",
    "branch",
    "state_delta",
    "state_removed",
    "metadata",
)

_decode = msgspec.json.Decoder(Event).decode


class _EventRecorder:
    """Wraps an executor and keeps the event that was appended last."""

    def __init__(self, executor: Any) -> None:
        self._executor = executor
        self.event = Event("none", None)

    async def execute(self, call: Call[Any]) -> list[Any]:
        if call.name.startswith("append_event"):
            event = max((arg for arg in call.args if isinstance(arg, bytes)), key=len)
            self.event = _decode(event)
        elif call.name == "change_fields":
            size = sum(len(arg) for arg in call.args if isinstance(arg, bytes))
            self.event = Event("none", "x" * size)
        replies: list[Any] = await self._executor.execute(call)
        return replies

    async def aclose(self) -> None:
        await self._executor.aclose()


def installed() -> list[Any]:
    """The installed frameworks."""
    found = []
    for framework in FRAMEWORKS:
        with suppress(ImportError), warnings.catch_warnings(action="ignore"):
            found.append(framework())
    return found


async def make_converter(framework: Any) -> Callable[[Any], Awaitable[dict[str, Any]]]:
    """A function from a message to the fields of the event that the adapter makes from it."""
    service = InMemorySessionService(session_event_limit=1)
    recorders: list[_EventRecorder] = []

    def wrap(executor: Any) -> _EventRecorder:
        recorders.append(_EventRecorder(executor))
        return recorders[0]

    wrap_executor(service, wrap)
    session = await service.create_session(app_name="bench", user_id="user", session_id="one")
    append = await framework.appender(service, session.key)

    async def fields_of(message: Any) -> dict[str, Any]:
        await append(message)
        names = _FIELDS + _ID_FIELDS if framework.gives_ids else _FIELDS
        return {name: getattr(recorders[0].event, name) for name in names}

    return fields_of


class _Setup:
    """The sessions of one framework: one for each agent and variant."""

    def __init__(self, harness: Harness, server: Server, framework: Any, agents: int) -> None:
        self.harness = harness
        self.server = server
        self.framework = framework
        self.agents = agents
        self.service: RedisSessionService = service_of(server.url)
        harness.at_end(self.service.aclose)
        self.stored = harness.pick(EVENT_LIMIT, 20)

    def keys(self, name: str) -> list[SessionKey]:
        """New sessions at their event limit."""
        app_name = f"{type(self.framework).__name__}-{name}-{self.agents}"
        return [self.harness.run(self._make(app_name, at)) for at in range(self.agents)]

    async def _make(self, app_name: str, number: int) -> SessionKey:
        session = await self.service.create_session(
            app_name=app_name, user_id=f"user{number:05}", session_id="one"
        )
        await fill(self.service, session.key, self.stored)
        return session.key

    def variant(
        self,
        name: str,
        count: int,
        appends: Sequence[Append],
        new_message: Callable[[], Any],
        note: str = "",
        prepare: Callable[[int], None] | None = None,
    ) -> Variant:
        """Every agent appends messages that were just made."""
        turns = max(split(count, self.agents) // _BATCH, 1)
        operations = turns * _BATCH * self.agents

        async def work() -> Timing:
            seconds = cpu_seconds = 0.0
            begun = time.process_time()
            for _ in range(turns):
                made = [[new_message() for _ in range(_BATCH)] for _ in appends]
                cpu, start = time.process_time(), time.perf_counter()
                outcomes = await asyncio.gather(
                    *map(_append_all, appends, made), return_exceptions=True
                )
                seconds += time.perf_counter() - start
                cpu_seconds += time.process_time() - cpu
                for error in outcomes:
                    if isinstance(error, Exception):
                        raise VariantFailedError(f"{type(error).__name__}: {error}") from error
            return Timing(seconds, cpu_seconds, time.process_time() - begun - cpu_seconds)

        return Variant(name, operations, work, prepare and partial(prepare, operations), note)

    def engine(self, count: int, *, shows_events: bool) -> Variant:
        """The engine's own append. Making the event is measured, as for the adapter.

        Args:
            count: approximate number of operations.
            shows_events: use Session objects, which appends update, instead of keys.
        """
        run = self.harness.run
        fields_of = run(make_converter(self.framework))
        stock: list[dict[str, Any]] = []
        append = self.service.append_event

        async def append_to(session: Session | SessionKey, fields: dict[str, Any]) -> None:
            await append(session, Event(**fields))

        def prepare(operations: int) -> None:
            new_message = self.framework.new_message
            stock[:] = [run(fields_of(new_message())) for _ in range(operations)][::-1]

        def new_fields() -> dict[str, Any]:
            fields = stock.pop()
            return fields | {name: _copy(fields[name]) for name in ("content", "state_delta")}

        sessions: list[Any] = self.keys("engine" if shows_events else "by-key")
        if shows_events:
            sessions = [run(read(self.service, key, None)) for key in sessions]
        appends = [partial(append_to, session) for session in sessions]
        name = ENGINE if shows_events == self.framework.shows_events else ENGINE_BY_KEY
        note = "" if name == ENGINE else "the caller's session is not updated"
        return self.variant(name, count, appends, new_fields, note, prepare)

    def adapter(self, count: int) -> Variant:
        """The adapter's append."""
        run = self.harness.run
        appends = [
            run(self.framework.appender(self.service, key))
            for key in (self._emptied(key) for key in self.keys("adapter"))
        ]
        new_message = self.framework.new_message
        for append in appends:
            run(_append_all(append, [new_message() for _ in range(self.stored)]))
        return self.variant(self.framework.adapter, count, appends, new_message)

    def _emptied(self, key: SessionKey) -> SessionKey:
        """Remove the events that the adapter did not write."""
        self.harness.run(self.service.clear_events(key))
        return key

    def by_hand(self, count: int) -> Variant:
        """What a user would write without an adapter."""
        append, serialise = self.service.append_event, self.framework.serialise

        async def append_to(key: SessionKey, message: Any) -> None:
            text = serialise(message)
            if isinstance(text, tuple):  # LangGraph's: type and bytes
                text = b64encode(text[1])
            await append(key, Event("agent", text if isinstance(text, str) else text.decode()))

        appends = [partial(append_to, key) for key in self.keys("by hand")]
        new_message = self.framework.new_message
        return self.variant(BY_HAND, count, appends, new_message, "as text")

    def serialised(self, count: int) -> Variant:
        """Only serialise, which every storage of the framework's messages must do."""

        async def serialise(message: Any) -> None:
            self.framework.serialise(message)

        appends = [serialise] * self.agents
        return self.variant(
            SERIALISED, count, appends, self.framework.new_message, "nothing is stored"
        )

    def own(self, count: int, directory: Path) -> list[Variant]:
        """The framework's own storages. Deprecation warnings are ignored."""
        variants = []
        with warnings.catch_warnings(action="ignore"):
            makers = dict(self.framework.own(self.harness, directory))
            with suppress(ImportError):
                makers.update(self.framework.own_on_redis(self.harness, self.server))
            for name, make in makers.items():
                appends = [self.harness.finish(make(number)) for number in range(self.agents)]
                variants.append(
                    self.variant(name, count, appends, self.framework.new_message, OWN_STORAGE)
                )
        return variants


def _copy(value: Any) -> Any:
    """A new copy."""
    return msgspec.json.decode(msgspec.json.encode(value))


async def _append_all(append: Append, messages: list[Any]) -> None:
    for message in messages:
        await append(message)


def measure(harness: Harness, server: Server, framework: Any, agents: int) -> Group:
    """Appends by one task or many."""
    setup = _Setup(harness, server, framework, agents)
    count = harness.pick(1024 if agents == 1 else 4096, agents * 2)
    fewer = harness.pick(64, agents * 2)
    directory = tempfile.TemporaryDirectory()
    harness.at_end(directory.cleanup)
    shows_events = framework.shows_events
    variants = [setup.engine(count, shows_events=shows_events), setup.adapter(count)]
    variants += [setup.by_hand(count), setup.serialised(count)]
    if shows_events:
        variants.append(setup.engine(count, shows_events=False))
    variants += setup.own(fewer, Path(directory.name))
    name = f"{framework.name}, {agents} agents"
    if agents > 1:
        return harness.measure(server, name, "append", variants)
    with harness.shared_core():
        name = f"{framework.name}, 1 agent, one core for both"
        return harness.measure(server, name, "append", variants)


def _shares(group: Group, framework: Any) -> list[tuple[str, float]]:
    """Client CPU of adapter and framework, as ratios."""
    return [
        ("adapter / engine", group.ratio(framework.adapter, ENGINE, client_cpu_of)),
        (f"adapter / {BY_HAND}", group.ratio(framework.adapter, BY_HAND, client_cpu_of)),
        (f"{SERIALISED} / engine", group.ratio(SERIALISED, ENGINE, client_cpu_of)),
    ]


def run(harness: Harness) -> Result:
    """Measure."""
    server = harness.start_server()
    found = installed()
    groups: list[Group] = []
    figures: list[Figure] = []
    costs: dict[str, float] = {}
    storages: dict[str, float] = {}
    for framework in found:
        for agents in (1, 64):
            group = measure(harness, server, framework, agents)
            groups.append(group)
            ratio = group.ratio(framework.adapter, ENGINE, time_of)
            name = f"{group.name}: an append, against the engine"
            figures.append(Figure(name, ratio, "x"))
            if agents > 1:
                costs[framework.adapter] = ratio
                for row in group.rows:
                    if row.note == OWN_STORAGE:
                        storages[row.name] = group.ratio(row.name, framework.adapter, time_of)
            figures += [
                Figure(f"{group.name}: {what}, client CPU", ratio, "x")
                for what, ratio in _shares(group, framework)
            ]
    charts = (
        ("append through the adapter, time / engine", costs, True),
        ("append to the framework's own storage, time / our adapter", storages, False),
    )
    missing = [kind for kind in FRAMEWORKS if not any(type(one) is kind for one in found)]
    return harness.result(
        "bench_adapters",
        "What do the adapters cost, compared with the engine?",
        groups=groups,
        figures=figures,
        notes=[
            "The adapter's time includes the framework's own serialisation, which every storage of "
            "its messages needs.",
            *(
                f"{kind.name} is not installed, so it is left out: "
                f"pip install 'sessionstore[{kind.extra}]'."
                for kind in missing
            ),
        ],
        panels=[Bars(title, values, "x", all_ours) for title, values, all_ours in charts if values],
        reading_hint="64 agents. Less is better.",
    )


if __name__ == "__main__":
    main(run)
