"""Exceptions and reprs: what leaves the process, and what must not show a password."""

from __future__ import annotations

import copy
import inspect
import multiprocessing
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from typing import Any

import pytest
import redis
import redis.asyncio
from support.events import NOON

import sessionstore
import sessionstore.sync
from sessionstore import (
    Event,
    NotReplicated,
    RunContext,
    Runner,
    Session,
    SessionStoreError,
    StaleVersion,
    instances,
)
from sessionstore.run_context import RunState

SECRET = "hunter2"
SESSION = Session("app", "user", "sid", {"k": SECRET}, [Event("u", SECRET)], 3, NOON, NOON)


def subclasses(kind: type[SessionStoreError]) -> Iterator[type[SessionStoreError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from subclasses(child)


SAMPLES: dict[str, Any] = {
    "limit": 5,
    "actual": 7,
    "expected": 6,
    "expires_at": NOON,
    "key": "session:{a:u}:s",
    "maybe_applied": True,
    "confirmed": 1,
    "replies": [[b"OK", 1]],
    "data_key": "~key",
}


def make(kind: type[SessionStoreError]) -> SessionStoreError:
    """An exception of a class, every attribute filled in."""
    names = [
        parameter.name
        for parameter in inspect.signature(kind.__init__).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY
    ]
    error = kind("what happened", **{name: SAMPLES[name] for name in names})
    if isinstance(error, NotReplicated):
        error.result = SESSION
    error.add_note("a note")
    return error


COPIES: dict[str, Callable[[Any], Any]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda error: pickle.loads(pickle.dumps(error)),
    "oldest pickle": lambda error: pickle.loads(pickle.dumps(error, 0)),
}


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("kind", sorted(set(subclasses(SessionStoreError)), key=str))
def test_an_exception_keeps_its_attributes(kind: type[SessionStoreError], how: str) -> None:
    error = make(kind)
    found = COPIES[how](error)
    assert type(found) is kind
    assert (str(found), found.args) == ("what happened", error.args)
    assert vars(found) == vars(error)
    assert found.__notes__ == ["a note"]


def test_every_class_is_tested() -> None:
    kinds = set(subclasses(SessionStoreError))
    public = {getattr(sessionstore, name) for name in sessionstore.__all__}
    errors = {kind for kind in public if isinstance(kind, type) and issubclass(kind, Exception)}
    assert errors <= kinds
    assert sum(bool(set(vars(make(kind))) - {"__notes__"}) for kind in kinds) >= 9


def go_stale() -> None:
    raise StaleVersion("at version 7, not 6", expected=6, actual=7)


def test_an_exception_leaves_a_process_of_a_pool() -> None:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        error = pool.submit(go_stale).exception(60)
    assert isinstance(error, StaleVersion)
    assert (str(error), error.expected, error.actual) == ("at version 7, not 6", 6, 7)


# -- reprs ----------------------------------------------------------------------------------------


def test_the_repr_of_a_session_is_short() -> None:
    expected = (
        "Session(app_name='app', user_id='user', id='sid', version=3, 1 events, 1 state keys)"
    )
    assert repr(SESSION) == expected


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://localhost", "redis://localhost"),
        (f"redis://:{SECRET}@localhost:6379/0", "redis://localhost:6379/0"),
        (f"rediss://user:{SECRET}@[::1]:1/2?ssl_cert_reqs=none", "rediss://[::1]:1/2"),
        (f"redis://localhost?password={SECRET}", "redis://localhost"),
        (f"redis://a@b:{SECRET}@localhost", "redis://localhost"),
        (f"redis://localhost?username=a@b&password={SECRET}", "a URL that cannot be read"),
        (f"unix://u:{SECRET}@/tmp/a.sock?db=1", "unix:///tmp/a.sock"),
        ("unix:///tmp/a@b.sock?db=1", "unix:///tmp/a@b.sock"),
        ("redis://[x", "redis://[x"),
        (f"redis+cluster://u:{SECRET}@a:1,b:2", "redis+cluster://a:1,b:2"),
        (f"redis+sentinel://:{SECRET}@a:1,b:2/main/0", "redis+sentinel://a:1,b:2/main/0"),
        (f"redis://:{SECRET}/x@localhost", "a URL that cannot be read"),
        (f"redis://:{SECRET}?x@localhost", "a URL that cannot be read"),
        (f"redis://:{SECRET}#x@localhost", "a URL that cannot be read"),
    ],
)
def test_a_url_is_shown_without_credentials(url: str, shown: str) -> None:
    assert instances.url_without_credentials(url) == shown
    instance = instances.RedisInstance(url, {"password": SECRET, "ssl": True})
    assert repr(instance) == f"RedisInstance({shown!r}, options: password, ssl)"


@pytest.mark.parametrize("module", [sessionstore, sessionstore.sync])
def test_a_service_shows_its_kind_and_address(module: Any) -> None:
    assert repr(module.InMemorySessionService()) == "InMemorySessionService()"
    service = module.RedisSessionService(
        f"redis://:{SECRET}@host:1/2", extra_options={"username": SECRET}
    )
    assert repr(service) == "RedisSessionService(redis://host:1/2)"
    sessionstore.register_redis_instance("of a repr", "redis://named", password=SECRET)
    service = module.RedisSessionService(instance_name="of a repr")
    assert repr(service) == "RedisSessionService(redis://named)"
    kind: Any = redis.asyncio.Redis if module is sessionstore else redis.Redis
    for client, shown in (
        (kind(host="host", port=1, db=2, password=SECRET), "redis://host:1/2"),
        (kind(unix_socket_path="/a.sock", password=SECRET), "unix:///a.sock"),
    ):
        service = module.RedisSessionService(client=client)
        assert repr(service) == f"RedisSessionService({shown})"


class Agent:
    def __repr__(self) -> str:
        return f"Agent(api_key={SECRET!r})"

    async def run(self, context: RunContext) -> Any:
        yield Event("agent", context.message)


def test_a_runner_and_its_runs_are_shown_without_what_was_said() -> None:
    service = sessionstore.RedisSessionService(f"redis://:{SECRET}@host")
    runner = Runner("app", Agent(), service)
    assert repr(runner) == (
        "Runner(app_name='app', agent=Agent, session_service=RedisSessionService(redis://host))"
    )
    run = runner.run("user", "sid", Event("user", SECRET, invocation_id="i"))
    key = "SessionKey(app_name='app', user_id='user', session_id='sid')"
    assert repr(run) == f"Run({key}, invocation_id='i')"
    context = RunContext(SESSION, SECRET, "i", RunState(SESSION))
    context.state["new"] = SECRET
    assert SECRET not in repr(context)
    assert repr(context.state) == "RunState(2 keys, 1 changed)"


def test_the_version_is_that_of_the_distribution() -> None:
    assert sessionstore.__version__ == version("sessionstore")
