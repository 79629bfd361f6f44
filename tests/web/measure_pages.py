"""Times the pages of the inspector on a large store, while the scan of all keys runs and after it.

.venv/bin/python tests/web/measure_pages.py --sessions 100000
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from support.inspector import Client, inspecting  # noqa: E402  # found now

from sessionstore import Event, RedisSessionService  # noqa: E402
from sessionstore.embedded import EmbeddedServer  # noqa: E402

LONG = "at=app0/many/long"
PATHS = {
    "overview": "/",
    "health": "/health",
    "users of an application": "/users?at=app1",
    "users, filtered": "/users?at=app1&text=77",
    "sessions of a user": "/sessions?at=app0/many",
    "session of 20,000 events": f"/session?{LONG}",
    "search in it": f"/search?{LONG}&text=nowhere",
    "its state": f"/raw/session?{LONG}",
}
AT_ONCE = 500


async def fill(url: str, num_sessions: int) -> None:
    """Store sessions of many users, a user with 1,000 sessions, and a session of 20,000 events."""
    options: Any = {"session_event_limit": None, "call_timeout": 60, "session_ttl": 86_400}
    async with RedisSessionService(url, **options) as service:

        async def add(app_name: str, user_id: str, session_id: str) -> None:
            session = await service.create_session(
                app_name=app_name, user_id=user_id, session_id=session_id, state={"step": 1}
            )
            await service.append_event(session, Event("user", "Two blue mugs, please. " * 10))

        ids = [
            (f"app{number % 4}", f"u{number // 12}", f"{number}")  # three sessions of a user
            for number in range(num_sessions)
        ]
        ids += [("app0", "many", f"{number}") for number in range(1000)]
        for start in range(0, len(ids), AT_ONCE):
            await asyncio.gather(*(add(*each) for each in ids[start : start + AT_ONCE]))
        session = await service.create_session(app_name="app0", user_id="many", session_id="long")
        for start in range(0, 20_000, 500):
            events = [Event("user", f"{number} " * 100) for number in range(start, start + 500)]
            await service.append_events(session, events)


def measure(client: Client, path: str) -> tuple[float, float]:
    """Milliseconds to the first byte of a page, and to the last."""
    connection = client.connection()
    begin = time.perf_counter()
    connection.request("GET", path, headers={"Cookie": client.cookie})
    response = connection.getresponse()
    response.read(1)
    first = time.perf_counter()
    response.read()
    last = time.perf_counter()
    connection.close()
    assert response.status == 200, path
    return (first - begin) * 1000, (last - begin) * 1000


def is_scanning(client: Client) -> bool:
    """Whether the scan of all keys or the checks still run."""
    return "data-again" in client.get("/").text


def main() -> None:
    """Fill a server, and print a row for every page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sessions", type=int, default=100_000)
    num_sessions = parser.parse_args().sessions
    with EmbeddedServer() as server:
        asyncio.run(fill(server.url, num_sessions))
        with inspecting(server.url) as inspector:
            client = Client(inspector)
            during = {name: measure(client, path) for name, path in PATHS.items()}
            while is_scanning(client):
                time.sleep(0.2)
            after = {name: measure(client, path) for name, path in PATHS.items()}
            memory = inspector.memory_mb()
    print(f"{num_sessions:,} sessions; milliseconds to the first byte (to the last)")
    print(f"{'page':<28} {'during the scan':>18} {'after it':>18}")
    for name in PATHS:
        cells = [f"{first:.0f} ({last:.0f})" for first, last in (during[name], after[name])]
        print(f"{name:<28} {cells[0]:>18} {cells[1]:>18}")
    print(f"memory of the inspector: {memory} MB")


if __name__ == "__main__":
    main()
