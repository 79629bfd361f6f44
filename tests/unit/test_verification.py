"""The check of the fleet reports every planted difference and nothing else."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from sessionstore.cli.fleet.verification import (
    KINDS,
    Ledger,
    compare_events,
    compare_state,
    shared_keys,
    summarize,
)
from sessionstore.cli.fleet.workload import Conversation
from sessionstore.model import Event, Session, SessionKey, Summary

KEY = SessionKey("app", "user", "mine")
OTHER = SessionKey("app", "user", "other")
STRANGER = SessionKey("app", "stranger", "theirs")
EVENTS = [Event("user", {"text": str(number), "number": 1}) for number in range(6)]
STATE = {"a": 1, "b": {"c": [1, None]}, "user:mine": 5}


def conversation(key: SessionKey, *shared_keys: str) -> Conversation:
    return Conversation(key, {"opened": True}, 1, lambda: iter(()), shared_keys)


SHARED = shared_keys(
    [
        conversation(KEY, "user:mine", "app:mine"),
        conversation(OTHER, "user:other", "app:other"),
        conversation(STRANGER, "user:stranger", "app:stranger"),
    ]
)


def ledger_with(*steps: list[Event]) -> Ledger:
    ledger = Ledger(conversation(KEY, "user:mine", "app:mine"))
    for number, step in enumerate(([], *steps), 1):
        ledger.announce(*step)
        ledger.confirm(number)
    return ledger


def ledger_in_doubt(*steps: list[Event]) -> Ledger:
    """The outcome of the last step is unknown."""
    ledger = ledger_with(*steps[:-1])
    ledger.announce(*steps[-1])
    return ledger


DIGESTS = ledger_with(EVENTS).digests


def session_with(events: list[Event], *, version: int = 1, **state: Any) -> Session:
    now = datetime.now(UTC)
    merged = {"opened": True, **state}
    return Session(KEY.app_name, KEY.user_id, KEY.session_id, merged, events, version, now, now)


def compared(ledger: Ledger, found: Session | None, limit: int | None = None) -> Counter[str]:
    counts = ledger.differences(found, limit=limit, shared=SHARED)
    assert counts.keys() <= KINDS.keys()
    return counts


class TestEvents:
    def test_nothing_differs_when_all_is_there(self) -> None:
        assert compare_events(DIGESTS, EVENTS, limit=None) == Counter()
        assert compare_events({}, [], limit=None) == Counter()

    def test_an_equal_copy_is_the_same(self) -> None:
        copies = msgspec.json.decode(msgspec.json.encode(EVENTS), type=list[Event])
        assert compare_events(DIGESTS, copies, limit=None) == Counter()

    def test_every_loss_is_counted(self) -> None:
        for number in range(len(EVENTS)):
            found = EVENTS[:number] + EVENTS[number + 1 :]
            assert compare_events(DIGESTS, found, limit=None) == Counter(lost=1)
        assert compare_events(DIGESTS, [], limit=None) == Counter(lost=6)

    def test_every_duplicate_is_counted(self) -> None:
        for number in range(len(EVENTS)):
            found = EVENTS[:number] + EVENTS[number:][:1] + EVENTS[number:]
            assert compare_events(DIGESTS, found, limit=None) == Counter(duplicated=1)

    def test_every_swap_is_counted(self) -> None:
        for number in range(len(EVENTS) - 1):
            found = list(EVENTS)
            found[number], found[number + 1] = found[number + 1], found[number]
            assert compare_events(DIGESTS, found, limit=None) == Counter(out_of_order=1)

    @pytest.mark.parametrize(
        "change",
        [
            {"author": "assistant"},
            {"content": {"text": "0", "number": 1.0}},
            {"content": None},
            {"timestamp": datetime(2024, 5, 15, tzinfo=UTC)},
            {"invocation_id": "x"},
            {"branch": "x"},
            {"state_delta": {"x": 1}},
            {"state_removed": ["x"]},
            {"metadata": {"x": 1}},
        ],
    )
    def test_a_change_of_any_field_is_counted(self, change: dict[str, Any]) -> None:
        found = [msgspec.structs.replace(EVENTS[0], **change), *EVENTS[1:]]
        assert compare_events(DIGESTS, found, limit=None) == Counter(altered=1)

    def test_the_order_of_keys_does_not_count(self) -> None:
        found = [msgspec.structs.replace(EVENTS[0], content={"number": 1, "text": "0"})]
        assert compare_events(DIGESTS, [*found, *EVENTS[1:]], limit=None) == Counter()

    def test_an_event_that_nobody_sent_is_counted(self) -> None:
        found = [*EVENTS, Event("user", "strange")]
        assert compare_events(DIGESTS, found, limit=None) == Counter(unexpected=1)

    def test_with_a_limit_only_the_newest_are_expected(self) -> None:
        assert compare_events(DIGESTS, EVENTS[-4:], limit=4) == Counter()
        assert compare_events(DIGESTS, EVENTS, limit=9) == Counter()
        assert compare_events(DIGESTS, EVENTS[-3:], limit=4) == Counter(lost=1)
        assert compare_events(DIGESTS, EVENTS[-5:], limit=4) == Counter(unexpected=1)
        assert compare_events(DIGESTS, EVENTS[:4], limit=4) == Counter(lost=2, unexpected=2)


class TestState:
    @pytest.mark.parametrize(
        ("change", "num_wrong"),
        [
            ({}, 0),
            ({"user:other": 1, "app:other": 2, "app:stranger": 3}, 0),
            ({"a": 2}, 1),
            ({"a": 1.0}, 1),
            ({"a": True}, 1),
            ({"b": {"c": [1]}}, 1),
            ({"user:mine": 4}, 1),
            ({"leftover": 1}, 1),
            ({"user:stranger": 1}, 1),
            ({"user:unknown": 1}, 1),
            ({"app:unknown": 1, "a": None}, 2),
        ],
    )
    def test_every_key_that_differs_is_counted(
        self, change: dict[str, Any], num_wrong: int
    ) -> None:
        found = {**STATE, **change}
        counts = compare_state(STATE, found, key=KEY, shared=SHARED)
        assert counts == Counter(state_mismatches=num_wrong)

    @pytest.mark.parametrize("name", STATE)
    def test_a_missing_key_is_counted(self, name: str) -> None:
        found = {key: value for key, value in STATE.items() if key != name}
        counts = compare_state(STATE, found, key=KEY, shared=SHARED)
        assert counts == Counter(state_mismatches=1)


class TestSession:
    SET = Event("assistant", state_delta={"pending": 1, "user:mine": 2})
    REMOVE = Event("tool", state_delta={"done": 3}, state_removed=["pending"])

    def test_deltas_and_removals_make_the_state(self) -> None:
        ledger = ledger_with([self.SET], [self.REMOVE])
        events = [self.SET, self.REMOVE]
        good = session_with(events, version=3, done=3, **{"user:mine": 2})
        assert compared(ledger, good) == Counter()
        stale = session_with(events, version=3, done=3, pending=1, **{"user:mine": 2})
        assert compared(ledger, stale) == Counter(state_mismatches=1)

    def test_trimmed_events_leave_their_state(self) -> None:
        ledger = ledger_with([self.SET], [self.REMOVE])
        whole = session_with([self.REMOVE], version=3, done=3, **{"user:mine": 2})
        assert compared(ledger, whole, limit=1) == Counter()
        forgotten = session_with([self.REMOVE], version=3, done=3)
        assert compared(ledger, forgotten, limit=1) == Counter(state_mismatches=1)

    def test_the_version_is_that_of_the_last_write(self) -> None:
        ledger = ledger_with(EVENTS[:1], EVENTS[1:])
        for version, num_wrong in ((2, 1), (3, 0), (4, 1), (7, 1)):
            found = session_with(EVENTS, version=version)
            assert compared(ledger, found) == Counter(version_mismatches=num_wrong)
        unknown = Event("user")
        ledger.announce(unknown)
        ledger.confirm()
        for version in (4, 7):
            found = session_with([*EVENTS, unknown], version=version)
            assert compared(ledger, found) == Counter()

    def test_a_session_that_is_gone_has_lost_everything(self) -> None:
        assert compared(ledger_with(EVENTS), None) == Counter(
            lost=6, state_mismatches=1, version_mismatches=1
        )

    def test_a_session_never_created_is_expected_to_be_absent(self) -> None:
        ledger = Ledger(conversation(KEY))
        assert compared(ledger, None) == Counter()
        assert compared(ledger, session_with([])) == Counter(
            state_mismatches=1, version_mismatches=1
        )

    def test_a_session_maybe_created_may_be_absent_or_whole(self) -> None:
        ledger = Ledger(conversation(KEY))
        ledger.announce()
        assert ledger.version == 0
        assert compared(ledger, None) == Counter()
        assert compared(ledger, session_with([])) == Counter()
        assert compared(ledger, session_with([EVENTS[0]])) == Counter(unexpected=1)

    def test_a_step_refused_must_be_absent(self) -> None:
        ledger = ledger_with(EVENTS[:3])
        assert compared(ledger, session_with(EVENTS[:3], version=2)) == Counter()
        applied = session_with([*EVENTS[:3], self.SET], version=3, pending=1, **{"user:mine": 2})
        assert compared(ledger, applied)["unexpected"] == 1

    def test_a_step_of_unknown_outcome_is_there_as_a_whole_or_not_at_all(self) -> None:
        before, step = EVENTS[:3], [self.SET, EVENTS[4]]
        ledger = ledger_in_doubt(before, step)
        state = {"pending": 1, "user:mine": 2}
        absent = session_with(before, version=2)
        present = session_with([*before, *step], version=3, **state)
        for found in (absent, present, absent):  # reading does not settle the outcome
            assert compared(ledger, found) == Counter()
        half_a_step = session_with([*before, self.SET], version=3, **state)
        assert compared(ledger, half_a_step) == Counter(lost=1)
        events_without_state = session_with([*before, *step], version=3)
        assert compared(ledger, events_without_state) == Counter(state_mismatches=2)
        state_without_events = session_with(before, version=2, **state)
        assert compared(ledger, state_without_events) == Counter(state_mismatches=1)
        earlier_event_lost = session_with(before[:2], version=2)
        assert compared(ledger, earlier_event_lost) == Counter(lost=1)


class TestRewinds:
    def test_events_that_were_rewound_must_be_gone(self) -> None:
        ledger = ledger_with(EVENTS)
        before = ledger.own_state
        draft = [Event("user"), Event("tool", state_delta={"done": 3, "user:mine": 2})]
        ledger.announce(*draft)
        ledger.confirm(3)
        ledger.announce_rewind(2, before)
        there = session_with([*EVENTS, *draft], version=3, done=3, **{"user:mine": 2})
        gone = session_with(EVENTS, version=4, **{"user:mine": 2})
        for found in (there, gone):  # the outcome is unknown
            assert compared(ledger, found) == Counter()
        assert compared(ledger, session_with(EVENTS[:5], version=4, **{"user:mine": 2}))["lost"]
        ledger.confirm(4)
        assert compared(ledger, gone) == Counter()
        assert compared(ledger, there) == Counter(
            unexpected=2, state_mismatches=1, version_mismatches=1
        )
        assert compared(ledger, session_with(EVENTS[:5], version=4, **{"user:mine": 2})) == (
            Counter(lost=1)
        )

    def test_what_was_trimmed_before_a_rewind_stays_trimmed(self) -> None:
        ledger = ledger_with()
        ledger.event_limit = 4
        ledger.announce(*EVENTS)
        ledger.confirm(2)
        ledger.announce_rewind(2, ledger.own_state)
        ledger.confirm(3)
        assert compared(ledger, session_with(EVENTS[2:4], version=3), limit=4) == Counter()
        assert compared(ledger, session_with(EVENTS[:4], version=3), limit=4)["unexpected"] == 2


class TestSummaries:
    async def test_a_summary_stands_for_exactly_the_first_events(self) -> None:
        ledger = ledger_with(EVENTS)
        first = await self.summary_of(None, EVENTS[:2])
        summary = await self.summary_of(first, EVENTS[2:4])
        found = session_with(EVENTS[4:], version=2)
        found.summary = summary
        assert compared(ledger, found) == Counter()
        assert ledger.log_differences(EVENTS, summary) == Counter()
        assert ledger.log_differences(EVENTS[1:], summary) == Counter(lost=1)
        found.events = EVENTS[3:]
        assert compared(ledger, found) == Counter(unexpected=1)
        found.events = EVENTS[5:]
        assert compared(ledger, found) == Counter(lost=1)
        found.events = EVENTS[4:]
        for events in (EVENTS[3:5], EVENTS[3:1:-1]):
            found.summary = await self.summary_of(first, events)
            assert compared(ledger, found) == Counter(summary_mismatches=1)
        found.events, found.summary = EVENTS[3:], await self.summary_of(first, EVENTS[3:4])
        assert compared(ledger, found) == Counter(summary_mismatches=1)

    async def test_dropped_events_must_be_gone(self) -> None:
        ledger = ledger_with(EVENTS)
        ledger.is_dropped = True
        summary = await self.summary_of(None, EVENTS[:4])
        assert ledger.log_differences(EVENTS[4:], summary) == Counter()
        assert ledger.log_differences(EVENTS[3:], summary) == Counter(unexpected=1)

    @staticmethod
    async def summary_of(previous: Summary | None, events: list[Event]) -> Summary:
        return Summary(await summarize(previous, events), 1, datetime.now(UTC), len(events))
