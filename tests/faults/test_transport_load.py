"""Many calls, tasks, threads, loops and processes on one service; cancelled, closed, restarted."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from faults_support import KEY, client_count, make_event, no_unhandled_errors, warm
from support.events import LONG_AGO, ids_of
from support.servers import Server
from support.services import WITH_TTL, make_service
from support.waiting import DEADLINE_S, poll_until, wait_until

import sessionstore.sync
from benchmarks.rigs.proxy import Proxy
from sessionstore import BackendUnavailable, Event, RedisSessionService, SessionKey
from sessionstore.embedded import EmbeddedServer
from sessionstore.transport.shared_connection import BYTES_IN_FLIGHT_LIMIT, CALLS_IN_FLIGHT_LIMIT

NUM_USERS = 8  # each with its own state, so that a reply to another call is noticed

both_modes = pytest.mark.parametrize("mode", ["async", "sync"])


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    with Proxy(server.embedded.socket_path) as found:
        yield found


needs_users = pytest.mark.usefixtures("direct")


@pytest.fixture
async def direct(server: Server) -> AsyncIterator[RedisSessionService]:
    """A second service, for checks. The users and a session exist."""
    async with RedisSessionService(server.url, **WITH_TTL) as service:
        await service.create_session(app_name="a", user_id="u", session_id="s")
        for number in range(NUM_USERS):
            await service.update_user_state("a", f"u{number}", {"who": number})
        yield service


async def check_replies(service: Any) -> None:
    """Every call gets its own reply."""
    states = await asyncio.gather(
        *(service.get_user_state("a", f"u{number}") for number in range(NUM_USERS))
    )
    assert states == [{"who": number} for number in range(NUM_USERS)]


# -- cancelled --------------------------------------------------------------------------------


@pytest.mark.parametrize("is_warm", [False, True])
async def test_an_append_can_be_cancelled_at_every_step(
    server: Server, direct: RedisSessionService, is_warm: bool
) -> None:
    async with no_unhandled_errors(), RedisSessionService(server.url, **WITH_TTL) as shared:
        await check_replies(shared)
        step, cancelled = 0, 0
        while True:
            service = shared if is_warm else RedisSessionService(server.url, **WITH_TTL)
            append = asyncio.create_task(service.append_event(KEY, make_event(step)))
            for _ in range(step):
                await asyncio.sleep(0)
            is_done = append.done()
            append.cancel()
            await check_replies(service)
            if not is_warm:
                await service.aclose()
            if is_done:
                await append
                break
            with pytest.raises(asyncio.CancelledError):
                await append
            cancelled += 1
            step += 1 + step // 8
    assert cancelled >= (3 if is_warm else 10)
    found = await direct.get_session(app_name="a", user_id="u", session_id="s")
    assert found
    assert ids_of(found.events) == sorted(ids_of(found.events))


@needs_users
async def test_callers_that_wait_for_room_can_be_cancelled(proxy: Proxy) -> None:
    async with RedisSessionService(proxy.url, **WITH_TTL) as service:
        await check_replies(service)
        proxy.hold("reply")
        calls = [
            asyncio.create_task(service.get_user_state("a", f"u{number % NUM_USERS}"))
            for number in range(CALLS_IN_FLIGHT_LIMIT + 300)
        ]
        await asyncio.sleep(0)
        # Every second call, of the sent ones and of the waiting ones.
        for call in calls[::2]:
            call.cancel()
        proxy.release("reply")
        results = await asyncio.gather(*calls, return_exceptions=True)
        for number, result in enumerate(results):
            if number % 2:
                assert result == {"who": number % NUM_USERS}
            else:
                assert isinstance(result, asyncio.CancelledError)
        await check_replies(service)


# -- closed -----------------------------------------------------------------------------------


async def test_close_with_a_thousand_calls_in_flight(
    server: Server, direct: RedisSessionService
) -> None:
    async with no_unhandled_errors():
        service = RedisSessionService(server.url, **WITH_TTL)
        await check_replies(service)
        calls = [
            asyncio.create_task(service.append_event(KEY, make_event(number)))
            for number in range(1000)
        ]
        await asyncio.sleep(0)
        async with asyncio.timeout(5):
            await service.aclose()
            results = await asyncio.gather(*calls, return_exceptions=True)
        with pytest.raises(BackendUnavailable):
            await service.append_event(KEY, make_event(1))
    found = await direct.get_session(app_name="a", user_id="u", session_id="s")
    assert found
    stored = set(ids_of(found.events))
    for number, result in enumerate(results):
        if isinstance(result, Event):
            assert result.id in stored
        else:
            assert isinstance(result, BackendUnavailable)
            assert result.maybe_applied or make_event(number).id not in stored


@needs_users
async def test_close_while_the_server_is_silent(proxy: Proxy) -> None:
    async with no_unhandled_errors():
        service = RedisSessionService(proxy.url, **WITH_TTL)
        await check_replies(service)
        proxy.hold("reply")
        appends = [
            asyncio.create_task(service.append_event(KEY, make_event(number)))
            for number in range(50)
        ]
        reads = [asyncio.create_task(service.get_user_state("a", "u1")) for _ in range(50)]
        await asyncio.sleep(0)
        async with asyncio.timeout(5):
            await service.aclose()
            results: list[Any] = await asyncio.gather(*appends, *reads, return_exceptions=True)
        assert {type(result) for result in results} == {BackendUnavailable}
        # They were sent and got no answer: an append may have been applied. A read changes nothing.
        assert [result.maybe_applied for result in results] == [True] * 50 + [False] * 50


@needs_users
async def test_close_at_every_step_of_a_first_call(server: Server) -> None:
    step = 0
    async with no_unhandled_errors():
        while True:
            service = RedisSessionService(server.url, **WITH_TTL)
            call = asyncio.create_task(service.get_user_state("a", "u3"))
            for _ in range(step):
                await asyncio.sleep(0)
            is_done = call.done()
            async with asyncio.timeout(5):
                await service.aclose()
                results: list[Any] = await asyncio.gather(call, return_exceptions=True)
            result = results[0]
            if not isinstance(result, BackendUnavailable):
                assert result == {"who": 3}
            if is_done:
                break
            step += 1 + step // 8
    assert step > 5


def test_close_while_threads_are_calling(server: Server) -> None:
    before = client_count(server)
    service = sessionstore.sync.RedisSessionService(server.url, **WITH_TTL)
    session = service.create_session(app_name="a", user_id="u", session_id="s")
    stored: list[str] = []
    refused: list[BaseException] = []

    def append(number: int) -> None:
        for turn in range(10_000):
            try:
                event = service.append_event(session.key, Event("x", id=f"{number}-{turn}"))
            except BaseException as error:
                refused.append(error)
                return
            stored.append(event.id)

    threads = [threading.Thread(target=append, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(stored) > 100, "the first appends")
    service.close()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert [type(error) for error in refused] == [BackendUnavailable] * 16
    wait_until(lambda: client_count(server) <= before, "the end of the connections")
    with sessionstore.sync.RedisSessionService(server.url, **WITH_TTL) as other:
        found = other.get_session(app_name="a", user_id="u", session_id="s")
    assert found
    assert set(ids_of(found.events)) <= set(stored)
    assert set(stored[-1000:]) <= set(ids_of(found.events)) | set(stored[:-900])


# -- bounded ----------------------------------------------------------------------------------


@needs_users
async def test_twenty_thousand_calls_at_once_are_bounded_in_flight(server: Server) -> None:
    with Proxy(server.embedded.socket_path, count_calls=True) as proxy:
        # Without TTLs a read of state is one command with one reply.
        async with RedisSessionService(proxy.url, call_timeout=60) as service:
            await check_replies(service)
            proxy.hold("reply")
            calls = [
                asyncio.create_task(service.get_user_state("a", f"u{number % NUM_USERS}"))
                for number in range(20_000)
            ]
            await poll_until(
                lambda: proxy.in_flight_most >= CALLS_IN_FLIGHT_LIMIT, "a full connection"
            )
            proxy.release("reply")
            for number, call in enumerate(calls):
                assert await call == {"who": number % NUM_USERS}
            assert proxy.in_flight_most == CALLS_IN_FLIGHT_LIMIT
            assert proxy.accepted == 1


async def test_bytes_in_flight_are_bounded_too(
    server: Server, proxy: Proxy, direct: RedisSessionService
) -> None:
    size = 900_000
    async with RedisSessionService(proxy.url, call_timeout=60, **WITH_TTL) as service:
        await warm(service)
        await service.append_event(KEY, make_event(1))
        proxy.hold("reply")
        before = proxy.passed("request")
        calls = [
            asyncio.create_task(service.append_event(KEY, Event("x", "y" * size, id=f"{number}")))
            for number in range(24)
        ]
        await poll_until(
            lambda: proxy.passed("request") - before >= BYTES_IN_FLIGHT_LIMIT, "a full connection"
        )
        most = BYTES_IN_FLIGHT_LIMIT + size + 1000
        assert proxy.passed("request") - before <= most
        proxy.release("reply")
        await asyncio.gather(*calls)
        assert proxy.passed("request") - before > most
    page = await direct.get_events(KEY, limit=1)
    assert ids_of(page.events) == ["0001"]
    assert server.raw.zcard("events:{a:u}:s") == 25


async def test_a_large_reply_among_small_calls(server: Server, direct: RedisSessionService) -> None:
    contents = [str(number) * 500_000 for number in range(4)]
    await direct.append_events(KEY, [Event("x", content) for content in contents])
    async with RedisSessionService(server.url, **WITH_TTL) as service:
        calls: list[Any] = []
        for number in range(800):
            if number % 100 == 50:
                calls.append(service.get_session(app_name="a", user_id="u", session_id="s"))
            else:
                calls.append(service.get_user_state("a", f"u{number % NUM_USERS}"))
        results: list[Any] = await asyncio.gather(*calls)
    for number, result in enumerate(results):
        if number % 100 == 50:
            assert [event.content for event in result.events] == contents
        else:
            assert result == {"who": number % NUM_USERS}


# -- loops, threads, processes ----------------------------------------------------------------


async def append_some(service: Any, name: str, count: int) -> None:
    """Appends at once and in turn, checking that replies are not mixed up."""
    key = SessionKey("a", name, "s")
    await service.get_or_create_session(app_name="a", user_id=name, session_id="s")
    for number in range(count):
        event = await service.append_event(key, Event("x", name, id=f"{number:04}"))
        assert event.content == name
    found = await service.get_session(app_name="a", user_id=name, session_id="s")
    assert [event.content for event in found.events] == [name] * count


def test_one_service_on_two_loops_in_two_threads(server: Server) -> None:
    before = client_count(server)
    service = RedisSessionService(server.url, **WITH_TTL)
    barrier = threading.Barrier(2)
    errors: list[BaseException] = []
    loops: list[Any] = []

    async def work(name: str) -> None:
        await asyncio.gather(*(append_some(service, f"{name}{number}", 20) for number in range(10)))

    async def run(name: str) -> None:
        loops.append(asyncio.get_running_loop())
        barrier.wait(DEADLINE_S)
        for number in range(5):
            await work(f"{name}-{number}-")
        barrier.wait(DEADLINE_S)
        # One loop closes the service for both, while the other lives.
        if name == "left":
            await service.aclose()
            done.set()
        else:
            await poll_until(done.is_set, "the close")
            with pytest.raises(BackendUnavailable):
                await service.get_user_state("a", "u")
            await poll_until(lambda: client_count(server) <= before, "the end of the connections")

    def thread(name: str) -> None:
        try:
            asyncio.run(run(name))
        except BaseException as error:
            errors.append(error)

    done = threading.Event()
    threads = [threading.Thread(target=thread, args=(name,)) for name in ("left", "right")]
    for each in threads:
        each.start()
    for each in threads:
        each.join(DEADLINE_S)
    assert errors == []
    assert loops[0] is not loops[1]


def test_one_service_in_successive_loops(server: Server) -> None:
    before = client_count(server)
    service = RedisSessionService(server.url, **WITH_TTL)

    async def use(number: int) -> None:
        await append_some(service, f"u{number}", 10)

    async def end() -> None:
        await use(3)
        await service.aclose()

    with asyncio.Runner() as first, asyncio.Runner() as second:
        # Both loops are alive, and run in turn.
        for number in range(3):
            first.run(use(10 + number))
            second.run(use(20 + number))
        second.run(end())
        # The loop that did not close the service closes its connection when it runs again.
        first.run(asyncio.sleep(0))
        wait_until(lambda: first.run(asyncio.sleep(0)) or client_count(server) <= before, "the end")
        with pytest.raises(BackendUnavailable):
            first.run(use(1))


def run_script(text: str, *arguments: str, warnings: str = "default") -> str:
    """Run Python in a process of its own, and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-W", warnings, "-c", text, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    if warnings != "ignore":
        assert done.stderr == ""
    return done.stdout


RUNS = """
import asyncio, sys
from sessionstore import Event, RedisSessionService

service = RedisSessionService(sys.argv[1], session_ttl=600)

async def use(number):
    session = await service.get_or_create_session(app_name="a", user_id="u", session_id="s")
    await service.append_event(session, Event("x", number))
    print([event.content for event in session.events])
    if number == 3:
        await service.aclose()

for number in (1, 2, 3):
    asyncio.run(use(number))
"""


def test_one_service_used_by_successive_runs(server: Server) -> None:
    output = run_script(RUNS, server.url, warnings="ignore")
    assert output.splitlines() == ["[1]", "[1, 2]", "[1, 2, 3]"]


def test_successive_runs_leave_nothing_unclosed(server: Server) -> None:
    run_script(RUNS, server.url)


def test_sixteen_threads_on_one_service(server: Server) -> None:
    before = client_count(server)
    errors: list[BaseException] = []
    with sessionstore.sync.RedisSessionService(server.url, **WITH_TTL) as service:
        shared = service.create_session(app_name="a", user_id="u", session_id="shared").key

        def work(number: int) -> None:
            try:
                own = service.create_session(
                    app_name="a", user_id="u", session_id=f"s{number}", state={"who": number}
                )
                for turn in range(40):
                    service.append_event(own, Event("x", number, state_delta={"turn": turn}))
                    service.append_event(shared, Event("x", id=f"{number}-{turn}"))
                    found = service.get_session(
                        app_name="a", user_id="u", session_id=f"s{number}", event_num=1
                    )
                    assert found
                    assert found.state == {"who": number, "turn": turn}
                    assert [event.content for event in found.events] == [number]
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE_S)
        assert errors == []
        found = service.get_session(app_name="a", user_id="u", session_id="shared")
        assert found
        assert len(found.events) == len(set(ids_of(found.events))) == 16 * 40
        for number in range(16):
            own = [event for event in ids_of(found.events) if event.startswith(f"{number}-")]
            assert own == [f"{number}-{turn}" for turn in range(40)]
        assert client_count(server) <= before + 16


FORK = """
import os, sys, threading
from sessionstore.sync import RedisSessionService

url, is_busy = sys.argv[1], sys.argv[2] == "busy"
service = RedisSessionService(url, user_state_ttl=600)
for number in range(10):
    service.update_user_state("a", f"u{number}", {"who": number})

def check(users, turns):
    for turn in range(turns):
        for number in users:
            assert service.get_user_state("a", f"u{number}") == {"who": number}

stop = threading.Event()
def background():
    while not stop.is_set():
        check(range(10), 1)

threads = [threading.Thread(target=background) for _ in range(3 if is_busy else 0)]
for thread in threads:
    thread.start()
children = []
for _ in range(3):
    child = os.fork()
    if child == 0:
        code = 1
        try:
            check(range(5, 10), 100)
            service.update_user_state("a", "child", {"pid": os.getpid()})
            code = 0
        finally:
            os._exit(code)
    children.append(child)
check(range(5), 200)
for child in children:
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
# The end of the children does not close the parent's connections.
check(range(10), 20)
stop.set()
for thread in threads:
    thread.join()
service.close()
print("done")
"""


@pytest.mark.parametrize("threads", ["idle", "busy"])
def test_a_forked_child_has_connections_of_its_own(server: Server, threads: str) -> None:
    script = FORK
    if sys.version_info >= (3, 12):
        # Python warns about forks with threads, which this test is about.
        script = "import warnings\nwarnings.simplefilter('ignore', DeprecationWarning)\n" + FORK
    assert run_script(script, server.url, threads) == "done\n"


# -- restarted --------------------------------------------------------------------------------


@both_modes
async def test_a_restart_under_load_loses_and_doubles_nothing(
    server: Server, tmp_path: Path, mode: str
) -> None:
    own = EmbeddedServer(tmp_path / "data", executable=server.embedded.executable)
    # A separate thread: the threads of to_thread are busy with calls.
    with ThreadPoolExecutor(1) as keeper:

        async def keep(action: Callable[[], None]) -> None:
            await asyncio.get_running_loop().run_in_executor(keeper, action)

        await keep(own.start)
        try:
            await check_restarts(own, mode, keep)
        finally:
            await keep(own.stop)


async def check_restarts(
    own: EmbeddedServer, mode: str, keep: Callable[[Callable[[], None]], Awaitable[None]]
) -> None:
    path = own.socket_path
    service = make_service(mode, own.url, call_timeout=20)
    for number in range(8):
        await service.create_session(app_name="a", user_id="u", session_id=f"s{number}")
    progress = 0
    is_over = False

    async def agent(number: int) -> int:
        nonlocal progress
        session = await service.get_session(app_name="a", user_id="u", session_id=f"s{number}")
        turn = 0
        while not is_over:
            await service.append_event(
                session,
                Event("x", id=f"{turn:04}", timestamp=LONG_AGO, state_delta={"turn": turn}),
            )
            turn += 1
            progress += 1
        return turn

    def has_passed(mark: int) -> bool:
        return progress > mark

    agents = [asyncio.create_task(agent(number)) for number in range(8)]
    for _ in range(2):
        await poll_until(partial(has_passed, progress + 50), "progress")
        await keep(own.stop)
        await keep(own.start)
        assert own.socket_path == path
    await poll_until(partial(has_passed, progress + 50), "progress after the restarts")
    is_over = True
    started = time.monotonic()
    turns = await asyncio.gather(*agents)
    assert time.monotonic() - started < 5
    for number in range(8):
        found = await service.get_session(app_name="a", user_id="u", session_id=f"s{number}")
        expected = [f"{turn:04}" for turn in range(turns[number])]
        assert ids_of(found.events) == expected[-1000:]
        assert found.state == {"turn": turns[number] - 1}
    await service.aclose()
