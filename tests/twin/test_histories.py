"""Random histories: the rules of the machine of test_twin.py, on logs that hold events.

Most sequences that Hypothesis finds have short logs. Here the rules that change history meet logs
and summaries: they are chosen so that many succeed.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from support.servers import Server
from test_twin import KEYS, LONG_AGO, NUM_EVENTS, USERS, TwinMachine

from sessionstore import SessionKey
from sessionstore.transport import connect_sync
from sessionstore.transport.threads import RedisExecutor

WEIGHTS = {
    "create_session": 3,
    "append_event": 9,
    "append_events": 3,
    "compact_session": 9,
    "acquire_turn": 2,
    "rewind_session": 2,
    "replace_event": 2,
    "delete_event": 2,
    "fork_session": 2,
    "replace_newest": 2,
    "pop_event": 1,
    "clear_events": 0.3,
    "delete_session": 0.5,
    "get_session": 2,
    "get_or_create_session": 2,
    "list_sessions": 2,
}


@pytest.fixture
def executor(server: Server) -> Iterator[RedisExecutor]:
    found = connect_sync(server.url, None, {}, None, 10.0)
    yield found
    found.close()


def some_arguments(chance: random.Random, name: str, key: SessionKey) -> dict[str, Any]:
    """Arguments of a rule."""
    service = chance.choice((0, 1, 1, 1, 2))
    where = {"service": service, "key": key}
    number, place = chance.randint(-1, 5), chance.randint(0, 5)
    batch = [chance.randrange(NUM_EVENTS) for _ in range(place)]
    step = chance.choice((None, 0, 0, 0, 1))
    other = KEYS[1 - KEYS.index(key)]
    if name in ("create_session", "get_or_create_session"):
        where["change"] = ({}, [])
    of_rule: dict[str, dict[str, Any]] = {
        "create_session": where,
        "append_event": where | {"number": chance.randrange(NUM_EVENTS), "step": None},
        "append_events": where | {"batch": batch, "step": None},
        "compact_session": where
        | {"number": number, "base": chance.choice((None, 0, 0, 0, 1)), "step": step}
        | {"summary": chance.choice(("s", "ü")), "drop": chance.random() < 0.2}
        | {"has_lease": chance.random() < 0.2},
        "acquire_turn": where | {"holder": "h1", "lease_ms": 60_000, "name": "compactor"},
        "rewind_session": where | {"number": number, "state": None, "step": step},
        "replace_event": where | {"place": place, "number": place + 4, "step": step},
        "delete_event": where | {"place": place, "step": step},
        "fork_session": {"service": service, "names": [key, other], "state": None, "step": step}
        | {"number": chance.choice((number, None))},
        "replace_newest": where
        | {"step": 0, "first_kept": chance.randint(0, 2), "end_kept": place, "batch": batch[:2]},
        "pop_event": where | {"step": step},
        "clear_events": where | {"step": step},
        "delete_session": {"key": key},
        "get_session": where | {"event_num": None, "event_time": None},
        "get_or_create_session": where
        | {"event_num": place, "event_time": chance.choice((None, LONG_AGO))},
        "list_sessions": {"service": service, "user": USERS[0], "limit": 2, "offset": 0}
        | {"event_num": place},
    }
    return of_rule[name]


def summary_of(machine: TwinMachine, key: SessionKey) -> tuple[int, int] | None:
    """How many events a summary covers, and where it ends; None without one."""
    stored = machine.model.sessions.get(key)
    return (stored.covered, stored.summary.upto) if stored and stored.summary else None


@pytest.mark.without_ttl
@pytest.mark.parametrize("seed", range(4))
def test_twin_server_and_model_agree_on_histories(
    server: Server, executor: RedisExecutor, seed: int
) -> None:
    chance = random.Random(seed)
    kind = type("Machine", (TwinMachine,), {"server": server, "executors": (executor,)})
    machine = kind()
    done = Counter[str]()
    for name in chance.choices([*WEIGHTS], [*WEIGHTS.values()], k=600):
        key = chance.choice(KEYS[:2])
        before = summary_of(machine, key)
        getattr(machine, name)(**some_arguments(chance, name, key))
        after = summary_of(machine, key)
        if before != after:
            done[f"{name} {'removes' if after is None else 'makes' if before is None else ''}"] += 1
    assert done["compact_session makes"] > 5
    assert done["append_event "] + done["append_events "] > 0, "trims what is covered"
    assert sum(count for what, count in done.items() if what.endswith("removes")) > 3
