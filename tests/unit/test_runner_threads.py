"""The Runner for threads in memory. The contract tests run on it too."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.services import make_ops

import sessionstore
from sessionstore import (
    BackendTimeout,
    BackendUnavailable,
    Event,
    InvalidArgument,
    RunContext,
    SessionKey,
    SessionNotFound,
    TurnLost,
    TurnTaken,
)
from sessionstore.calls import Call
from sessionstore.sync import InMemorySessionService, Run, Runner, SessionService
from sessionstore.twin import MemoryExecutor

APP, USER = "app", "user"
KEY = SessionKey(APP, USER, "sid")
IDS: dict[str, Any] = {"app_name": APP, "user_id": USER, "session_id": "sid"}
DEADLINE_S = 20.0


class Store:
    """An executor in memory; `hook` sees every Call before it is carried out."""

    def __init__(self) -> None:
        self._inner = MemoryExecutor()
        self.names: list[str] = []
        self.hook: Callable[[Call[Any]], None] = lambda _: None

    def execute(self, call: Call[Any]) -> list[Any]:
        self.names.append(call.name)
        self.hook(call)
        return self._inner.execute(call)

    def close(self) -> None:
        self._inner.close()


def make_service() -> tuple[SessionService, Store]:
    store = Store()
    return SessionService(make_ops(), store), store


def failing(name: str) -> Callable[[Call[Any]], None]:
    def hook(call: Call[Any]) -> None:
        if call.name == name:
            raise BackendTimeout("planted")

    return hook


def stored(service: SessionService) -> list[Event]:
    found = service.get_session(**IDS)
    assert found is not None
    return found.events


def said(service: SessionService) -> list[Any]:
    return [event.content for event in stored(service)]


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come"
        time.sleep(0.001)


def echo(context: RunContext) -> Iterator[Event]:
    yield Event("assistant", f"You said {context.message}")


class ScriptedAgent:
    """An agent that records how far it came and whether it was closed."""

    def __init__(self, *steps: Event | BaseException) -> None:
        self.steps = steps
        self.finished = 0

    def run(self, _: RunContext) -> Iterator[Event]:
        try:
            for step in self.steps:
                if isinstance(step, BaseException):
                    raise step
                yield step
        finally:
            self.finished += 1


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) == before


class TestArguments:
    @pytest.mark.parametrize(
        ("arguments", "complaint"),
        [
            ({"app_name": ""}, "app_name must not be empty"),
            ({"agent": "echo"}, "agent must have a method run"),
            ({"session_service": "redis://localhost"}, "session_service must be a SessionService"),
            ({"history_limit": -1}, "history_limit must be at least 0"),
            ({"serialize_turns": 1}, "serialize_turns must be True or False"),
            ({"turn_lease": 0}, "turn_lease must be above 0"),
        ],
    )
    def test_a_bad_argument_is_named(self, arguments: dict[str, Any], complaint: str) -> None:
        with pytest.raises(InvalidArgument, match=complaint):
            Runner(**{"app_name": APP, "agent": echo, **arguments})

    def test_a_service_for_asyncio_is_refused(self) -> None:
        arguments: Any = (APP, echo, sessionstore.InMemorySessionService())
        with pytest.raises(InvalidArgument) as raised:
            Runner(*arguments)
        assert str(raised.value) == (
            "session_service must be a SessionService, not "
            "sessionstore.service.InMemorySessionService (this one is for asyncio: use "
            "sessionstore.Runner, or a service of sessionstore.sync)"
        )

    @pytest.mark.parametrize("name", ["user_id", "session_id"])
    def test_a_bad_id_is_refused_at_once(self, name: str) -> None:
        ids: dict[str, Any] = {"user_id": USER, "session_id": "sid", name: 5}
        with pytest.raises(InvalidArgument, match=f"{name} must be a str, not int"):
            Runner(APP, echo).run(**ids, message="x")

    def test_an_agent_for_asyncio_is_refused(self) -> None:
        agent: Any = agent_for_asyncio
        with (
            Runner(APP, agent) as runner,
            pytest.raises(
                InvalidArgument, match=r"sessionstore\.Runner runs async .* async_generator"
            ),
        ):
            list(runner.run(USER, "sid", "x"))


async def agent_for_asyncio(context: RunContext) -> Any:
    yield Event("agent", context.message)


class TestAgents:
    @pytest.mark.parametrize(
        "agent",
        [
            ScriptedAgent(Event("agent", 1)),
            ScriptedAgent(Event("agent", 1)).run,
            lambda _: [Event("agent", 1)],
            lambda _: iter([Event("agent", 1)]),
        ],
        ids=["object", "method", "list", "iterator"],
    )
    def test_every_iterable_of_events_will_do(self, agent: Any) -> None:
        with Runner(APP, agent) as runner:
            [event] = runner.run(USER, "sid", "x")
            assert event.content == 1
            assert said(runner.session_service) == ["x", 1]

    def test_a_service_of_its_own_is_closed_with_it(self) -> None:
        with Runner(APP, echo) as runner:
            list(runner.run(USER, "sid", "x"))
        runner.close()
        with pytest.raises(BackendUnavailable):
            list(runner.run(USER, "sid", "x"))

    def test_a_given_service_is_never_closed(self) -> None:
        with InMemorySessionService() as service:
            with Runner(APP, echo, service) as runner:
                list(runner.run(USER, "sid", "x"))
            assert said(service) == ["x", "You said x"]


class TestOrder:
    def test_every_complete_event_is_stored_before_it_is_yielded(self) -> None:
        def agent(context: RunContext) -> Iterator[Event]:
            assert said(service) == ["x"]
            yield Event("agent", "Hel", partial=True)
            context.state["n"] = 1
            yield Event("agent", "Hello")
            context.state["n"] = 2

        with InMemorySessionService() as service:
            run = Runner(APP, agent, service).run(USER, "sid", "x")
            assert service.get_session(**IDS) is None
            assert next(run).partial
            assert said(service) == ["x"]
            assert next(run).state_delta == {"n": 1}
            assert said(service) == ["x", "Hello"]
            last = next(run)
            assert (last.content, last.state_delta) == (None, {"n": 2})
            with pytest.raises(StopIteration):
                next(run)
            assert {event.invocation_id for event in stored(service)} == {run.invocation_id}

    def test_an_error_of_the_agent_is_stored_and_raised(self) -> None:
        agent = ScriptedAgent(Event("agent", 1), ValueError("out of paper"))
        with Runner(APP, agent) as runner:
            with pytest.raises(ValueError, match="out of paper"):
                list(runner.run(USER, "sid", "x"))
            *_, last = stored(runner.session_service)
        assert last.content == {"error": {"type": "ValueError", "message": "out of paper"}}
        assert last.metadata == {"error": True}
        assert agent.finished == 1

    def test_an_error_of_the_store_fails_the_run_and_is_not_stored(self) -> None:
        service, store = make_service()
        agent = ScriptedAgent(Event("agent", 1), Event("agent", 2))
        run = Runner(APP, agent, service).run(USER, "sid", "x")
        next(run)
        store.hook = failing("append_event")
        with pytest.raises(BackendTimeout):
            next(run)
        assert agent.finished == 1
        assert said(service) == ["x", 1]


class TestInterrupted:
    FRAGMENTS = (Event("agent", "Hel", partial=True), Event("agent", "lo", partial=True))

    @pytest.mark.parametrize("how", ["close", "forgotten"])
    def test_what_was_streamed_is_stored_when_a_run_is_left(self, how: str) -> None:
        agent = ScriptedAgent(*self.FRAGMENTS, Event("agent", "Hello"))
        with Runner(APP, agent, store_interrupted=True) as runner:
            run = runner.run(USER, "sid", "x")
            next(run)
            next(run)
            if how == "close":
                run.close()
            else:
                del run
                gc.collect()
            _, event = stored(runner.session_service)
        assert (event.content, event.metadata) == ("Hello", {"interrupted": True})
        assert agent.finished == 1

    def test_a_keyboard_interrupt_is_an_interruption(self) -> None:
        agent = ScriptedAgent(*self.FRAGMENTS, KeyboardInterrupt())
        with Runner(APP, agent, serialize_turns=True, store_interrupted=True) as runner:
            with pytest.raises(KeyboardInterrupt):
                list(runner.run(USER, "sid", "x"))
            _, event = stored(runner.session_service)
            runner.session_service.acquire_turn(KEY)
        assert event.metadata == {"interrupted": True}

    def test_an_event_that_is_being_stored_is_stored_once(self) -> None:
        service, store = make_service()
        run = Runner(APP, ScriptedAgent(Event("agent", 1)), service, store_interrupted=True).run(
            USER, "sid", "x"
        )

        def interrupt(call: Call[Any]) -> None:
            if store.names.count("append_event") == 2:
                store.hook = lambda _: None
                store.execute(call)  # the store gets it, and the caller is interrupted
                raise KeyboardInterrupt

        store.hook = interrupt
        with pytest.raises(KeyboardInterrupt):
            list(run)
        assert said(service) == ["x", 1]

    def test_nothing_is_stored_unless_asked_for(self) -> None:
        with Runner(APP, ScriptedAgent(*self.FRAGMENTS)) as runner:
            run = runner.run(USER, "sid", "x")
            next(run)
            run.close()
            assert said(runner.session_service) == ["x"]


class TestTurns:
    def test_the_turn_is_acquired_before_reading_and_released_at_the_end(self) -> None:
        service, store = make_service()
        list(Runner(APP, echo, service, serialize_turns=True).run(USER, "sid", "x"))
        assert store.names == [
            "get_or_create_session",
            "acquire_turn",
            "get_session",
            "append_event",
            "append_event",
            "renew_turn",  # with a lease of 0, which releases it
        ]

    @pytest.mark.parametrize("end", ["exhausted", "closed", "forgotten", "failed", "cycle"])
    def test_the_turn_is_renewed_while_the_run_lives(self, end: str) -> None:
        service, store = make_service()
        steps = [ValueError()] if end == "failed" else [Event("agent", 2)]
        agent = ScriptedAgent(Event("agent", 1), *steps)
        run = Runner(APP, agent, service, serialize_turns=True, turn_lease=0.1).run(
            USER, "sid", "x"
        )
        next(run)
        until(lambda: store.names.count("renew_turn") > 4, "the renewals")
        with pytest.raises(TurnTaken):
            service.acquire_turn(KEY)
        if end == "exhausted":
            assert [event.content for event in run] == [2]
        elif end == "closed":
            run.close()
        elif end == "failed":
            with pytest.raises(ValueError):  # noqa: PT011  # it has no message
                next(run)
        else:
            if end == "cycle":
                run.__dict__["itself"] = run
            del run
            gc.collect()
        until(lambda: not renewing(), "the end of the renewals")
        service.acquire_turn(KEY)

    def test_failed_renewals_are_repeated(self) -> None:
        service, store = make_service()
        run = Runner(
            APP, ScriptedAgent(Event("agent", 1)), service, serialize_turns=True, turn_lease=0.1
        ).run(USER, "sid", "x")
        next(run)
        store.hook = failing("renew_turn")
        until(lambda: store.names.count("renew_turn") > 2, "the attempts")
        store.hook = lambda _: None
        assert list(run) == []

    def test_a_run_that_lost_its_turn_is_refused(self) -> None:
        service, store = make_service()
        agent = ScriptedAgent(Event("agent", 1), Event("agent", 2))
        runner = Runner(APP, agent, service, serialize_turns=True, turn_lease=0.02)
        store.hook = failing("renew_turn")
        run = runner.run(USER, "sid", "x")
        next(run)
        turn = taken_over(service)
        with pytest.raises(TurnLost):
            next(run)
        assert said(service) == ["x", 1]
        with pytest.raises(TurnTaken):  # the lost turn did not release the new one
            service.acquire_turn(KEY)
        service.append_event(KEY, Event("other"), turn=turn)

    def test_runs_on_one_session_take_turns(self) -> None:
        def agent(context: RunContext) -> Iterator[Event]:
            so_far = context.state.get("runs", 0)
            yield Event("agent", "x", partial=True)
            time.sleep(0.001)
            context.state["runs"] = so_far + 1
            yield Event("agent", so_far)

        with InMemorySessionService() as service:
            runner = Runner(APP, agent, service, serialize_turns=True)

            def hold() -> None:
                list(runner.run(USER, "sid", "x"))

            threads = [threading.Thread(target=hold) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert service.get_session(**IDS).state == {"runs": 8}  # type: ignore[union-attr]  # it exists
            assert said(service) == [part for number in range(8) for part in ("x", number)]

    def test_a_session_deleted_before_its_turn_fails_the_run_and_releases_the_turn(self) -> None:
        service, store = make_service()

        def delete(call: Call[Any]) -> None:
            if call.name == "get_session":
                store.hook = lambda _: None
                service.delete_session(**IDS)

        store.hook = delete
        with pytest.raises(SessionNotFound, match="deleted while the run waited"):
            list(Runner(APP, echo, service, serialize_turns=True).run(USER, "sid", "x"))
        assert store.names[-1] == "renew_turn"

    def test_a_turn_that_cannot_be_released_does_not_fail_the_run(self) -> None:
        service, store = make_service()
        store.hook = failing("renew_turn")
        run: Run = Runner(APP, echo, service, serialize_turns=True).run(USER, "sid", "x")
        assert len(list(run)) == 1


def renewing() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if "renew-turn" in thread.name]


def taken_over(service: SessionService) -> Any:
    deadline = time.monotonic() + DEADLINE_S
    while True:
        try:
            return service.acquire_turn(KEY)
        except TurnTaken:
            assert time.monotonic() < deadline
            time.sleep(0.001)
