"""The inspector in Chromium: every page, following live, hostile content, keyboard and phone."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import demo
import pytest
from support.inspector import Inspector, inspecting
from web_support import TTLS
from web_support import service as service
from web_support import store as store

from benchmarks.rigs.nodes import free_ports
from benchmarks.rigs.proxy import Proxy
from sessionstore import Event, SessionKey
from sessionstore.cli.web.addresses import address
from sessionstore.embedded import EmbeddedServer
from sessionstore.sync import RedisSessionService

CHROMIUM = shutil.which("chromium")
if CHROMIUM is None:
    pytest.skip("chromium is not installed", allow_module_level=True)
playwright: Any = pytest.importorskip("playwright.sync_api")

KEY = SessionKey("shop", "ann", "today")
ADDRESS = "/session?at=shop/ann/today"
PHONE = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}


class Browser:
    """A browser that opened the link of an inspector. It notes everything that went wrong."""

    def __init__(self, chromium: Any, inspector: Inspector) -> None:
        self._chromium = chromium
        self._cookies: Any = None
        self.inspector = inspector
        self.problems: list[str] = []

    def open(self, path: str, **options: Any) -> Any:
        """A new page, in a window of its own."""
        context = self._chromium.new_context(
            storage_state=self._cookies, base_url=self.inspector.origin, **options
        )
        context.set_default_timeout(10_000)
        page = context.new_page()
        page.on("pageerror", lambda error: self.problems.append(f"error: {error}"))
        page.on("console", self._note)
        page.on("dialog", lambda dialog: self.problems.append(f"dialog: {dialog.message}"))
        if self._cookies is None:
            page.goto(self.inspector.link)
            self._cookies = context.storage_state()
        page.goto(path)
        return page

    def _note(self, message: Any) -> None:
        self.problems.append(f"console: {message.text}")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        launched = started.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def shared(chromium: Any, store: EmbeddedServer) -> Iterator[Browser]:
    with inspecting(store.url, "--allow-delete") as inspector:
        yield Browser(chromium, inspector)
        assert inspector.stop() == (0, "")


@pytest.fixture
def browser(shared: Browser) -> Iterator[Browser]:
    """The browser. At the end nothing may have gone wrong."""
    shared.problems.clear()
    yield shared
    assert shared.problems == []
    for context in shared._chromium.contexts:
        context.close()


@pytest.fixture
def session(service: RedisSessionService) -> SessionKey:
    created = service.create_session(
        app_name="shop",
        user_id="ann",
        session_id="today",
        state={"app:currency": "EUR", "user:language": "en", "cart": ["mug"]},
    )
    service.append_events(created, [Event("user", f"mug {number}") for number in range(130)])
    return KEY


def shown(page: Any) -> list[str]:
    """The texts of the events in a page."""
    texts: list[str] = page.locator("#events .event .text").all_inner_texts()
    return texts


def wait_for(page: Any, condition: str, argument: Any = None) -> None:
    """Wait until a condition holds in a page."""
    page.wait_for_function(condition, arg=argument)


def is_live(page: Any) -> None:
    """Wait until a page follows."""
    page.locator('#live[data-state="on"]').wait_for()


@pytest.mark.usefixtures("session")
def test_every_page_can_be_reached_by_links(browser: Browser) -> None:
    page = browser.open("/?again=1")
    page.get_by_role("link", name="shop").click()
    page.get_by_role("link", name="ann").click()
    page.get_by_text("State of the user").wait_for()
    page.get_by_role("link", name="today").click()
    is_live(page)
    facts = page.inner_text("#facts")
    assert "130 of at most 1,000" in facts
    assert re.search(r"State of the application\s+currency\s+\"EUR\"", facts)
    assert re.search(r"State of the session\s+cart\s+\[\"mug\"\]", facts)
    page.locator("#events .event").last.get_by_role("link", name="raw").click()
    page.get_by_text('"content": "mug 129"').wait_for()
    page.goto("/")
    page.get_by_role("link", name=re.compile("health|checking|problem")).click()
    page.locator("#found:not([data-again])").wait_for()
    assert "a round trip takes" in page.inner_text("main")


@pytest.mark.usefixtures("session")
def test_the_form_of_the_overview_leads_to_a_session(browser: Browser) -> None:
    page = browser.open("/")
    page.get_by_role("textbox", name="App").fill("shop")
    page.get_by_label("User").fill("ann")
    page.get_by_label("Session").fill("today")
    page.get_by_role("button", name="Open").click()
    is_live(page)
    assert page.url.endswith(ADDRESS)


@pytest.mark.usefixtures("session")
def test_older_events_are_added_without_a_gap(browser: Browser) -> None:
    page = browser.open(ADDRESS)
    is_live(page)
    assert shown(page) == [f"mug {number}" for number in range(80, 130)]
    last = page.locator("#events .event").last
    assert last.bounding_box()["y"] < 720  # it begins at the newest event
    for oldest in (30, 0):
        page.get_by_role("link", name="Older events").click()
        wait_for(page, "n => document.querySelectorAll('.event .text').length >= n", 131 - oldest)
        assert shown(page) == [f"mug {number}" for number in range(oldest, 130)]
    assert page.get_by_role("link", name="Older events").count() == 0


@pytest.mark.usefixtures("session")
def test_pages_work_without_scripts(browser: Browser) -> None:
    page = browser.open(ADDRESS, java_script_enabled=False)
    seen = shown(page)
    while page.get_by_role("link", name="Older events").count():
        with page.expect_navigation():
            page.get_by_role("link", name="Older events").click()
        seen = shown(page) + seen
    assert seen == [f"mug {number}" for number in range(130)]
    with page.expect_navigation():
        page.get_by_role("link", name="Newer events").click()
    assert shown(page) == [f"mug {number}" for number in range(30, 80)]


def test_a_page_follows_every_event_once(
    browser: Browser, service: RedisSessionService, session: SessionKey
) -> None:
    [port] = free_ports(1)
    with Proxy(int(browser.inspector.origin.rpartition(":")[2]), port=port) as proxy:
        follow_through_failures(browser, service, session, proxy, f"http://127.0.0.1:{port}")
    browser.problems = [each for each in browser.problems if "net::ERR_" not in each]


def follow_through_failures(
    browser: Browser, service: RedisSessionService, session: SessionKey, proxy: Proxy, origin: str
) -> None:
    page = browser.open(origin + ADDRESS)
    expected = [f"mug {number}" for number in range(80, 130)]

    def append(*texts: str) -> None:
        service.append_events(session, [Event("assistant", text) for text in texts])
        expected.extend(texts)

    append("before it follows")
    is_live(page)
    append(*(f"live {number}" for number in range(120)))
    last = "text => [...document.querySelectorAll('.event .text')].at(-2)?.innerText === text"
    wait_for(page, last, "live 119")
    proxy.refuse()
    page.locator('#live[data-state="waiting"]').wait_for()
    append(*(f"offline {number}" for number in range(30)))
    proxy.accept()
    wait_for(page, last, "offline 29")
    page.evaluate(HIDE, True)
    append(*(f"hidden {number}" for number in range(30)))
    page.evaluate(HIDE, False)
    wait_for(page, last, "hidden 29")
    is_live(page)
    assert shown(page) == expected
    wait_for(page, "() => document.getElementById('facts').innerText.includes('311 of')")


HIDE = """(hidden) => {
  Object.defineProperty(document, "hidden", { value: hidden, configurable: true })
  document.dispatchEvent(new Event("visibilitychange"))
}"""


def test_a_page_that_follows_for_long_stays_small(
    browser: Browser, service: RedisSessionService, session: SessionKey
) -> None:
    page = browser.open(ADDRESS)
    is_live(page)
    page.evaluate("scrollTo(0, 0)")
    for start in (0, 300):
        texts = [f"live {number}" for number in range(start, start + 300)]
        service.append_events(session, [Event("assistant", text) for text in texts])
    fresh = page.get_by_role("button", name="600 new events")
    fresh.wait_for()
    assert len(shown(page)) == 650  # nothing goes while somebody reads further up
    fresh.click()
    fresh.wait_for(state="hidden")
    service.append_event(session, Event("assistant", "live 600"))
    page.get_by_text("live 600").wait_for()
    assert shown(page) == [f"live {number}" for number in range(101, 601)]
    assert 0 < page.locator("#events .event").last.bounding_box()["y"] < 720
    with page.expect_navigation():
        page.evaluate("location.assign(document.getElementById('older').href)")
    assert shown(page) == [f"live {number}" for number in range(51, 101)]


def test_a_page_shows_what_is_removed_replaced_and_deleted(
    browser: Browser, service: RedisSessionService, session: SessionKey
) -> None:
    page = browser.open(ADDRESS)
    is_live(page)
    read = service.get_events(session, newest=True, limit=10)
    service.rewind_session(session, to=read.positions[5])
    page.get_by_text("4 events were removed here").wait_for()
    assert shown(page) == [f"mug {number}" for number in range(80, 126)]
    service.replace_event(session, read.positions[2], read.events[2], Event("user", "redacted"))
    page.get_by_text("redacted").wait_for()
    texts = [f"mug {number}" for number in range(80, 126)]
    texts[texts.index("mug 122")] = "redacted"
    assert shown(page) == texts
    service.delete_session(app_name="shop", user_id="ann", session_id="today")
    page.get_by_text("The session was deleted, or it expired.").wait_for()
    assert shown(page) == texts


def test_an_answer_is_shown_while_it_is_written(
    browser: Browser, store: EmbeddedServer, session: SessionKey
) -> None:
    page = browser.open(ADDRESS)
    is_live(page)
    with RedisSessionService(store.url, stream_ttl=60, **TTLS) as writer:
        for text in ("Two ", "mugs"):
            writer.append_event(session, Event("assistant", text, partial=True))
        wait_for(page, "() => document.getElementById('fragment').innerText.includes('Two mugs')")
        writer.append_event(session, Event("assistant", "Two mugs it is"))
        page.get_by_text("Two mugs it is").wait_for()
    assert page.locator("#fragment").is_hidden()


def test_the_first_event_of_an_empty_session_is_shown(
    browser: Browser, service: RedisSessionService
) -> None:
    session = service.create_session(app_name="shop", user_id="ann", session_id="today")
    page = browser.open(ADDRESS)
    assert page.get_by_text("There are no events here.").is_visible()
    is_live(page)
    service.append_event(session, Event("user", "Hello"))
    page.locator("#events .event").wait_for()
    assert page.locator("#events").inner_text().endswith("Hello")


@pytest.mark.usefixtures("session")
def test_a_search_leads_to_the_event(browser: Browser) -> None:
    page = browser.open(ADDRESS)
    page.keyboard.press("/")
    page.keyboard.type("MUG 64")
    page.keyboard.press("Enter")
    page.locator("mark").wait_for()
    assert page.locator("mark").all_inner_texts() == ["mug 64"]
    assert "1 event found in 130 events" in page.inner_text("main")
    page.locator(".matches a").click()
    event = page.locator(".event:target")
    assert "mug 64" in event.inner_text()
    assert 40 < event.bounding_box()["y"] < 700


SCRIPT = "window.broken = 1"
PAYLOADS = [
    f"<script>{SCRIPT}</script>",
    f"</script><script>{SCRIPT}</script>",
    f"<img src=x onerror='{SCRIPT}'>",
    f'"><svg onload="{SCRIPT}">',
    f"' autofocus onfocus='{SCRIPT}' x='",
    f"</pre></code></details></article><iframe srcdoc='<script>parent.{SCRIPT}</script>'>",
    f"javascript:{SCRIPT}",
    f"[click](javascript:{SCRIPT})",
    "{{ 7 * 7 }} {% raw %} ${7*7} #{7*7}",
    "</textarea></title><base href='//example.org'><meta http-equiv=refresh content='0;url=/x'>",
    "<style>*{display:none}</style><link rel=stylesheet href=//example.org/x.css>",
    "<form action=//example.org><input name=id autofocus></form>",
    "\u202egnirts desrever\u202c \u0000 \x1b[31m \ufeff \u2028 end",
    "data:text/html,<script>1</script>",
]


def payload_content(payload: str) -> Any:
    """A payload everywhere in a message."""
    image = f"data:image/svg+xml;base64,{payload}"
    return {
        "role": payload,
        "content": [
            {"type": "text", "text": payload},
            {"type": "input_image", "image_url": image},
            {"type": "input_image", "image_url": payload},
            {"type": "function_call", "name": payload, "arguments": payload},
            {"type": "function_call_output", "output": payload},
            {"unknown": {payload: payload}},
        ],
    }


def test_hostile_content_is_inert(browser: Browser, service: RedisSessionService) -> None:
    page = browser.open("/")
    for payload in PAYLOADS:
        session = service.create_session(
            app_name="shop",
            user_id=payload,
            session_id=payload,
            state={payload: payload, f"user:{payload}": {payload: payload}},
        )
        first, second = (
            Event(
                payload,
                payload_content(payload),
                invocation_id=payload,
                branch=payload,
                state_delta={f"{payload}2": payload},
                metadata={payload: payload},
            )
            for _ in range(2)
        )
        service.append_event(session, first)
        page.goto(address("session", "shop", payload, payload))
        is_live(page)
        service.append_event(session, second)
        page.locator("#events .event").nth(1).wait_for()
        page.evaluate("for (const fold of document.querySelectorAll('details')) fold.open = true")
        for text in page.locator("#events .event > .text").all_text_contents():
            assert text == payload.replace("\0", "")
        assert page.locator(".event img").count() == 0
        assert page.evaluate(INERT)
        page.goto(address("search", "shop", payload, payload, text=payload))
        assert page.evaluate(INERT)
        service.create_session(app_name="shop", user_id="ann", session_id=payload)
    for path in (
        address("sessions", "shop", "ann"),
        address("sessions", "shop", PAYLOADS[3]),
        address("delete", "shop", PAYLOADS[3], PAYLOADS[3]),
        address("raw/session", "shop", PAYLOADS[3], PAYLOADS[3]),
    ):
        page.goto(path)
        assert page.evaluate(INERT)
    page.goto("/users?at=shop&again=1")
    page.locator("#found:not([data-again])").wait_for()
    assert page.locator("tbody tr").count() == len(PAYLOADS) + 1
    assert page.evaluate(INERT)


INERT = """() => window.broken === undefined
  && !document.querySelector("main script, main iframe, main style, main link, main base, main svg")
  && !document.querySelector("main [onerror], main [onload], main [onfocus], main [srcdoc]")
  && [...document.querySelectorAll("a")].every((a) => a.protocol === "http:")
  && [...document.querySelectorAll("form")].every((form) => form.action.startsWith(location.origin))
"""


def test_images_are_shown(browser: Browser, service: RedisSessionService) -> None:
    session = service.create_session(app_name="shop", user_id="ann", session_id="today")
    image = {"type": "input_image", "image_url": f"data:image/png;base64,{demo.png(1, 2, 3)}"}
    service.append_event(session, Event("user", image))
    page = browser.open(ADDRESS)
    wait_for(page, "() => document.querySelector('.picture')?.naturalWidth === 96")


def test_long_instructions_are_folded(browser: Browser, service: RedisSessionService) -> None:
    session = service.create_session(app_name="shop", user_id="ann", session_id="today")
    service.append_event(session, Event("system", "Be kind."))
    service.append_event(session, Event("system", "Rules:\n" + "Be kind.\n" * 100))
    page = browser.open(ADDRESS)
    assert shown(page) == ["Be kind."]
    page.locator("summary").first.click()
    assert page.locator("#events pre").inner_text().startswith("Rules:\nBe kind.\nBe kind.")


def test_huge_events_are_cut(browser: Browser, service: RedisSessionService) -> None:
    session = service.create_session(app_name="shop", user_id="ann", session_id="today")
    for number in range(8):
        content = [
            {"type": "text", "text": f"{number} " + "x" * 1_500_000},
            {"type": "function_call_output", "output": "y" * 1_500_000},
        ]
        service.append_event(session, Event("agent", content))
    page = browser.open(ADDRESS)
    is_live(page)
    assert len(page.content()) < 300_000
    texts = shown(page)
    assert 1 <= len(texts) < 8  # a page reads 16 MiB at most
    assert texts[-1].startswith("7 x")
    assert "1,492,002 more characters" in texts[-1]
    with page.expect_response(re.compile("/raw/event")) as response:
        page.locator("#events .event").last.get_by_role("link", name="raw JSON").first.click()
    assert len(response.value.body()) > 3_000_000


def focused(page: Any) -> str:
    """What has the focus, and whether that can be seen."""
    found: str = page.evaluate(
        """() => {
          const element = document.activeElement
          const name = element.innerText || element.name || element.tagName
          return name.trim() + (getComputedStyle(element).outlineStyle === "none" ? " unseen" : "")
        }"""
    )
    return found


def test_the_keyboard_is_enough(
    browser: Browser, service: RedisSessionService, session: SessionKey
) -> None:
    result = {"type": "function_call_output", "output": "42"}
    service.append_event(session, Event("tool", result))
    page = browser.open("/?again=1")
    page.get_by_role("link", name="shop").wait_for()
    for target in ("shop", "ann", "today"):
        seen: list[str] = []
        while focused(page) != target or len(seen) < 3:
            page.keyboard.press("Tab")
            seen.append(focused(page))
            assert len(seen) < 40, seen
        assert not [each for each in seen if each.endswith("unseen")]
        assert seen[0] == "Skip to the content"
        with page.expect_navigation():
            page.keyboard.press("Enter")
    is_live(page)
    page.keyboard.press("k")
    assert "42" in page.evaluate("document.activeElement.innerText")
    page.keyboard.press("k")
    assert "mug 129" in focused(page)
    page.keyboard.press("j")
    for _ in range(3):
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.locator("details[open] pre").inner_text() == "42"
    page.goto(ADDRESS)
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"


@pytest.mark.usefixtures("session")
def test_the_keys_start_at_the_events_on_the_screen(browser: Browser) -> None:
    page = browser.open(ADDRESS)  # scrolls to the newest event
    is_live(page)
    height = page.evaluate("innerHeight")
    for key in "jk":
        page.evaluate("document.activeElement.blur()")
        before = page.evaluate("scrollY")
        assert before > height
        page.keyboard.press(key)
        assert "mug 1" in focused(page)
        assert abs(page.evaluate("scrollY") - before) < height / 2


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_scrolls_in_one_direction_only(
    browser: Browser, service: RedisSessionService, scheme: str
) -> None:
    long = "w" * 256
    session = service.create_session(
        app_name="shop", user_id=long, session_id=long, state={long: long, f"user:{long}": [long]}
    )
    content = [{"type": "text", "text": long * 4}, {"type": "tool_use", "name": long, "input": {}}]
    service.append_event(session, Event(long, content, branch=long, metadata={long: long}))
    page = browser.open("/?again=1", color_scheme=scheme, **PHONE)
    for path in (
        "/",
        "/health",
        "/users?at=shop",
        address("sessions", "shop", long),
        address("session", "shop", long, long),
        address("search", "shop", long, long, text="w"),
        address("delete", "shop", long, long),
        address("session", "shop", long, "missing"),
    ):
        page.goto(path)
        page.evaluate("for (const fold of document.querySelectorAll('details')) fold.open = true")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), path
        [back] = page.evaluate("[getComputedStyle(document.body).backgroundColor]")
        assert (back == "rgb(16, 18, 22)") is (scheme == "dark")
    browser.problems = [each for each in browser.problems if "status of 404" not in each]


def test_deleting_asks_for_the_id(
    browser: Browser, service: RedisSessionService, session: SessionKey
) -> None:
    page = browser.open(ADDRESS)
    page.get_by_role("link", name="Delete this session").click()
    page.get_by_label("To confirm").fill("ann")
    page.get_by_role("button", name="Delete").click()
    page.get_by_text("That is another id. Nothing was deleted.").wait_for()
    assert service.get_events(session).events
    page.get_by_label("To confirm").fill("today")
    page.get_by_role("button", name="Delete").click()
    page.get_by_text("The session was deleted.").wait_for()
    page.get_by_role("link", name="Back").click()
    page.get_by_text("This user has no sessions.").wait_for()
    page.get_by_role("link", name="Erase this user").click()
    page.get_by_label("To confirm").fill("ann")
    page.get_by_role("button", name="Erase").click()
    page.get_by_text("Deleted 0 sessions and 1 state key. Redis keys left: 0").wait_for()
    assert service.list_users("shop") == []
    browser.problems = [each for each in browser.problems if "status of 400" not in each]


def test_the_picture_of_the_readme_can_be_made(tmp_path: Path) -> None:
    target = tmp_path / "inspector.png"
    command = [sys.executable, str(Path(__file__).parent / "picture.py"), str(target)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    assert 50_000 < target.stat().st_size < 150_000
