"""The Runner in memory: its arguments, what an agent is given, and the order of events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from runner_support import (
    APP,
    IDS,
    KEY,
    USER,
    Gate,
    all_of,
    echo,
    make_service,
    read,
    said,
)
from support.events import NOON

import sessionstore.sync
from sessionstore import (
    BackendUnavailable,
    Event,
    InMemorySessionService,
    InvalidArgument,
    RunContext,
    Runner,
    Session,
)
from sessionstore.run_context import RunState


def session_with(**state: Any) -> Session:
    return Session(APP, USER, "sid", state, [], 1, NOON, NOON)


class TestRunState:
    def test_it_reads_like_the_state_of_the_session(self) -> None:
        state = RunState(session_with(**{"a": 1, "user:b": None, "app:c": [1], "temp:d": 4}))
        assert dict(state) == {"a": 1, "user:b": None, "app:c": [1], "temp:d": 4}
        assert (state["user:b"], state.get("x", 7), len(state)) == (None, 7, 4)
        assert "app:c" in state
        assert "c" not in state
        with pytest.raises(KeyError):
            state["x"]
        with pytest.raises(KeyError):
            del state["x"]
        assert not state.is_changed

    def test_it_shows_its_changes_and_the_session_does_not(self) -> None:
        session = session_with(a=1, b=2)
        state = RunState(session)
        state["c"] = 3
        state["a"] = None
        del state["b"]
        assert dict(state) == {"a": None, "c": 3}
        assert "b" not in state
        assert len(state) == 2
        assert state.pop("c") == 3
        with pytest.raises(KeyError):
            state["c"]
        state["b"] = 4
        assert state.setdefault("b", 5) == 4
        assert dict(state) == {"a": None, "b": 4}
        assert session.state == {"a": 1, "b": 2}
        assert state.is_changed

    def test_its_order_is_that_of_the_session_then_that_of_the_changes(self) -> None:
        state = RunState(session_with(**{f"k{number}": number for number in range(40)}))
        state["new"] = 1
        state["k3"] = 1
        state["newer"] = 1
        assert list(state) == [*(f"k{number}" for number in range(40)), "new", "newer"]

    def test_it_can_be_changed_while_it_is_iterated_over(self) -> None:
        state = RunState(session_with(a=1, b=2))
        for key in state:
            del state[key]
        assert dict(state) == {}

    def test_a_key_that_is_no_text_is_refused_where_it_is_set(self) -> None:
        state = RunState(session_with())
        with pytest.raises(InvalidArgument, match="a state key must be a str, not int"):
            state[1] = 2  # type: ignore[index]

    def test_changes_ride_on_an_event(self) -> None:
        state = RunState(session_with(a=1, b=2))
        event = Event("agent", "x", metadata={"m": 1})
        assert state.add_changes(event) is event
        state["user:n"] = 1
        state["temp:t"] = 2
        del state["a"]
        riding = state.add_changes(event)
        assert riding.state_delta == {"user:n": 1, "temp:t": 2}
        assert riding.state_removed == ["a"]
        assert (riding.id, riding.content, riding.metadata) == (event.id, "x", {"m": 1})
        assert event.state_delta == {}

    def test_values_of_the_event_take_precedence(self) -> None:
        state = RunState(session_with(a=1, b=2, c=3, d=4))
        state["a"] = "state"
        state["b"] = "state"
        del state["c"]
        del state["d"]
        event = Event("x", state_delta={"a": "event", "c": "event"}, state_removed=["b", "e"])
        riding = state.add_changes(event)
        assert riding.state_delta == {"a": "event", "c": "event"}
        assert riding.state_removed == ["b", "e", "d"]

    @pytest.mark.parametrize("change", [{"state_delta": None}, {"state_removed": "pending"}])
    def test_an_event_that_cannot_be_stored_is_left_to_the_store(
        self, change: dict[str, Any]
    ) -> None:
        state = RunState(session_with())
        state["a"] = 1
        event = Event("x", **change)
        assert state.add_changes(event) is event

    def test_a_key_that_is_not_hashable_is_left_to_the_store(self) -> None:
        state = RunState(session_with())
        state["a"] = 1
        bad: Any = [["b"]]
        riding = state.add_changes(Event("x", state_removed=bad))
        assert (riding.state_delta, riding.state_removed) == ({"a": 1}, bad)

    def test_only_what_rode_is_cleared(self) -> None:
        state = RunState(session_with())
        state["a"] = 1
        state["b"] = 1
        state.add_changes(Event("x"))
        state["b"] = 2
        state["c"] = 3
        state.clear_stored_changes()
        assert state.add_changes(Event("x")).state_delta == {"b": 2, "c": 3}

    def test_changes_of_temp_alone_need_not_be_stored(self) -> None:
        state = RunState(session_with())
        state["temp:a"] = 1
        assert not state.is_changed
        state["a"] = 1
        assert state.is_changed


class TestArguments:
    @pytest.mark.parametrize(
        ("arguments", "complaint"),
        [
            ({"app_name": ""}, "app_name must not be empty"),
            ({"app_name": None}, "app_name must be a str, not NoneType"),
            ({"agent": None}, "agent must have a method run"),
            ({"agent": "echo"}, "agent must have a method run"),
            ({"session_service": "redis://localhost"}, "session_service must be a SessionService"),
            ({"history_limit": -1}, "history_limit must be at least 0"),
            ({"history_limit": 1.5}, "history_limit must be an int"),
            ({"serialize_turns": 1}, "serialize_turns must be True or False"),
            ({"store_interrupted": None}, "store_interrupted must be True or False"),
            ({"turn_lease": 0}, "turn_lease must be above 0"),
            ({"turn_lease": "1 s"}, "turn_lease must be a timedelta or seconds"),
            ({"turn_lease": 0.0001}, "turn_lease must be at least a millisecond"),
        ],
    )
    def test_a_bad_argument_is_named(self, arguments: dict[str, Any], complaint: str) -> None:
        with pytest.raises(InvalidArgument, match=complaint):
            Runner(**{"app_name": APP, "agent": echo, **arguments})

    def test_a_service_for_threads_is_refused(self) -> None:
        with sessionstore.sync.InMemorySessionService() as service:
            arguments: Any = (APP, echo, service)
            with pytest.raises(InvalidArgument) as raised:
                Runner(*arguments)
        assert str(raised.value) == (
            "session_service must be a SessionService, not "
            "sessionstore.sync.service.InMemorySessionService (this one is for threads: use "
            "sessionstore.sync.Runner, or a service of sessionstore)"
        )

    def test_a_partial_message_is_refused_at_once(self) -> None:
        runner = Runner(APP, echo)
        with pytest.raises(InvalidArgument, match="message must not be partial"):
            runner.run(USER, "sid", Event("user", "Hel", partial=True))

    @pytest.mark.parametrize("name", ["user_id", "session_id"])
    def test_a_bad_id_is_refused_at_once(self, name: str) -> None:
        runner = Runner(APP, echo)
        ids: dict[str, Any] = {"user_id": USER, "session_id": "sid", name: 5}
        with pytest.raises(InvalidArgument, match=f"{name} must be a str, not int"):
            runner.run(**ids, message="x")

    async def test_a_message_that_cannot_be_stored_fails_the_run(self) -> None:
        async with Runner(APP, echo) as runner:
            with pytest.raises(InvalidArgument, match=r"event\.content is a set"):
                await all_of(runner.run(USER, "sid", {1, 2}))
            assert await said(runner.session_service) == []


class TestOwnership:
    async def test_a_service_of_its_own_is_closed_with_it(self) -> None:
        runner = Runner(APP, echo)
        assert isinstance(runner.session_service, InMemorySessionService)
        await all_of(runner.run(USER, "sid", "x"))
        await runner.aclose()
        await runner.aclose()
        with pytest.raises(BackendUnavailable):
            await all_of(runner.run(USER, "sid", "x"))

    async def test_two_runners_share_nothing_by_default(self) -> None:
        async with Runner(APP, echo) as first, Runner(APP, echo) as second:
            await all_of(first.run(USER, "sid", "x"))
            assert await second.session_service.get_session(**IDS) is None

    async def test_a_given_service_is_never_closed(self) -> None:
        service, _ = make_service()
        async with Runner(APP, echo, service) as runner:
            assert runner.session_service is service
            await all_of(runner.run(USER, "sid", "x"))
        await runner.aclose()
        assert len((await read(service)).events) == 2

    async def test_a_given_service_counts_whatever_its_truth(self) -> None:
        class Falsy(InMemorySessionService):
            def __bool__(self) -> bool:
                return False

        service = Falsy()
        async with Runner(APP, echo, service) as runner:
            assert runner.session_service is service
        assert await service.get_session(**IDS) is None


class Method:
    def __init__(self, greeting: str) -> None:
        self.greeting = greeting

    async def run(self, context: RunContext) -> AsyncIterator[Event]:
        yield Event("assistant", f"{self.greeting} {context.message}")


class ByHand:
    """An iterator without `aclose`, so not a generator."""

    def __init__(self, *events: Event) -> None:
        self._events = iter(events)

    def __aiter__(self) -> ByHand:
        return self

    async def __anext__(self) -> Event:
        event = next(self._events, None)
        if event is None:
            raise StopAsyncIteration
        return event


class Several:
    """An iterable, but not an iterator."""

    async def __aiter__(self) -> AsyncIterator[Event]:
        yield Event("assistant", "Hello Ann")


async def returning(context: RunContext) -> AsyncIterator[Event]:
    return Method("Hello").run(context)


class TestAgents:
    @pytest.mark.parametrize(
        "agent",
        [
            Method("Hello"),
            Method("Hello").run,
            lambda context: Method("Hello").run(context),
            returning,
            lambda _: ByHand(Event("assistant", "Hello Ann")),
            lambda _: Several(),
        ],
        ids=["object", "method", "function", "coroutine", "iterator", "iterable"],
    )
    async def test_every_kind_of_agent_works(self, agent: Any) -> None:
        async with Runner(APP, agent) as runner:
            [event] = await all_of(runner.run(USER, "sid", "Ann"))
            assert event.content == "Hello Ann"
            expected = [("user", "Ann"), ("assistant", "Hello Ann")]
            assert await said(runner.session_service) == expected

    async def test_an_agent_may_say_nothing(self) -> None:
        async def silent(_: RunContext) -> AsyncIterator[Event]:
            nothing: list[Event] = []
            for event in nothing:
                yield event

        async with Runner(APP, silent) as runner:
            assert await all_of(runner.run(USER, "sid", "Ann")) == []
            assert await said(runner.session_service) == [("user", "Ann")]

    @pytest.mark.parametrize(
        ("agent", "kind"),
        [(lambda _: None, "NoneType"), (lambda _: iter([Event("x")]), "list_iterator")],
    )
    async def test_an_agent_that_returns_something_else_is_refused(
        self, agent: Any, kind: str
    ) -> None:
        async with Runner(APP, agent) as runner:
            with pytest.raises(InvalidArgument, match=rf"run\(context\) returned {kind}") as raised:
                await all_of(runner.run(USER, "sid", "Ann"))
            assert str(raised.value).startswith("the agent must be an async generator function")
            [_, (_, content)] = await said(runner.session_service)
            assert content["error"]["type"] == "InvalidArgument"


class TestContext:
    async def context_of(self, runner_options: dict[str, Any], message: Any = "now") -> RunContext:
        contexts: list[RunContext] = []

        async def agent(context: RunContext) -> AsyncIterator[Event]:
            contexts.append(context)
            contents = [event.content for event in context.session.events]
            yield Event("agent", contents)
            yield Event("agent", [event.content for event in context.session.events])

        async with Runner(APP, agent, **runner_options) as runner:
            service = runner.session_service
            session = await service.create_session(**IDS, state={"a": 1, "user:b": 2, "app:c": 3})
            await service.append_events(session, [Event("user", number) for number in range(5)])
            seen = await all_of(runner.run(USER, "sid", message))
            self.at_first, self.then = (event.content for event in seen)
        return contexts[0]

    async def test_it_has_the_session_the_message_and_the_state(self) -> None:
        message = Event("ann", {"text": "now"})
        context = await self.context_of({}, message)
        assert context.message is message
        assert context.session.key == KEY
        assert dict(context.state) == {"a": 1, "user:b": 2, "app:c": 3}
        assert context.session.events[5].author == "ann"

    @pytest.mark.parametrize("serialize_turns", [False, True])
    @pytest.mark.parametrize(
        ("limit", "history"),
        [
            (None, [0, 1, 2, 3, 4, "now"]),
            (100, [0, 1, 2, 3, 4, "now"]),
            (3, [3, 4, "now"]),
            (1, ["now"]),
            (0, ["now"]),
        ],
    )
    async def test_the_history_ends_with_the_message(
        self, limit: int | None, history: list[Any], serialize_turns: bool
    ) -> None:
        await self.context_of({"history_limit": limit, "serialize_turns": serialize_turns})
        assert self.at_first == history
        assert self.then == [*history, history]

    @pytest.mark.parametrize("session_id", ["", None])
    async def test_no_session_id_makes_a_new_one(self, session_id: str | None) -> None:
        async with Runner(APP, echo) as runner:
            runs = [runner.run(USER, session_id, "x") for _ in range(3)]
            ids = {run.key.session_id for run in runs}
            assert len(ids) == 3
            assert all(len(name) == 36 for name in ids)
            for run in runs:
                await all_of(run)
            listed = await runner.session_service.list_sessions(app_name=APP, user_id=USER)
            assert {session.id for session in listed} == ids

    async def test_events_carry_the_invocation_id_unless_they_have_one(self) -> None:
        ids = []

        async def agent(context: RunContext) -> AsyncIterator[Event]:
            ids.append(context.invocation_id)
            yield Event("agent", "He", partial=True)
            yield Event("agent", "Hello")
            yield Event("other", "Hi", invocation_id="of its own")

        async with Runner(APP, agent) as runner:
            runs = [runner.run(USER, "sid", "x"), runner.run(USER, "sid", "y")]
            for run in runs:
                seen = await all_of(run)
                assert ids[-1] == run.invocation_id
                assert [event.invocation_id for event in seen] == [
                    run.invocation_id,
                    run.invocation_id,
                    "of its own",
                ]
            stored = [event.invocation_id for event in (await read(runner.session_service)).events]
        assert runs[0].invocation_id != runs[1].invocation_id
        assert stored == [
            name for run in runs for name in (run.invocation_id, run.invocation_id, "of its own")
        ]

    async def test_a_message_event_names_the_run(self) -> None:
        async with Runner(APP, echo) as runner:
            named = runner.run(USER, "sid", Event("user", "x", invocation_id="run 5"))
            assert named.invocation_id == "run 5"
            message = Event("user", "x")
            assert runner.run(USER, "sid", message).invocation_id == message.id

    @pytest.mark.parametrize("serialize_turns", [False, True])
    async def test_initial_state_counts_for_a_new_session_and_temp_for_every_one(
        self, serialize_turns: bool
    ) -> None:
        seen = []

        async def agent(context: RunContext) -> AsyncIterator[Event]:
            seen.append(dict(context.state))
            yield Event("agent")

        async with Runner(APP, agent, serialize_turns=serialize_turns) as runner:
            for number in (1, 2):
                state = {"n": number, "user:n": number, "temp:n": number}
                await all_of(runner.run(USER, "sid", "x", state=state))
            assert seen == [
                {"n": 1, "user:n": 1, "temp:n": 1},
                {"n": 1, "user:n": 1, "temp:n": 2},
            ]
            assert (await read(runner.session_service)).state == {"n": 1, "user:n": 1}


class TestState:
    async def test_changes_are_stored_with_the_next_event(self) -> None:
        async def agent(context: RunContext) -> AsyncIterator[Event]:
            context.state["cart"] = ["mug"]
            context.state["user:name"] = "Ann"
            context.state["app:visits"] = 1
            context.state["temp:step"] = 1
            yield Event("agent", "partial", partial=True)
            assert context.session.state == {"old": 1}
            yield Event("agent", "first")
            assert context.session.state["cart"] == ["mug"]
            assert context.state["temp:step"] == 1
            del context.state["old"]
            context.state["cart"] = [*context.state["cart"], "cup"]
            yield Event("agent", "second", state_delta={"own": True})

        async with Runner(APP, agent) as runner:
            run = runner.run(USER, "sid", "x", state={"old": 1})
            states = []
            async for _ in run:
                states.append((await read(runner.session_service)).state)
        shared = {"user:name": "Ann", "app:visits": 1}
        assert states == [
            {"old": 1},
            {"old": 1, "cart": ["mug"], **shared},
            {"cart": ["mug", "cup"], "own": True, **shared},
        ]

    async def test_changes_after_the_last_event_have_one_of_their_own(self) -> None:
        async def agent(context: RunContext) -> AsyncIterator[Event]:
            yield Event("agent", "done")
            context.state["count"] = 1
            del context.state["old"]

        async with Runner(APP, agent) as runner:
            seen = await all_of(runner.run(USER, "sid", "x", state={"old": 1}))
            assert [event.content for event in seen] == ["done", None]
            session = await read(runner.session_service)
            assert session.state == {"count": 1}
            assert session.events[1:] == seen

    async def test_changes_of_temp_alone_have_none(self) -> None:
        async def agent(context: RunContext) -> AsyncIterator[Event]:
            yield Event("agent", "done")
            context.state["temp:count"] = 1

        async with Runner(APP, agent) as runner:
            assert len(await all_of(runner.run(USER, "sid", "x"))) == 1

    async def test_what_a_task_of_the_agent_sets_while_the_store_is_busy_is_kept(self) -> None:
        service, store = make_service()
        gate = store.hook = Gate("after", name="append_event", number=3)

        async def agent(context: RunContext) -> AsyncIterator[Event]:
            async def tool() -> None:
                await gate.reached.wait()
                context.state["late"] = True
                gate.opened.set()

            task = asyncio.create_task(tool())
            context.state["early"] = True
            yield Event("agent", 1)
            await task
            yield Event("agent", 2)

        seen = await all_of(Runner(APP, agent, service).run(USER, "sid", "x"))
        assert [event.state_delta for event in seen] == [{"early": True}, {"late": True}]
        assert (await read(service)).state == {"early": True, "late": True}

    async def test_changes_before_a_failure_are_not_stored(self) -> None:
        async def agent(context: RunContext) -> AsyncIterator[Event]:
            context.state["a"] = 1
            yield Event("agent", 1)
            context.state["b"] = 2
            raise RuntimeError

        async with Runner(APP, agent) as runner:
            with pytest.raises(RuntimeError):
                await all_of(runner.run(USER, "sid", "x"))
            assert (await read(runner.session_service)).state == {"a": 1}


class TestOrder:
    async def test_an_event_is_stored_before_it_is_handed_on(self) -> None:
        async def agent(_: RunContext) -> AsyncIterator[Event]:
            for number in range(5):
                yield Event("agent", number)

        async with Runner(APP, agent) as runner:
            async for event in runner.run(USER, "sid", "x"):
                stored = (await read(runner.session_service)).events
                assert stored[-1] == event
                assert len(stored) == event.content + 2

    async def test_what_is_handed_on_is_what_is_stored(self) -> None:
        content = {"list": [1]}

        async def agent(_: RunContext) -> AsyncIterator[Event]:
            yield Event("agent", content)
            content["list"].append(2)

        async with Runner(APP, agent) as runner:
            seen = await all_of(runner.run(USER, "sid", "x"))
            assert seen == (await read(runner.session_service)).events[1:]
            assert seen[0].content == {"list": [1]}

    async def test_a_fragment_is_handed_on_at_once_and_not_stored(self) -> None:
        may_go_on = asyncio.Event()

        async def agent(_: RunContext) -> AsyncIterator[Event]:
            yield Event("agent", "Hel", partial=True)
            await may_go_on.wait()
            yield Event("agent", "lo", partial=True)
            yield Event("agent", "Hello")

        service, store = make_service()
        seen = []
        async for event in Runner(APP, agent, service).run(USER, "sid", "x"):
            seen.append((event.content, event.partial, len((await read(service)).events)))
            may_go_on.set()
        assert seen == [("Hel", True, 1), ("lo", True, 1), ("Hello", False, 2)]
        assert store.names.count("append_event") == 2

    async def test_the_agent_goes_on_only_when_its_event_was_taken(self) -> None:
        steps = []

        async def agent(_: RunContext) -> AsyncIterator[Event]:
            for number in range(3):
                steps.append(f"agent {number}")
                yield Event("agent", number)

        async with Runner(APP, agent) as runner:
            async for event in runner.run(USER, "sid", "x"):
                steps.append(f"caller {event.content}")
                await asyncio.sleep(0)
        assert steps == [f"{who} {number}" for number in range(3) for who in ("agent", "caller")]

    async def test_a_run_that_nobody_iterates_over_does_nothing(self) -> None:
        service, store = make_service()
        run = Runner(APP, echo, service).run(USER, "sid", "x")
        await run.aclose()
        assert store.names == []


async def test_a_message_that_is_given_again_is_stored_once() -> None:
    message = Event("user", "x", state_delta={"n": 1})
    async with Runner(APP, echo) as runner:
        await all_of(runner.run(USER, "sid", message))
        await all_of(runner.run(USER, "sid", message))
        authors = [author for author, _ in await said(runner.session_service)]
    assert authors == ["user", "assistant", "assistant"]


async def test_fifty_runs_on_one_session_lose_nothing() -> None:
    async def agent(context: RunContext) -> AsyncIterator[Event]:
        for number in range(3):
            await asyncio.sleep(0)
            context.state[f"{context.message}-{number}"] = True
            yield Event("agent", [context.message, number])

    async with Runner(APP, agent) as runner:
        await asyncio.gather(*(all_of(runner.run(USER, "sid", number)) for number in range(50)))
        session = await read(runner.session_service)
    assert len(session.events) == 200
    assert len(session.state) == 150
