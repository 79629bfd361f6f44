"""Options of the services: the error names the option that is not valid and shows no secret."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import redis
import redis.asyncio

import sessionstore
import sessionstore.sync
from sessionstore import InvalidArgument, SessionKey, instances, register_redis_instance

URL = "redis://localhost:6379/0"
SECRET = "s3cret"

KINDS: dict[str, Callable[..., Any]] = {
    "redis-async": lambda **options: sessionstore.RedisSessionService(URL, **options),
    "redis-sync": lambda **options: sessionstore.sync.RedisSessionService(URL, **options),
    "memory-async": sessionstore.InMemorySessionService,
    "memory-sync": sessionstore.sync.InMemorySessionService,
}
REDIS: dict[str, Callable[..., Any]] = {
    "async": sessionstore.RedisSessionService,
    "sync": sessionstore.sync.RedisSessionService,
}
LIBRARIES: dict[str, Any] = {"async": redis.asyncio, "sync": redis}

each_kind = pytest.mark.parametrize("kind", KINDS)
each_redis = pytest.mark.parametrize("mode", REDIS)


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instances, "_registry", {})


# -- options of all services --------------------------------------------------------------------

NO_COUNTS: list[Any] = [0, -1, 10**5000, True, False, "5", 5.0, [5]]
NO_DURATIONS: list[Any] = [
    0,
    0.0,
    -1,
    -0.5,
    float("nan"),
    float("inf"),
    float("-inf"),
    True,
    "5",
    timedelta(0),
    timedelta(seconds=-1),
    10**400,
]
NO_TTLS: list[Any] = [*NO_DURATIONS, 0.0001, timedelta(microseconds=1), 1e300, timedelta.max]

BAD_OPTIONS: list[tuple[str, Any]] = [
    *(("session_event_limit", value) for value in NO_COUNTS),
    *(("event_size_limit", value) for value in [*NO_COUNTS, None, (64 << 20) + 1]),
    *(("value_size_limit", value) for value in [*NO_COUNTS, None, (64 << 20) + 1]),
    *(("summary_size_limit", value) for value in [*NO_COUNTS, None, (64 << 20) + 1]),
    *(("session_ttl", value) for value in NO_TTLS),
    *(("user_state_ttl", value) for value in NO_TTLS),
    *(("app_state_ttl", value) for value in NO_TTLS),
    *(("app_state_max_age", value) for value in NO_TTLS),
    *(("refresh_ttl_on_read", value) for value in (None, 0, 1, "yes")),
    *(("key_prefix", value) for value in ("{", "a}b", None, b"x", 5, "x" * 257, "\ud800")),
    *(("compression", value) for value in ("zstd", True, b"", 3)),
    *(("codec", value) for value in ("", "JSON", "pickle", None, b"json")),
    *(("partition_by", value) for value in ("", "session", None, "User")),
]


def short(value: Any) -> str:
    return repr(value)[:20] if not isinstance(value, int) or value < 10**6 else "huge"


@each_kind
@pytest.mark.parametrize(("name", "value"), BAD_OPTIONS, ids=short)
def test_a_bad_option_is_refused_by_name(kind: str, name: str, value: Any) -> None:
    with pytest.raises(InvalidArgument, match=rf"^{name}\b"):
        KINDS[kind](**{name: value})


@each_kind
@pytest.mark.parametrize(
    "options",
    [
        {"session_event_limit": None},
        {"session_event_limit": 1},
        {"session_ttl": None, "user_state_ttl": None, "app_state_ttl": None},
        {"session_ttl": 0.001},
        {"session_ttl": timedelta(milliseconds=1)},
        {"session_ttl": timedelta(days=36_500)},
        {"session_ttl": 3600, "refresh_ttl_on_read": False},
        {"key_prefix": "team:agents:"},
        {"codec": "msgpack", "partition_by": "app"},
        {"compression": sessionstore.Zstd(level=19)},
        {"event_size_limit": 1, "value_size_limit": 1, "summary_size_limit": 1},
        {"event_size_limit": 64 << 20, "value_size_limit": 64 << 20},
    ],
    ids=repr,
)
def test_a_good_option_is_taken(kind: str, options: dict[str, Any]) -> None:
    assert KINDS[kind](**options) is not None


@each_kind
@pytest.mark.parametrize("name", ["sesion_ttl", "max_events", "decode_responses", "password"])
def test_an_unknown_option_is_a_type_error(kind: str, name: str) -> None:
    with pytest.raises(TypeError, match=name):
        KINDS[kind](**{name: 1})


@pytest.mark.parametrize("kind", ["memory-async", "memory-sync"])
@pytest.mark.parametrize("value", NO_DURATIONS, ids=short)
def test_a_bad_cleanup_interval_is_refused_by_name(kind: str, value: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"^cleanup_interval\b"):
        KINDS[kind](cleanup_interval=value)


@pytest.mark.parametrize("kind", ["memory-async", "memory-sync"])
@pytest.mark.parametrize("value", [5, "now", datetime(2024, 5, 15, tzinfo=UTC)], ids=repr)
def test_a_bad_clock_is_refused_by_name(kind: str, value: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"^clock\b"):
        KINDS[kind](clock=value)


@each_redis
@pytest.mark.parametrize("value", [*NO_DURATIONS, None], ids=short)
def test_a_bad_call_timeout_is_refused_by_name(mode: str, value: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"^call_timeout\b"):
        REDIS[mode](URL, call_timeout=value)


@pytest.mark.parametrize("mode", sorted(REDIS))
@pytest.mark.parametrize(
    "value",
    [1, (1,), [1, 0.1], (0, 0.1), (True, 0.1), (1.0, 0.1), (1, 0), (1, "1"), (1, None), (1, 10.5)],
)
def test_a_bad_wait_for_replicas_is_refused_by_name(mode: str, value: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"^wait_replicas\b"):
        REDIS[mode](URL, wait_replicas=value)


@pytest.mark.parametrize("mode", sorted(REDIS))
@pytest.mark.parametrize("value", ["replicas", None, 1])
def test_a_bad_place_to_read_from_is_refused_by_name(mode: str, value: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"^read_from\b"):
        REDIS[mode](URL, read_from=value, refresh_ttl_on_read=False)


@pytest.mark.parametrize("mode", sorted(REDIS))
def test_replicas_cannot_move_deadlines(mode: str) -> None:
    with pytest.raises(InvalidArgument, match="needs refresh_ttl_on_read=False"):
        REDIS[mode]("redis+cluster://localhost:1", read_from="replica")


@pytest.mark.parametrize("mode", sorted(REDIS))
def test_a_single_server_has_no_replicas_to_read_from(mode: str) -> None:
    with pytest.raises(InvalidArgument, match=r"needs a redis\+cluster:// or redis\+sentinel://"):
        REDIS[mode](URL, read_from="replica", refresh_ttl_on_read=False)


# -- where the server is ------------------------------------------------------------------------


@each_redis
@pytest.mark.parametrize(
    "url",
    [
        "redis://localhost",
        "redis://localhost:6380/3",
        "redis://user:pass%2Fword@localhost:6379/0",
        "redis://localhost?db=3&protocol=3",
        "redis://[::1]:6379/0",
        "rediss://localhost:6379/0?ssl_cert_reqs=required",
        "unix:///run/redis.sock",
        "unix://user:pass@/run/redis.sock?db=1",
    ],
)
def test_a_good_url_is_taken_and_nothing_is_sent(mode: str, url: str) -> None:
    assert REDIS[mode](url) is not None


BAD_URLS = [
    "",
    "localhost",
    "localhost:6379",
    f"http://:{SECRET}@localhost",
    f"REDIS+tls://:{SECRET}@localhost",
    f"valkey://:{SECRET}@localhost",
    f"//:{SECRET}@localhost",
    f"redis:/:{SECRET}@localhost",
    "unix://",
    f"unix://:{SECRET}@",
    f"unix://:{SECRET}@/run/redis.sock?db=x",
    f"redis://:{SECRET}@localhost/name",
    f"redis://:{SECRET}@localhost/0/1",
    f"redis://:{SECRET}@localhost/-1",
    f"redis://:{SECRET}@localhost/²",
    f"redis://:{SECRET}@localhost?db=name",
    f"redis://:{SECRET}@localhost:port",
    f"redis://:{SECRET}@localhost:99999",
    f"redis://:{SECRET}@[::1",
    f"redis://:{SECRET}/word@localhost:6379/0",
    f"redis://:{SECRET}#word@localhost:6379/0",
    f"redis://:{SECRET}?word@localhost:6379/0",
    f"redis://user:{SECRET}/@localhost:6379/0",
    f"redis://:{SECRET}@localhost?decode_responses=true",
    f"redis://:{SECRET}@localhost?decode_responses=false",
    f"redis://:{SECRET}@localhost?retry_on_timeout=true",
    f"redis://:{SECRET}@localhost?socket_timeout=5",
    f"redis://:{SECRET}@localhost?socket_connect_timeout={SECRET}",
    f"redis://:{SECRET}@localhost?unknown={SECRET}",
    f"redis://localhost?password={SECRET}&unknown=1",
]


@each_redis
@pytest.mark.parametrize("url", BAD_URLS)
def test_a_bad_url_is_refused_without_quoting_it(mode: str, url: str) -> None:
    with pytest.raises(InvalidArgument, match=r"url|option") as caught:
        REDIS[mode](url)
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@each_redis
@pytest.mark.parametrize("url", [b"redis://localhost", 5, ["redis://localhost"]])
def test_a_url_that_is_no_text_is_refused(mode: str, url: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"^url\b"):
        REDIS[mode](url)


@each_redis
def test_an_option_of_the_url_is_named(mode: str) -> None:
    with pytest.raises(InvalidArgument, match="no_such_option"):
        REDIS[mode](f"{URL}?no_such_option=1")
    with pytest.raises(InvalidArgument, match="decode_responses"):
        REDIS[mode](f"{URL}?decode_responses=yes")


@each_redis
def test_no_address_is_refused(mode: str) -> None:
    with pytest.raises(InvalidArgument, match="url, instance_name or client must be given"):
        REDIS[mode]()


# -- extra_options ------------------------------------------------------------------------------


@each_redis
@pytest.mark.parametrize(
    "name",
    [
        "decode_responses",
        "encoding",
        "health_check_interval",
        "parser_class",
        "retry",
        "retry_on_error",
        "retry_on_timeout",
        "socket_timeout",
        "no_such_option",
    ],
)
def test_an_extra_option_that_is_unknown_or_the_services_own_is_named(mode: str, name: str) -> None:
    with pytest.raises(InvalidArgument, match=name):
        REDIS[mode](URL, extra_options={name: None})
    register_redis_instance("with-option", URL, **{name: None})
    with pytest.raises(InvalidArgument, match=name):
        REDIS[mode](instance_name="with-option")


@each_redis
@pytest.mark.parametrize("value", [[("db", 1)], "db=1", 5, {"db"}])
def test_extra_options_that_are_no_dict_are_refused(mode: str, value: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"^extra_options\b"):
        REDIS[mode](URL, extra_options=value)


@each_redis
def test_extra_options_with_other_keys_than_text_are_refused(mode: str) -> None:
    with pytest.raises(InvalidArgument, match=r"option"):
        REDIS[mode](URL, extra_options={5: 1})


@each_redis
def test_extra_options_are_not_kept_or_changed(mode: str) -> None:
    options = {"socket_keepalive": True}
    REDIS[mode](URL, extra_options=options)
    assert options == {"socket_keepalive": True}


@each_redis
def test_a_secret_extra_option_is_not_quoted(mode: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        REDIS[mode](URL, extra_options={"password": SECRET, "no_such_option": SECRET})
    assert SECRET not in str(caught.value)


# -- client -------------------------------------------------------------------------------------


@each_redis
def test_a_client_is_taken_and_not_connected(mode: str) -> None:
    client = LIBRARIES[mode].Redis.from_url(URL)
    assert REDIS[mode](client=client) is not None


@each_redis
def test_a_client_that_decodes_is_refused(mode: str) -> None:
    for client in (
        LIBRARIES[mode].Redis(decode_responses=True),
        LIBRARIES[mode].Redis.from_url(f"{URL}?decode_responses=true"),
    ):
        with pytest.raises(InvalidArgument, match="decode_responses"):
            REDIS[mode](client=client)


@each_redis
def test_what_is_no_client_is_refused(mode: str) -> None:
    other = {"async": redis.Redis(), "sync": redis.asyncio.Redis()}[mode]
    for client in (other, URL, object(), LIBRARIES[mode].Redis):
        with pytest.raises(InvalidArgument, match=r"^client\b"):
            REDIS[mode](client=client)


@each_redis
def test_a_client_goes_with_no_other_address(mode: str) -> None:
    client = LIBRARIES[mode].Redis()
    with pytest.raises(InvalidArgument, match="client"):
        REDIS[mode](URL, client=client)
    with pytest.raises(InvalidArgument, match="client"):
        REDIS[mode](instance_name="name", client=client)


# -- named instances ----------------------------------------------------------------------------


def instance_of(**arguments: Any) -> instances.RedisInstance:
    names = ("url", "instance_name", "extra_options")
    return instances.find_instance(*[arguments.get(name) for name in names])


@each_redis
def test_an_unknown_instance_is_refused_with_the_known_ones(mode: str) -> None:
    with pytest.raises(InvalidArgument, match=r"'main'.*none"):
        REDIS[mode](instance_name="main")
    register_redis_instance("spare", f"redis://:{SECRET}@localhost")
    register_redis_instance("backup", URL)
    with pytest.raises(InvalidArgument, match=r"'main'.*backup, spare") as caught:
        REDIS[mode](instance_name="main")
    assert SECRET not in str(caught.value)


@each_redis
@pytest.mark.parametrize("name", [5, ["main"], {}])
def test_an_instance_name_that_is_no_text_is_refused(mode: str, name: Any) -> None:
    with pytest.raises(InvalidArgument, match="instance"):
        REDIS[mode](instance_name=name)


@pytest.mark.parametrize(
    ("name", "url", "bad"),
    [("", URL, "name"), (None, URL, "name"), (5, URL, "name"), ("n", "", "url"), ("n", 5, "url")],
)
def test_a_bad_registration_is_refused(name: Any, url: Any, bad: str) -> None:
    with pytest.raises(InvalidArgument, match=rf"^{bad}\b"):
        register_redis_instance(name, url)


@each_redis
def test_a_registered_instance_is_used_by_name(mode: str) -> None:
    register_redis_instance("main", URL, socket_keepalive=True)
    assert REDIS[mode](instance_name="main") is not None
    assert instance_of(instance_name="main").extra_options == {"socket_keepalive": True}


def test_registering_again_replaces_the_address() -> None:
    register_redis_instance("main", "redis://one", socket_keepalive=True)
    register_redis_instance("main", "redis://two")
    found = instance_of(instance_name="main")
    assert (found.url, found.extra_options) == ("redis://two", {})


@each_redis
def test_the_url_wins_over_the_name(mode: str) -> None:
    assert REDIS[mode](URL, instance_name="never-registered") is not None
    register_redis_instance("main", "redis://one", socket_keepalive=True)
    found = instance_of(url=URL, instance_name="main")
    assert (found.url, found.extra_options) == (URL, {})


def test_options_of_the_service_win_over_those_of_the_instance() -> None:
    register_redis_instance("main", URL, socket_keepalive=True, username="a")
    found = instance_of(instance_name="main", extra_options={"username": "b"})
    assert found.extra_options == {"socket_keepalive": True, "username": "b"}
    assert instance_of(instance_name="main").extra_options["username"] == "a"


@each_redis
def test_a_bad_url_of_an_instance_is_refused_without_quoting_it(mode: str) -> None:
    register_redis_instance("main", f"http://:{SECRET}@localhost")
    with pytest.raises(InvalidArgument, match="url") as caught:
        REDIS[mode](instance_name="main")
    assert SECRET not in str(caught.value)


# -- instants -----------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [datetime(2024, 5, 15), "2024-05-15", 1_700_000_000, 1.5, True])
async def test_an_instant_without_timezone_is_refused_by_name(value: Any) -> None:
    async with sessionstore.InMemorySessionService() as service:
        names: dict[str, Any] = {"app_name": "a", "user_id": "u", "session_id": "s"}
        await service.create_session(**names)
        with pytest.raises(InvalidArgument, match=r"^event_time\b"):
            await service.get_session(**names, event_time=value)
        with pytest.raises(InvalidArgument, match=r"^event_time\b"):
            await service.get_or_create_session(**names, event_time=value)
        event = sessionstore.Event("user", timestamp=value)
        with pytest.raises(InvalidArgument, match=r"^event\.timestamp\b"):
            await service.append_event(SessionKey("a", "u", "s"), event)
