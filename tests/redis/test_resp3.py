"""Connecting: both protocols, passwords, users, databases, settings of a redis-py client."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
import redis.asyncio
import redis.asyncio.sentinel
from redis_support import IDS, STATE
from support.events import ids_of, make_event
from support.operations import OPERATIONS, Operation, each_operation
from support.scene import KEY, prepare, shown
from support.servers import Server
from support.services import WITH_TTL, both_modes, make_service
from support.waiting import wait_until

import sessionstore
from sessionstore import BackendError, BackendRejected, BackendUnavailable, InvalidArgument, calls
from sessionstore.embedded import EmbeddedServer
from sessionstore.model import Event

PASSWORD = "correct horse/battery@staple:%"


@pytest.fixture
def guarded(server: Server) -> Iterator[EmbeddedServer]:
    """A server with a password, and with a user who has another one."""
    config = {"requirepass": PASSWORD}
    with EmbeddedServer(executable=server.embedded.executable, config=config) as own:
        with redis.Redis(unix_socket_path=own.socket_path, password=PASSWORD) as raw:
            raw.acl_setuser(
                "agent", enabled=True, passwords=["+hers"], keys=["*"], commands=["+@all"]
            )
        yield own


@both_modes
@each_operation()
async def test_both_protocols_give_the_same(
    server: Server, mode: str, operation: Operation
) -> None:
    results = []
    for protocol in (2, 3):
        service = make_service(mode, server.url, extra_options={"protocol": protocol})
        scene = await prepare(service, server, operation)
        results.append(shown(await operation.run(service, scene)))
        found = await service.get_session(**IDS)
        results.append(shown(found))
        await service.aclose()
    assert results[:2] == results[2:]


@both_modes
async def test_positions_are_the_same_in_both_protocols(server: Server, mode: str) -> None:
    services = [
        make_service(mode, server.url, extra_options={"protocol": protocol}) for protocol in (2, 3)
    ]
    await prepare(services[0], server)
    await services[0].append_event(KEY, Event("x", id="now"))
    for arguments in ({}, {"limit": 2}, {"before": 1 << 52, "limit": 2}, {"after": 5}):
        pages = [await service.get_events(KEY, **arguments) for service in services]
        assert pages[0] == pages[1]
        assert {type(at) for page in pages for at in (page.first, page.last)} == {int}
    for service in services:
        await service.aclose()


@both_modes
@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("user", [None, "agent"])
async def test_the_right_password(
    guarded: EmbeddedServer, mode: str, protocol: int, user: str | None
) -> None:
    options = {"password": PASSWORD, "protocol": protocol}
    if user is not None:
        options.update(username=user, password="hers")
    service = make_service(mode, guarded.url, extra_options=options)
    await service.create_session(**IDS, state=STATE)
    await service.append_event(KEY, make_event("e1"))
    found = await service.get_session(**IDS)
    assert found.state == STATE
    assert ids_of(found.events) == ["e1"]
    await service.aclose()


@both_modes
@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"password": "do not quote me"},
        {"username": "agent", "password": "do not quote me"},
        {"username": "nobody", "password": "do not quote me"},
    ],
    ids=["missing", "wrong", "wrong of a user", "no such user"],
)
async def test_a_wrong_or_missing_password_is_one_clear_sentence_at_once(
    guarded: EmbeddedServer, mode: str, protocol: int, options: dict[str, str]
) -> None:
    service = make_service(
        mode, guarded.url, extra_options={**options, "protocol": protocol}, call_timeout=8
    )
    started = time.monotonic()
    tries: tuple[Callable[[], Any], ...] = (
        lambda: service.create_session(**IDS),
        lambda: service.append_event(KEY, make_event("e1")),
        lambda: service.get_session(**IDS),
        lambda: service.get_user_state("a", "u"),
    )
    for call in tries:
        with pytest.raises(BackendUnavailable) as caught:
            await call()
        message = str(caught.value)
        assert "password" in message or "credentials" in message
        assert "quote" not in message
        assert "\n" not in message
        assert not caught.value.maybe_applied
    assert time.monotonic() - started < 6
    await service.aclose()


@both_modes
async def test_a_password_in_the_url(guarded: EmbeddedServer, mode: str) -> None:
    service = make_service(mode, f"{guarded.url}?username=agent&password=hers")
    await service.create_session(**IDS)
    await service.aclose()
    service = make_service(mode, f"{guarded.url}?username=agent&password=not+hers")
    with pytest.raises(BackendUnavailable) as caught:
        await service.create_session(**IDS)
    assert "not hers" not in str(caught.value)
    assert "not+hers" not in str(caught.value)
    await service.aclose()


@both_modes
async def test_a_password_that_is_changed_while_connected(
    guarded: EmbeddedServer, mode: str
) -> None:
    service = make_service(mode, guarded.url, extra_options={"password": PASSWORD}, call_timeout=8)
    await service.create_session(**IDS)
    with redis.Redis(unix_socket_path=guarded.socket_path, password=PASSWORD) as raw:
        raw.config_set("requirepass", "another")
        # Open connections stay authenticated, so they are closed here.
        raw.client_kill_filter(_type="normal", skipme=True)
        started = time.monotonic()
        for _ in range(2):
            with pytest.raises(BackendUnavailable) as caught:
                await service.append_event(KEY, make_event("e1"))
        assert time.monotonic() - started < 6
        assert PASSWORD not in str(caught.value)
        raw.config_set("requirepass", PASSWORD)
    await service.append_event(KEY, make_event("e1"))
    found = await service.get_session(**IDS)
    assert ids_of(found.events) == ["e1"]
    await service.aclose()


async def test_a_user_without_permission_gets_backend_rejected(guarded: EmbeddedServer) -> None:
    with redis.Redis(unix_socket_path=guarded.socket_path, password=PASSWORD) as raw:
        raw.acl_setuser("reader", enabled=True, passwords=["+his"], keys=["*"], commands=["+@read"])
    options = {"username": "reader", "password": "his"}
    async with sessionstore.RedisSessionService(guarded.url, extra_options=options) as service:
        with pytest.raises(BackendRejected) as caught:
            await service.create_session(**IDS)
        assert "permission" in str(caught.value)
        assert not caught.value.maybe_applied


# -- a redis-py client's settings -------------------------------------------------------------


def make_client(mode: str, **options: Any) -> Any:
    library: Any = redis.asyncio if mode == "async" else redis
    return library.Redis(**options)


async def close_client(client: Any) -> None:
    if isinstance(client, redis.asyncio.Redis):
        await client.aclose()
    else:
        client.close()


@both_modes
@pytest.mark.parametrize("protocol", [None, 2, 3])
async def test_a_clients_settings_are_taken(
    guarded: EmbeddedServer, mode: str, protocol: int | None
) -> None:
    client = make_client(
        mode,
        unix_socket_path=guarded.socket_path,
        username="agent",
        password="hers",
        db=3,
        client_name="mine",
        **({} if protocol is None else {"protocol": protocol}),
    )
    service = make_service(mode, None, client=client)
    await service.create_session(**IDS, state=STATE)
    with redis.Redis(unix_socket_path=guarded.socket_path, password=PASSWORD, db=3) as raw:
        assert raw.exists("session:{a:u}:s")
        assert {entry["name"] for entry in raw.client_list() if entry["user"] == "agent"} == {
            "mine"
        }
    await service.aclose()
    # The client itself has not changed.
    answer = client.ping()
    assert (await answer) if mode == "async" else answer
    await close_client(client)


@both_modes
async def test_a_client_from_a_url(server: Server, mode: str) -> None:
    library: Any = redis.asyncio if mode == "async" else redis
    client = library.Redis.from_url(
        f"{server.url}?db=2", socket_timeout=5, health_check_interval=30
    )
    service = make_service(mode, None, client=client)
    await service.create_session(**IDS)
    with redis.Redis(unix_socket_path=server.embedded.socket_path, db=2) as raw:
        assert raw.exists("session:{a:u}:s")
        raw.flushdb()
    await service.aclose()
    await close_client(client)


@both_modes
async def test_unusable_clients(server: Server, mode: str) -> None:
    path = server.embedded.socket_path
    client = make_client(mode, unix_socket_path=path, decode_responses=True)
    with pytest.raises(InvalidArgument, match="decode_responses"):
        make_service(mode, None, client=client)
    await close_client(client)
    other = make_client("sync" if mode == "async" else "async", unix_socket_path=path)
    with pytest.raises(InvalidArgument, match="client must be a redis"):
        make_service(mode, None, client=other)
    await close_client(other)
    client = make_client(mode, unix_socket_path=path)
    with pytest.raises(InvalidArgument, match="together"):
        make_service(mode, server.url, client=client)
    await close_client(client)
    with pytest.raises(InvalidArgument, match="client must be"):
        make_service(mode, None, client=server.url)


@both_modes
async def test_clients_of_sentinels_and_clusters_are_refused(mode: str) -> None:
    library: Any = redis.asyncio if mode == "async" else redis
    sentinel = library.sentinel.Sentinel([("h", 1)])
    for client in (sentinel, sentinel.master_for("m"), sentinel.slave_for("m")):
        with pytest.raises(InvalidArgument, match=r"give the service a redis\+sentinel:// URL"):
            make_service(mode, None, client=client)
    # Its constructor connects.
    cluster = library.RedisCluster.__new__(library.RedisCluster)
    with pytest.raises(InvalidArgument, match=r"give the service a redis\+cluster:// URL"):
        make_service(mode, None, client=cluster)


class FailingProvider(redis.CredentialProvider):
    """Cannot reach the place where passwords are."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def get_credentials(self) -> Any:
        raise self.error

    async def get_credentials_async(self) -> Any:
        raise self.error


@both_modes
@pytest.mark.parametrize("error", [RuntimeError("secret"), KeyError("secret"), ValueError()])
async def test_a_credential_provider_that_fails(
    server: Server, mode: str, error: Exception
) -> None:
    provider = FailingProvider(error)
    service = make_service(mode, server.url, extra_options={"credential_provider": provider})
    with pytest.raises(
        BackendUnavailable, match=f"credential_provider .*{type(error).__name__}"
    ) as caught:
        await service.create_session(**IDS)
    assert "secret" not in str(caught.value)
    assert not caught.value.maybe_applied
    await service.aclose()


@both_modes
@pytest.mark.parametrize(
    "option", ["socket_timeout=5", "health_check_interval=5", "max_connections=5"]
)
async def test_options_of_a_url_that_have_no_effect_are_refused(mode: str, option: str) -> None:
    with pytest.raises(InvalidArgument, match=f"option {option[:-2]} is not allowed: ") as caught:
        make_service(mode, f"redis://u:hidden@h?{option}")
    assert "hidden" not in str(caught.value)


@both_modes
async def test_databases_are_apart(server: Server, mode: str) -> None:
    services = [make_service(mode, f"{server.url}?db={number}") for number in (0, 1)]
    await services[0].create_session(**IDS)
    assert await services[1].get_session(**IDS) is None
    await services[1].create_session(**IDS)
    for number, service in enumerate(services):
        await service.aclose()
        with redis.Redis(unix_socket_path=server.embedded.socket_path, db=number) as raw:
            assert raw.dbsize() == 2
            raw.flushdb()


async def test_a_registered_instance(server: Server) -> None:
    sessionstore.register_redis_instance("of this test", server.url, protocol=3)
    for mode in ("async", "sync"):
        service = make_service(mode, None, instance_name="of this test")
        await service.get_or_create_session(**IDS)
        await service.aclose()


@pytest.mark.parametrize("hidden", ["socket_timeout", "retry_on_timeout", "decode_responses"])
async def test_options_that_would_break_the_promises_are_refused(
    server: Server, hidden: str
) -> None:
    with pytest.raises(InvalidArgument, match=hidden):
        sessionstore.RedisSessionService(server.url, extra_options={hidden: 1})


# -- servers that cannot be used---------------------------------------------------------------


def test_the_error_names_a_server_that_is_too_old() -> None:
    # The reply of Redis 6.2 to a script that begins with `#!lua`.
    text = "ERR Error compiling script (new function): user_script:1: unexpected symbol near '#'"
    call = calls.Call("append_event", lambda replies: replies)
    error = calls.reply_error(call, text)
    assert isinstance(error, BackendRejected)
    assert str(error) == (
        "append_event was refused by the server: it is too old to run `#!lua` scripts; "
        "Redis 7.0 or later or Valkey 7.2 or later is needed"
    )


@both_modes
async def test_writes_to_a_read_only_replica_fail(server: Server, mode: str) -> None:
    service = make_service(mode, server.url)
    [needs_turn] = [each for each in OPERATIONS if each.name == "renew_turn"]
    scene = await prepare(service, server, needs_turn)
    before = server.snapshot()
    # It could be a failover, so each call is retried until its deadline.
    hasty = make_service(mode, server.url, call_timeout=1)
    # A replica of a master that does not exist keeps what it has.
    server.raw.replicaof("127.0.0.1", "1")
    try:
        writing = [operation for operation in OPERATIONS if operation.kind != "read"]
        calls_of = (operation.run(hasty, scene) for operation in writing)
        errors = await asyncio.gather(*calls_of, return_exceptions=True)
        assert server.snapshot() == before
    finally:
        server.raw.replicaof("NO", "ONE")
    refused = [error for error in errors if "read-only replica" in str(error)]
    for error in refused:
        assert isinstance(error, BackendRejected)
        assert not error.maybe_applied
    # The deadline of a few may pass while the last attempt is on its way.
    assert len(refused) > len(writing) / 2
    assert all(isinstance(error, BackendError) for error in errors)
    await hasty.aclose()
    await service.append_event(KEY, make_event("new"))
    await service.aclose()


@both_modes
async def test_a_server_that_ends_connections_that_idle(server: Server, mode: str) -> None:
    """With `timeout` in the configuration of a server, the next call of any kind works."""
    before = len(server.raw.client_list())
    service = make_service(mode, server.url)
    await prepare(service, server)
    for _ in range(3):
        await service.get_session(**IDS)
        await service.get_user_state("a", "u")
        server.raw.client_kill_filter(_type="normal", skipme=True)
        wait_until(lambda: len(server.raw.client_list()) <= before, "the end of the connections")
        for _ in range(5):
            await asyncio.sleep(0)  # let the event loop notice it
        assert (await service.pop_event(KEY)) is not None
        server.raw.client_kill_filter(_type="normal", skipme=True)
        await service.update_user_state("a", "u", {"n": 1})
    found = await service.get_session(**IDS)
    assert found.events == []
    await service.aclose()


async def test_options_of_services_and_of_instances_are_merged(server: Server) -> None:
    sessionstore.register_redis_instance("named", server.url, client_name="instance")
    async with sessionstore.RedisSessionService(
        instance_name="named", extra_options={"client_name": "service"}, **WITH_TTL
    ) as service:
        await service.get_or_create_session(**IDS)
        names = {entry["name"] for entry in server.raw.client_list()}
        assert "service" in names
        assert "instance" not in names
