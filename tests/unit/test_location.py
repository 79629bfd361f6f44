"""URLs of clusters and of masters behind Sentinels, taken apart."""

from __future__ import annotations

import pytest
import redis
import redis.asyncio

import sessionstore.sync
from sessionstore import InvalidArgument, RedisSessionService, register_redis_instance
from sessionstore.transport.location import Location, locate
from sessionstore.transport.topology import ONLY, Node


@pytest.mark.parametrize(
    "url",
    [
        "redis://localhost",
        "redis://u:p@h:1/2?x=y",
        "rediss://h:1",
        "unix:///tmp/a+b.sock?db=1",
        "redis://h:1/0?client_name=a+cluster://b",
    ],
)
def test_a_plain_url_is_left_as_it_is(url: str) -> None:
    assert locate(url) == Location("", (), "", url)


@pytest.mark.parametrize(
    ("url", "nodes", "plain"),
    [
        ("redis+cluster://a:1", [("a", 1)], "redis://a:1"),
        ("redis+cluster://a", [("a", 6379)], "redis://a:6379"),
        ("redis+cluster://a:1,b,c:3", [("a", 1), ("b", 6379), ("c", 3)], "redis://a:1"),
        ("rediss+cluster://a:1,b:2/", [("a", 1), ("b", 2)], "rediss://a:1"),
        ("redis+cluster://a:1/0", [("a", 1)], "redis://a:1/0"),
        ("redis+cluster://a:1?x=y", [("a", 1)], "redis://a:1?x=y"),
        ("redis+cluster://a:1/?x=/y@z", [("a", 1)], "redis://a:1?x=/y@z"),
        ("redis+cluster://u:p%40q@a:1,b:2", [("a", 1), ("b", 2)], "redis://u:p%40q@a:1"),
        ("redis+cluster://:p,q@a:1", [("a", 1)], "redis://:p,q@a:1"),
        ("redis+cluster://[::1]:7,[fe80::1]", [("::1", 7), ("fe80::1", 6379)], "redis://[::1]:7"),
        ("redis+cluster://10.0.0.1:65535", [("10.0.0.1", 65535)], "redis://10.0.0.1:65535"),
        ("redis+cluster://my-host.x_y.z:1", [("my-host.x_y.z", 1)], "redis://my-host.x_y.z:1"),
    ],
)
def test_a_cluster(url: str, nodes: list[tuple[str, int]], plain: str) -> None:
    assert locate(url) == Location("cluster", tuple(Node(*each) for each in nodes), "", plain)


@pytest.mark.parametrize(
    ("url", "nodes", "name", "plain"),
    [
        ("redis+sentinel://a:1/m", [("a", 1)], "m", "redis://a:1"),
        ("redis+sentinel://a/m", [("a", 26379)], "m", "redis://a:26379"),
        ("redis+sentinel://a:1,b:2/m/3", [("a", 1), ("b", 2)], "m", "redis://a:1/3"),
        ("rediss+sentinel://u:p@a:1/m/0?x=y", [("a", 1)], "m", "rediss://u:p@a:1/0?x=y"),
        ("redis+sentinel://a:1/my-master.1/", [("a", 1)], "my-master.1", "redis://a:1"),
    ],
)
def test_a_master_behind_sentinels(
    url: str, nodes: list[tuple[str, int]], name: str, plain: str
) -> None:
    expected = tuple(Node(host, port, is_sentinel=True) for host, port in nodes)
    assert locate(url) == Location("sentinel", expected, name, plain)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "must start with"),
        ("localhost:6379", "must start with"),
        ("http://a", "not http://"),
        ("redis+clusters://a:1", r"not redis\+clusters://"),
        ("redis+://a:1", "must start with"),
        ("unix+cluster:///tmp/x", "must start with"),
        ("cluster+redis://a", "must start with"),
        ("REDIS+CLUSTER://a:1", "must start with"),
        ("redis+cluster://", "addresses"),
        ("redis+cluster://a:1,", "addresses"),
        ("redis+cluster://,a:1", "addresses"),
        ("redis+cluster://a:1 ,b:2", "addresses"),
        ("redis+cluster://a:", "addresses"),
        ("redis+cluster://a:x", "addresses"),
        ("redis+cluster://a:-1", "addresses"),
        ("redis+cluster://::1", "addresses"),
        ("redis+cluster://a:0", "port 0 is not"),
        ("redis+cluster://a:65536", "port 65536 is not"),
        ("redis+cluster://u:p@ss@a:1", "percent-encode"),
        ("redis+cluster://a:1/1", "only database 0"),
        ("redis+cluster://a:1/m", "only database 0"),
        ("redis+sentinel://a:1", "needs /master_name"),
        ("redis+sentinel://a:1/", "needs /master_name"),
        ("redis+sentinel://a:1?x=y", "needs /master_name"),
        ("redis+sentinel://a:1/m/0/x", "unexpected text"),
        ("redis+sentinel:///m", "addresses"),
    ],
)
def test_what_cannot_be_read_is_refused(url: str, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        locate(url)
    with pytest.raises(InvalidArgument, match="url"):
        RedisSessionService(url)


@pytest.mark.parametrize(
    "url",
    [
        "redis+cluster://u:hunter2@a:99999",
        "redis+cluster://u:hunter2@",
        "redis+cluster://u:hunter2@a:1/x",
        "redis+cluster://u:hunter2@x@a:1",
        "redis+cluster://u:hunter2/@a:1",
        "redis+cluster://u:hunter2?@a:1",
        "redis+sentinel://u:hunter2@a:1",
        "redis+sentinel://u:hunter2@a:1/m/x",
        "hunter2://a",
        "u:hunter2://a",
        "redis+cluster://a:hunter2",
        "redis+cluster://a:1?socket_timeout=hunter2",
    ],
)
def test_no_message_quotes_a_password(url: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        RedisSessionService(url)
    shown = str(caught.value)
    assert "hunter2" not in shown or url.startswith("hunter2")  # the scheme is shown


@pytest.mark.parametrize("url", ["redis://u:hunter2@a", "redis+cluster://u:hunter2@a:1"])
def test_no_repr_shows_a_password(url: str) -> None:
    assert "hunter2" not in repr(locate(url))


def test_the_options_of_a_url_and_of_an_instance_reach_every_node() -> None:
    register_redis_instance("a-cluster", "redis+cluster://a:1,b:2", client_name="me")
    service = RedisSessionService(instance_name="a-cluster")
    deployment: object = service._executor._deployment  # type: ignore[attr-defined]
    for node in (Node("a", 1), Node("b", 2), Node("elsewhere", 3)):
        connection = deployment.address_of(node).new_connection()  # type: ignore[attr-defined]
        assert (connection.host, connection.port) == (node.host, node.port)
        assert connection.client_name == "me"


def test_sentinels_have_credentials_of_their_own() -> None:
    service = RedisSessionService(
        "redis+sentinel://u:p@s:1/m/3",
        extra_options={"sentinel_options": {"password": "q"}},
    )
    deployment: object = service._executor._deployment  # type: ignore[attr-defined]
    sentinel = deployment.address_of(Node("s", 1, True)).new_connection()  # type: ignore[attr-defined]
    assert (sentinel.username, sentinel.password, sentinel.db) == (None, "q", 0)
    master = deployment.address_of(Node("m", 2)).new_connection()  # type: ignore[attr-defined]
    assert (master.username, master.password, master.db) == ("u", "p", 3)
    assert (master.host, master.port) == ("m", 2)


def test_a_client_without_a_connect_timeout_gets_the_default() -> None:
    client = redis.asyncio.Redis(host="h", socket_connect_timeout=None)
    client.connection_pool.connection_kwargs["socket_connect_timeout"] = None
    service = RedisSessionService(client=client)
    deployment: object = service._executor._deployment  # type: ignore[attr-defined]
    assert deployment.address_of(ONLY).connect_timeout_s == 5.0  # type: ignore[attr-defined]


def test_a_client_of_the_wrong_kind_is_named_in_full() -> None:
    right, wrong = "redis.asyncio.Redis", "redis.Redis"
    with pytest.raises(InvalidArgument, match=f"client must be a {right}, not {wrong}$"):
        RedisSessionService(client=redis.Redis(host="h"))
    with pytest.raises(InvalidArgument, match=f"client must be a {wrong}, not {right}$"):
        sessionstore.sync.RedisSessionService(client=redis.asyncio.Redis(host="h"))
    with pytest.raises(InvalidArgument, match=f"client must be a {right}, not str$"):
        RedisSessionService(client="redis://h")
