"""The inspector over HTTP: who gets in, what it refuses, how it reports errors, how it ends."""

from __future__ import annotations

import json
import os
import pty
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any
from urllib.parse import quote

import pytest
import redis
from click.testing import CliRunner
from support.inspector import MAIN, Client, Inspector, inspecting
from support.waiting import wait_until
from web_support import TTLS
from web_support import service as service
from web_support import store as store

from sessionstore import Event, SessionKey
from sessionstore.cli import command_line
from sessionstore.embedded import EmbeddedServer
from sessionstore.sync import RedisSessionService

KEY = SessionKey("shop", "ann", "today")
AT = "at=shop/ann/today"
PATHS = (
    "/",
    "/health",
    "/go?app=shop",
    "/users?at=shop",
    "/sessions?at=shop/ann",
    f"/session?{AT}",
    f"/facts?{AT}",
    f"/search?{AT}&text=mug",
    f"/raw/event?{AT}&position=1",
    f"/raw/session?{AT}",
    f"/live?{AT}",
    f"/delete?{AT}",
    "/erase?at=shop/ann",
    "/no-such-page",
)

LISTENED = b"session:{shop:ann}:today"  # its header says that somebody listens


@pytest.fixture(scope="module")
def inspector(store: EmbeddedServer) -> Iterator[Inspector]:
    with inspecting(store.url) as found:
        yield found
        assert found.stop() == (0, "")


@pytest.fixture(scope="module")
def client(inspector: Inspector) -> Client:
    return Client(inspector)


@pytest.fixture(scope="module")
def deleting(store: EmbeddedServer) -> Iterator[Client]:
    with inspecting(store.url, "--allow-delete") as found:
        yield Client(found)


@pytest.fixture
def session(service: RedisSessionService) -> SessionKey:
    created = service.create_session(
        app_name="shop", user_id="ann", session_id="today", state={"user:a": 1, "app:b": 2, "c": 3}
    )
    service.append_events(created, [Event("user", f"mug {number}") for number in range(60)])
    return KEY


def test_the_link_works_once(store: EmbeddedServer) -> None:
    terminal, stdin = pty.openpty()
    with inspecting(store.url, terminal=stdin) as inspector:
        client = Client(inspector)
        path = inspector.link.removeprefix(inspector.origin)
        assert client.get(path).headers["location"] == "/"  # this browser has access
        other = client.send("GET", path, Cookie=None)
        assert (other.status, "set-cookie" in other.headers) == (403, False)
        assert "press Enter in the terminal" in other.text
        os.write(terminal, b"\n")
        link = inspector.next_link()
        assert link != inspector.link
        assert client.send("HEAD", link.removeprefix(inspector.origin), Cookie=None).status == 403
        wrong = f"{path}x"
        assert client.send("GET", wrong, Cookie=None).status == 403
        assert client.send("GET", link.removeprefix(inspector.origin), Cookie=None).status == 303
    os.close(terminal)
    os.close(stdin)


def test_the_cookie_is_not_for_scripts_nor_for_other_sites(store: EmbeddedServer) -> None:
    with inspecting(store.url) as inspector:
        client = Client(inspector)
        path = inspector.link.removeprefix(inspector.origin)
        cookie = client.get(path).headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=strict" in cookie


@pytest.mark.parametrize("cookie", [None, "", "x=y", "COOKIE=", "COOKIE=é"])
def test_without_the_cookie_every_page_is_refused(client: Client, cookie: str | None) -> None:
    name = client.cookie.partition("=")[0]
    given = cookie and cookie.replace("COOKIE", name)
    for path in PATHS:
        answer = client.send("GET", path, Cookie=given)
        assert answer.status == 403, path
        assert "mug" not in answer.text
    assert client.send("POST", f"/delete?{AT}", Cookie=given).status == 403


@pytest.mark.parametrize("host", ["example.org", "127.0.0.1.example.org", "", "[::1", "10.0.0.1"])
def test_another_host_name_is_refused(client: Client, host: str) -> None:
    for path in ("/", "/enter?token=x", "/static/inspector.css"):
        connection = client.connection()
        connection.putrequest("GET", path, skip_host=True)
        connection.putheader("Host", host)
        connection.putheader("Cookie", client.cookie)
        connection.endheaders()
        assert connection.getresponse().status == 400, path
        connection.close()


@pytest.mark.parametrize("host", ["localhost:1", "127.0.0.1", "[::1]:8000", "LOCALHOST"])
def test_the_near_end_of_a_tunnel_is_accepted(client: Client, host: str) -> None:
    assert client.get("/", Host=host).status == 200


@pytest.mark.usefixtures("session")
def test_every_response_has_the_policy(client: Client) -> None:
    for path in (*PATHS[:10], "/no-such-page", "/static/inspector.js", "/session?at=x", "/enter"):
        answer = client.get(path)
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy, path
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "same-origin"
        assert answer.headers["cache-control"] == "no-store"
    refused = client.send("GET", "/", Cookie=None)
    assert "default-src 'none'" in refused.headers["content-security-policy"]


@pytest.mark.usefixtures("session")
def test_without_the_option_nothing_can_be_deleted(client: Client) -> None:
    for path in (f"/delete?{AT}", "/erase?at=shop/ann"):
        assert client.get(path).status == 404
        assert client.send("POST", path, "id=today").status == 404
    for path in (f"/session?{AT}", "/sessions?at=shop/ann"):
        page = client.get(path).text
        assert "/delete" not in page
        assert "/erase" not in page
        assert client.send("POST", path).status == 405


@pytest.mark.usefixtures("session")
def test_a_form_needs_its_token_and_the_id(
    store: EmbeddedServer, service: RedisSessionService
) -> None:
    with inspecting(store.url, "--allow-delete") as inspector:
        client = Client(inspector)
        path = f"/delete?{AT}"
        [token] = re.findall(r'name="form_token" value="([^"]+)"', client.get(path).text)
        body = f"form_token={token}&id=today"
        assert client.send("POST", path, "id=today").status == 403
        assert client.send("POST", path, f"form_token=x{token}&id=today").status == 403
        assert client.send("POST", path, body, Origin="http://127.0.0.1:1").status == 403
        assert client.send("POST", path, body, Origin="null").status == 403
        assert client.send("POST", path, f"form_token={token}&id=Today").status == 400
        assert client.send("POST", path, f"form_token={token}").status == 400
        assert client.send("POST", path, "x" * 100_000).status == 400
        assert service.get_events(KEY).events
        assert client.send("POST", path, body, Origin=inspector.origin).status == 200
        assert service.list_sessions(app_name="shop", user_id="ann") == []


ODD_IDS = ["..", "a/b", "a\nb\r\nc", "a\0b", "\u202eabc", "%2F", "a+b c", "{x}", "ü", "?a=b&c#d"]


@pytest.mark.parametrize("odd", ODD_IDS)
def test_any_id_can_be_opened_searched_and_deleted(
    service: RedisSessionService, deleting: Client, odd: str
) -> None:
    session = service.create_session(app_name="shop", user_id=odd, session_id=odd)
    service.append_event(session, Event("user", "a mug"))
    at = quote(f"shop/{quote(odd, safe='')}/{quote(odd, safe='')}", safe="/")
    page = deleting.get(f"/session?at={at}")
    assert page.status == 200
    assert "a mug" in page.text
    [place] = re.findall(r'name="at" value="([^"]+)"', page.text)
    found = deleting.get(f"/search?at={quote(place, safe='')}&text=MUG")
    assert "<mark>mug</mark>" in found.text
    assert json.loads(deleting.get(f"/raw/session?at={at}").text)["id"] == odd
    form = deleting.get(f"/delete?at={at}").text
    [token] = re.findall(r'name="form_token" value="([^"]+)"', form)
    [to_type] = re.findall(r"type <code>([^<]+)</code>", form)
    body = f"form_token={token}&id={quote(to_type)}"
    assert "The session was deleted" in deleting.send("POST", f"/delete?at={at}", body).text
    assert service.list_sessions(app_name="shop", user_id=odd) == []


@pytest.mark.usefixtures("session")
@pytest.mark.parametrize(
    "path",
    [
        "/session",
        "/session?at=a/b",
        "/session?at=a/b/c/d",
        "/session?at=%25FF/b/c",
        "/session?at=a//c",
        f"/session?at=a/b/{'x' * 300}",
        f"/session?{AT}&before=x",
        f"/raw/event?{AT}",
        "/sessions?at=shop/ann&after=x",
        f"/live?{AT}&after=x",
        f"/session?{AT}&around=99999999999999999",
    ],
)
def test_an_address_that_is_not_valid_is_refused(client: Client, path: str) -> None:
    answer = client.get(path)
    assert answer.status == 400
    assert "This address is not valid" in answer.text


def test_a_session_that_does_not_exist_is_named(client: Client) -> None:
    for path in ("/session", "/facts", "/search", "/raw/session"):
        answer = client.get(f"{path}?at=shop/ann/none&text=x")
        assert answer.status == 404
        assert "session &#39;none&#39; of user &#39;ann&#39;" in answer.text


@pytest.mark.usefixtures("session")
def test_damaged_data_is_an_error_and_not_a_missing_session(
    store: EmbeddedServer, service: RedisSessionService, client: Client
) -> None:
    raw = redis.Redis(unix_socket_path=store.socket_path)
    service.create_session(app_name="shop", user_id="ann", session_id="whole")
    raw.zremrangebyrank("events:{shop:ann}:today", 0, 4)
    answer = client.get(f"/session?{AT}")
    assert answer.status == 500
    assert "holds 55 of 60 events" in answer.text
    assert "State of the session" in answer.text
    assert "holds 55 of 60 events" in client.get(f"/search?{AT}&text=x").text
    raw.hset("session:{shop:ann}:today", "version", "x")
    answer = client.get(f"/session?{AT}")
    assert (answer.status, "Stored data is damaged" in answer.text) == (500, True)
    listed = client.get("/sessions?at=shop/ann")
    assert listed.status == 200  # one damaged session does not hide the others
    assert {"today", "whole"} <= set(re.findall(r'<bdi class="id">(\w+)</bdi>', listed.text))
    raw.hset("userdata:{shop:ann}", "a", "{")
    listed = client.get("/sessions?at=shop/ann")
    assert listed.status == 500
    assert "The state of the user cannot be read: <bdi>userdata:{shop:ann}" in listed.text
    assert ">whole<" in listed.text
    raw.close()


def test_a_server_that_is_down_is_an_error_and_not_a_missing_session() -> None:
    with EmbeddedServer() as server, inspecting(server.url) as inspector:
        client = Client(inspector)
        assert client.get("/").status == 200
        server.stop()
        paths = ["/", f"/session?{AT}", "/sessions?at=shop/ann", f"/raw/session?{AT}"]
        with ThreadPoolExecutor() as threads:  # each waits for the timeout
            live = threads.submit(client.get, f"/live?{AT}")
            answers = list(threads.map(client.get, paths))
        for answer in answers:
            assert answer.status == 503
            assert "The server cannot be reached" in answer.text
        assert '"kind":"problem"' in live.result().text
        assert inspector.stop() == (0, "")


@pytest.mark.usefixtures("session")
def test_no_page_changes_a_deadline_or_a_value(store: EmbeddedServer, client: Client) -> None:
    raw = redis.Redis(unix_socket_path=store.socket_path)
    raw.zadd("sessions:{shop:ann}", {"expired": 1})

    def stored() -> dict[bytes, tuple[Any, Any]]:
        keys: Any = raw.keys("*")
        return {key: (raw.pexpiretime(key), raw.dump(key)) for key in keys}

    before = stored()
    assert len(before) == 5
    for path in PATHS[:10]:
        client.get(path)
    with client.following(f"/live?{AT}") as messages:
        kinds = [message["kind"] for message in islice(messages, 61)]
        after = stored()
    assert kinds == ["ready"] + ["event"] * 60
    assert {key for key in before if before[key] != after[key]} <= {LISTENED}
    assert {key: at for key, (at, _) in before.items()} == {
        key: at for key, (at, _) in after.items()
    }
    raw.close()


def test_a_page_continues_where_it_was_cut_off(
    service: RedisSessionService, client: Client, session: SessionKey
) -> None:
    page = client.get(f"/session?{AT}").text
    [cursor] = re.findall(r'data-cursor="([^"]+)"', page)
    shown = re.findall(r"mug (\d+)", page.partition('id="events"')[2].partition("<aside")[0])
    assert shown == [str(number) for number in range(10, 60)]
    service.append_event(session, Event("user", "while nobody looks"))
    position = service.get_events(session, newest=True, limit=2).first
    assert position is not None
    service.rewind_session(session, to=position)
    service.append_event(session, Event("assistant", "another answer"))
    with client.following(f"/live?{AT}&after={cursor}") as messages:
        seen = list(islice(messages, 2))
        service.append_event(session, Event("user", "and live"))
        seen.append(next(messages))
    assert [each["kind"] for each in seen] == ["ready", "event", "event"]
    assert "another answer" in seen[1]["html"]
    with client.following(f"/live?{AT}&after={cursor}", Last_Event_ID=seen[1]["id"]) as messages:
        again = list(islice(messages, 2))
    assert "and live" in again[1]["html"]
    with client.following(f"/live?{AT}", Last_Event_ID=seen[2]["id"]) as messages:
        next(messages)
        service.rewind_session(session, to=position)
        change = next(messages)
        assert (change["kind"], change["first"]) == ("change", position + 1)
        service.delete_session(app_name="shop", user_id="ann", session_id="today")
        end = next(messages)
        assert (end["kind"], end["text"]) == ("end", "The session was deleted, or it expired.")


def test_fragments_are_followed(store: EmbeddedServer, client: Client, session: SessionKey) -> None:
    with RedisSessionService(store.url, stream_ttl=60, **TTLS) as writer:
        [cursor] = re.findall(r'data-cursor="([^"]+)"', client.get(f"/session?{AT}").text)
        for text in ("Hel", "lo"):
            writer.append_event(session, Event("assistant", text, partial=True))
        with client.following(f"/live?{AT}&after={cursor}") as messages:
            fragments = list(islice(messages, 1, 3))
            assert [(each["kind"], each["text"]) for each in fragments] == [
                ("fragment", "Hel"),
                ("fragment", "lo"),
            ]
            writer.append_event(session, Event("assistant", "Hello"))
            assert next(messages)["writer"] == fragments[0]["writer"]


def test_a_session_that_does_not_exist_is_not_followed_again_and_again(client: Client) -> None:
    with client.following("/live?at=shop/ann/none") as messages:
        end = list(messages)[-1]
    assert (end["kind"], "does not exist" in end["text"]) == ("end", True)


def test_damage_is_not_read_again_and_again(
    store: EmbeddedServer, client: Client, session: SessionKey
) -> None:
    raw = redis.Redis(unix_socket_path=store.socket_path)
    with client.following(f"/live?{AT}") as messages:
        assert len(list(islice(messages, 61))) == 61
        raw.zadd(f"events:{{shop:ann}}:{session.session_id}", {"{": 2**52})
        raw.hincrby("session:{shop:ann}:today", "version", 1)
        end = list(messages)[-1]
    assert (end["kind"], "does not decode" in end["text"]) == ("end", True), end
    raw.close()


@pytest.mark.usefixtures("session")
def test_links_to_older_and_newer_events_lead_to_events(client: Client) -> None:
    def part(name: str, position: int | None) -> tuple[list[int], set[str]]:
        page = client.get(f"/session?{AT}&{name}={position}").text
        found = [int(each) for each in re.findall(r"mug (\d+)", page)]
        return found, set(re.findall(r'id="(older|newer)"', page))

    with_positions = re.findall(r'id="p(\d+)"', client.get(f"/session?{AT}&after=0").text)
    at = [int(each) for each in with_positions]
    assert part("after", 0) == (list(range(50)), {"older", "newer"})
    assert part("after", at[49])[0] == list(range(50, 60))
    assert part("before", at[40]) == (list(range(40)), {"newer"})
    assert part("around", at[0]) == (list(range(26)), {"newer"})
    assert part("around", at[30]) == (list(range(6, 56)), {"older", "newer"})


def test_events_that_were_trimmed_meanwhile_end_the_stream(
    store: EmbeddedServer, client: Client, session: SessionKey
) -> None:
    [cursor] = re.findall(r'data-cursor="([^"]+)"', client.get(f"/session?{AT}").text)
    with RedisSessionService(store.url, session_event_limit=5, **TTLS) as writer:
        for number in range(20):
            writer.append_event(session, Event("user", f"later {number}"))
        with client.following(f"/live?{AT}&after={cursor}") as messages:
            end = list(messages)[-1]
    assert end["kind"] == "end"
    assert "trimmed" in end["text"]


def test_header_state_summary_and_turn_are_shown(
    service: RedisSessionService, client: Client, session: SessionKey
) -> None:
    page = service.get_events(session, limit=30)
    summary = "They want mugs <b>"
    service.compact_session(session, upto=page.positions[-1], summary=summary, if_version=None)
    turn = service.acquire_turn(session)
    service.fork_session(session, session_id="copy")
    shown = " ".join(re.sub(r"<[^>]+>", " ", client.get(f"/facts?{AT}").text).split())
    assert "events 60 of at most 1,000" in shown
    assert "currency" not in shown
    assert "State of the application b 2 State of the user a 1 State of the session c 3" in shown
    assert "They want mugs &lt;b&gt;" in shown
    assert f"events up to {page.positions[-1]}. The log still has 30 of them." in shown
    assert re.search(r"turn held by \w+ , ends in \d+ s", shown)
    assert "The summary covers the events above" in client.get(f"/session?{AT}").text
    copy = client.get("/session?at=shop/ann/copy").text
    assert "copied from" in copy
    assert "turn</dt><dd>free" in copy
    service.release_turn(turn)


def test_a_tier_with_many_keys_is_cut(service: RedisSessionService, client: Client) -> None:
    state = {f"k{number:04d}": "x" * 100_000 for number in range(250)}
    service.create_session(app_name="shop", user_id="ann", session_id="today", state=state)
    page = client.get(f"/session?{AT}")
    assert "50 more keys" in page.text
    assert len(page.text) < 2_500_000


@pytest.mark.usefixtures("session")
@pytest.mark.parametrize("rights", ["", "+info +config|get +slowlog|get +memory|usage"])
def test_a_user_who_may_only_read_sees_every_page(
    store: EmbeddedServer, service: RedisSessionService, rights: str
) -> None:
    raw: Any = redis.Redis(unix_socket_path=store.socket_path)
    rules = "reset on >password ~* +@read +@connection +multi +exec +time -memory"
    raw.execute_command("ACL", "SETUSER", "reader", *rules.split(), *rights.split())
    url = store.url.replace("unix://", "unix://reader:password@")
    with inspecting(url) as inspector:
        client = Client(inspector)
        for path in PATHS[:7]:
            answer = client.get(path)
            assert answer.status in (200, 303), path
            assert "password" not in answer.text
        page = client.get(f"/session?{AT}").text
        assert ("<dt>size</dt><dd>?" in page) is (not rights)
        [cursor] = re.findall(r'data-cursor="([^"]+)"', page)
        with client.following(f"/live?{AT}&after={cursor}") as messages:
            next(messages)
            service.append_event(KEY, Event("user", "one more"))
            assert "one more" in next(messages)["html"]
    raw.execute_command("ACL", "DELUSER", "reader")
    raw.close()


def test_prefix_and_partition_are_those_of_the_services(store: EmbeddedServer) -> None:
    options: Any = {"key_prefix": "p*:", "partition_by": "app"}
    with (
        RedisSessionService(store.url, **TTLS, **options) as writer,
        inspecting(store.url, "--key-prefix", "p*:", "--partition-by", "app") as inspector,
    ):
        session = writer.create_session(app_name="shop", user_id="eve", session_id="today")
        client = Client(inspector)
        wait_until(lambda: ">eve<" in client.get("/users?at=shop").text, "the scan")
        with client.following("/live?at=shop/eve/today") as messages:
            assert next(messages)["kind"] == "ready"
            writer.append_event(session, Event("user", "Hello"))
            assert "Hello" in next(messages)["html"]
        writer.delete_user(app_name="shop", user_id="eve")


@pytest.mark.usefixtures("session")
def test_ctrl_c_ends_it_while_pages_follow(store: EmbeddedServer) -> None:
    with inspecting(store.url) as inspector:
        client = Client(inspector)
        with client.following(f"/live?{AT}") as messages:
            assert len(list(islice(messages, 61))) == 61
            assert inspector.stop() == (0, "")


def test_a_port_that_is_in_use_gives_one_sentence(store: EmbeddedServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        result = CliRunner().invoke(
            command_line(), ["web", "--url", store.url, "--port", str(port)]
        )
    assert result.exit_code == 2
    assert result.stderr == f"Error: cannot use port {port}: Address already in use\n"


def test_a_missing_server_gives_one_sentence() -> None:
    result = CliRunner().invoke(command_line(), ["web", "--url", "redis://localhost:1"])
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: redis://localhost:1: ")


@pytest.mark.parametrize("library", ["jinja2", "starlette", "uvicorn"])
def test_without_the_extra_one_sentence_names_it(library: str) -> None:
    code = f"import sys; sys.modules[{library!r}] = None; {MAIN}"
    process = subprocess.run(
        [sys.executable, "-c", code, "web", "--url", "redis://localhost:1"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert process.returncode == 2
    assert process.stderr == (
        "Error: The web inspector needs the extra `web`: pip install 'sessionstore[web]'\n"
    )
