"""Fragments of a run are stored in the background, for asyncio and for threads."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from runner_support import APP, IDS, KEY, USER, Gate, Store, all_of, failing, make_service, said
from support.services import make_ops
from support.waiting import poll_until, wait_until
from support.watching import fragments

import sessionstore.sync
from sessionstore import (
    BackendTimeout,
    Event,
    InvalidArgument,
    Run,
    RunContext,
    Runner,
    SessionService,
    TurnLost,
)
from sessionstore.ops.stream import Fragment
from sessionstore.twin import MemoryExecutor


def fragment(content: Any) -> Event:
    return Event("agent", content, partial=True)


def writing(*contents: Any, then: Any = "done") -> Any:
    """An agent that writes fragments and a complete event. It lets other tasks run in between."""

    async def agent(_: RunContext) -> AsyncIterator[Event]:
        for content in contents:
            yield fragment(content)
            await asyncio.sleep(0)
        if then is not None:
            yield Event("agent", then)

    return agent


async def kept(service: SessionService) -> list[Any]:
    found: list[Fragment] = await service._run(fragments(service._ops, KEY))
    return [each.event.content for each in found]


@pytest.fixture(autouse=True)
async def _nothing_is_left() -> AsyncIterator[None]:
    yield
    assert not [task for task in asyncio.all_tasks() if "FragmentWriter" in repr(task)]
    assert not [each for each in threading.enumerate() if "fragments" in each.name]


class Open:
    """A run that stands between two events."""

    def __init__(self, *contents: Any, service: SessionService, **options: Any) -> None:
        self.go_on = asyncio.Event()
        self.run: Run = Runner(APP, self._agent, service, **options).run(USER, "sid", "x")
        self._contents = contents

    async def _agent(self, _: RunContext) -> AsyncIterator[Event]:
        for content in self._contents:
            yield fragment(content)
        await self.go_on.wait()
        yield fragment("more")
        yield Event("agent", "done")

    async def begin(self) -> None:
        for content in self._contents:
            assert (await anext(self.run)).content == content


async def test_fragments_appear_while_the_agent_is_writing() -> None:
    service, _ = make_service()
    opened = Open("Hel", "lo", service=service)
    await opened.begin()
    await poll_until(lambda: _all_kept(service, "Hel", "lo"), "the fragments")
    [fragment, _] = await service._run(fragments(service._ops, KEY))
    assert fragment.event.invocation_id == opened.run.invocation_id
    await opened.run.aclose()


async def _all_kept(service: SessionService, *contents: Any) -> bool:
    return await kept(service) == list(contents)


async def test_the_caller_does_not_wait_for_the_store() -> None:
    service, store = make_service()
    gate = store.hook = Gate("before", name="append_fragments")
    opened = Open(*range(1000), service=service)
    await opened.begin()
    await gate.reached.wait()
    gate.opened.set()
    await opened.run.aclose()


async def test_fragments_are_stored_together_and_before_the_complete_event() -> None:
    service, store = make_service()
    agent = writing(*range(100))
    seen = await all_of(Runner(APP, agent, service).run(USER, "sid", "x"))
    assert [event.content for event in seen] == [*range(100), "done"]
    assert store.names[-1] == "append_event"
    assert 1 <= store.names[:-1].count("append_fragments") < 10
    assert await kept(service) == []  # they are obsolete now


async def test_without_a_complete_event_they_are_stored_at_the_end() -> None:
    service, _ = make_service()
    await all_of(Runner(APP, writing("Hel", "lo", then=None), service).run(USER, "sid", "x"))
    assert await kept(service) == ["Hel", "lo"]


async def test_without_stream_ttl_nothing_is_stored() -> None:
    store = Store()
    service = SessionService(make_ops(stream_ttl=None), store)
    not_json = object()
    seen = await all_of(Runner(APP, writing(not_json), service).run(USER, "sid", "x"))
    assert seen[0].content is not_json
    assert store.names == ["get_or_create_session", "append_event", "append_event"]


async def test_large_batches_are_split() -> None:
    service, store = make_service()
    many = [f"{number}" for number in range(1200)]
    large = ["x" * 900_000] * 10
    await all_of(Runner(APP, writing(*many, *large, then=None), service).run(USER, "sid", "x"))
    found = await kept(service)
    assert len(found) >= 4
    assert found == large[: len(found)]
    assert store.names.count("append_fragments") > 3


async def test_a_store_that_fails_does_not_end_the_run(caplog: pytest.LogCaptureFixture) -> None:
    service, store = make_service()
    store.hook = failing("append_fragments", BackendTimeout("secret"), times=1)
    opened = Open("lost", service=service)
    with caplog.at_level(logging.WARNING, "sessionstore"):
        await opened.begin()
        await poll_until(lambda: caplog.messages, "the warning")
        opened.go_on.set()
        assert [event.content for event in await all_of(opened.run)] == ["more", "done"]
    assert caplog.messages == ["fragments of a run could not be stored: BackendTimeout"]
    assert await said(service) == [("user", "x"), ("agent", "done")]


@pytest.mark.parametrize("contents", [[object()], [object(), "more"], ["x" * (2 << 20)]])
async def test_a_fragment_that_cannot_be_stored_ends_the_run(contents: list[Any]) -> None:
    service, _ = make_service()
    with pytest.raises(InvalidArgument, match=r"events\[0\]"):
        await all_of(Runner(APP, writing(*contents), service).run(USER, "sid", "x"))
    [_, (author, content)] = await said(service)
    assert author == "agent"
    assert content["error"]["type"] in ("InvalidArgument", "LimitExceeded")


async def test_a_run_that_lost_its_turn_ends_with_its_next_fragment() -> None:
    service, store = make_service()
    opened = Open("a", service=service, serialize_turns=True)
    await opened.begin()
    await service.free_turn(KEY)
    await poll_until(lambda: "append_fragments" in store.names, "the attempt")
    opened.go_on.set()
    with pytest.raises(TurnLost):
        await anext(opened.run)
    assert await kept(service) == []
    assert await said(service) == [("user", "x")]


@pytest.mark.parametrize("how", ["aclose", "cancel", "cancel in the store", "error"])
async def test_a_run_that_ends_early_leaves_no_task(how: str) -> None:
    service, store = make_service()
    opened = Open("a", "b", service=service)
    await opened.begin()
    if how == "cancel in the store":
        gate = store.hook = Gate("before", name="append_fragments")
        await gate.reached.wait()
    if how == "aclose":
        await opened.run.aclose()
    elif how == "error":
        store.hook = failing("append_event", BackendTimeout("planted"))
        opened.go_on.set()
        with pytest.raises(BackendTimeout):
            await all_of(opened.run)
    else:
        task = asyncio.create_task(all_of(opened.run))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    num_calls = len(store.names)
    assert await kept(service) == (["a", "b", "more"] if how == "error" else [])
    assert len(store.names) == num_calls + 1


async def test_what_an_interrupted_run_stores_makes_its_fragments_obsolete() -> None:
    service, _ = make_service()
    opened = Open("Hel", "lo", service=service, store_interrupted=True)
    await opened.begin()
    await poll_until(lambda: _all_kept(service, "Hel", "lo"), "the fragments")
    await opened.run.aclose()
    assert await kept(service) == []
    assert await said(service) == [("user", "x"), ("agent", "Hello")]


# -- threads ---------------------------------------------------------------------------------------


class SyncStore(MemoryExecutor):
    """Knows the names of its Calls. Those of fragments wait, and fail if there is an error."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.gate = threading.Event()
        self.gate.set()
        self.error: Exception | None = None

    def execute(self, call: Any) -> list[Any]:
        self.names.append(call.name)
        if call.name == "append_fragments":
            assert self.gate.wait(20)
            if self.error:
                raise self.error
        return super().execute(call)


class Threads:
    """A run in this thread, of an agent that writes fragments and waits."""

    def __init__(self, *contents: Any, **options: Any) -> None:
        self.store = SyncStore()
        self.service = sessionstore.sync.SessionService(make_ops(), self.store)
        self.go_on = threading.Event()
        runner = sessionstore.sync.Runner(APP, self._agent, self.service, **options)
        self.run = runner.run(USER, "sid", "x")
        self._contents = contents

    def _agent(self, _: RunContext) -> Iterator[Event]:
        for content in self._contents:
            yield fragment(content)
        assert self.go_on.wait(20)
        yield Event("agent", "done")

    def begin(self) -> None:
        for content in self._contents:
            assert next(self.run).content == content

    def kept(self) -> list[Any]:
        found = self.service._run(fragments(self.service._ops, KEY))
        return [each.event.content for each in found]


def test_threads_store_fragments_while_the_agent_is_writing() -> None:
    opened = Threads("Hel", "lo")
    opened.begin()
    wait_until(lambda: opened.kept() == ["Hel", "lo"], "the fragments")
    opened.go_on.set()
    assert next(opened.run).content == "done"
    assert list(opened.run) == []
    assert opened.kept() == []


def test_callers_in_threads_do_not_wait_for_the_store() -> None:
    opened = Threads(*range(1000))
    opened.store.gate.clear()
    opened.begin()
    wait_until(lambda: "append_fragments" in opened.store.names, "the attempt")
    opened.store.gate.set()
    opened.go_on.set()
    assert next(opened.run).content == "done"
    opened.run.close()
    assert opened.store.names[-1] == "append_event"


def test_in_threads_a_store_that_fails_does_not_end_the_run(
    caplog: pytest.LogCaptureFixture,
) -> None:
    opened = Threads("lost")
    opened.store.error = BackendTimeout("secret")
    opened.begin()
    opened.go_on.set()
    assert [event.content for event in opened.run] == ["done"]
    assert caplog.messages == ["fragments of a run could not be stored: BackendTimeout"]


def test_in_threads_a_fragment_that_cannot_be_stored_ends_the_run() -> None:
    opened = Threads(object())
    opened.begin()
    opened.go_on.set()
    with pytest.raises(InvalidArgument, match=r"events\[0\]"):
        next(opened.run)


def test_a_run_that_a_thread_closes_leaves_no_thread() -> None:
    opened = Threads("a", "b")
    opened.begin()
    opened.run.close()
    assert opened.kept() == []
    found = opened.service.get_session(**IDS)
    assert found is not None
    assert [event.content for event in found.events] == ["x"]
