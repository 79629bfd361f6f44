"""The conversations of the fleet: repeatable, with recorded sizes; bad traces are refused."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sessionstore.cli.fleet.synthetic import NUM_SHARED_APP_KEYS, synthetic_conversations
from sessionstore.cli.fleet.workload import Conversation, load_trace
from sessionstore.cli.store import CannotStart
from sessionstore.model import Event

RECORDING = Path(__file__).parents[2] / "../shared/data/airline.jsonl"
GOOD_LINE: dict[str, Any] = {
    "app_name": "app",
    "user_id": "user",
    "session_id": "session",
    "messages": [{"role": "user", "content": "Hello"}],
}


def synthetic(num_sessions: int, *, num_turns: int = 8, seed: int = 1) -> list[Conversation]:
    return synthetic_conversations(
        num_sessions, num_turns=num_turns, sessions_per_user=4, seed=seed
    )


def events_of(conversation: Conversation) -> list[Event]:
    return [event for turn in conversation.turns() for event in turn]


def roles_of(events: list[Event]) -> list[str]:
    return [event.content["role"] for event in events]


def without_time(event: Event) -> dict[str, Any]:
    fields = msgspec.structs.asdict(event)
    del fields["timestamp"]
    return fields


def trace_of(path: Path, *lines: dict[str, Any] | str) -> Path:
    text = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("".join(f"{line}\n" for line in text), encoding="utf-8")
    return path


class TestSynthetic:
    def test_the_same_seed_makes_the_same_events_but_for_their_time(self) -> None:
        first, second = synthetic(5), synthetic(5)
        for one, other in zip(first, second, strict=True):
            assert one.key == other.key
            assert one.initial_state == other.initial_state
            assert list(map(without_time, events_of(one))) == list(
                map(without_time, events_of(other))
            )

    def test_a_conversation_does_not_depend_on_how_many_there_are(self) -> None:
        assert list(synthetic(1)[0].messages()) == list(synthetic(9)[0].messages())

    def test_seeds_and_sessions_differ(self) -> None:
        texts = {
            json.dumps(list(conversation.messages()))
            for seed in (1, 2)
            for conversation in synthetic(5, seed=seed)
        }
        assert len(texts) == 10

    def test_sizes_follow_the_recorded_ones(self) -> None:
        sizes = sorted(
            len(msgspec.json.encode(message))
            for conversation in synthetic(1000)
            for message in conversation.messages()
        )
        quantiles = [sizes[int(len(sizes) * share)] for share in (0.5, 0.9, 0.99)]
        assert quantiles == [
            pytest.approx(214, rel=0.1),
            pytest.approx(1024, rel=0.1),
            pytest.approx(6266, rel=0.1),
        ]
        # Text that needs escapes or is not ASCII takes a few bytes more than the drawn size.
        assert sizes[0] >= 30
        assert sizes[-1] <= 7754 * 1.1

    def test_roles_follow_the_recorded_ones(self) -> None:
        conversations = synthetic(1000)
        roles = Counter(
            "call" if "tool_calls" in message else message["role"]
            for conversation in conversations
            for message in conversation.messages()
        )
        shares = {role: count / roles.total() for role, count in roles.items()}
        recorded = {"system": 100, "user": 757, "assistant": 657, "call": 572, "tool": 572}
        for role, count in recorded.items():
            assert shares[role] == pytest.approx(count / 2658, abs=0.03), role
        assert roles["system"] == len(conversations)

    def test_every_turn_is_a_question_calls_with_results_and_an_answer(self) -> None:
        for conversation in synthetic(50):
            opening, *turns = conversation.turns()
            assert roles_of(opening) == ["system"]
            assert len(turns) == conversation.num_turns == 8
            for turn in turns:
                messages = [event.content for event in turn]
                roles = roles_of(turn)
                num_rounds = (len(roles) - 2) // 2
                assert roles == ["user", *["assistant", "tool"] * num_rounds, "assistant"]
                calls = [m["tool_calls"][0]["id"] for m in messages if "tool_calls" in m]
                assert calls == [m["tool_call_id"] for m in messages if m["role"] == "tool"]

    def test_arguments_of_tool_calls_are_json(self) -> None:
        calls = [
            message["tool_calls"][0]["function"]["arguments"]
            for conversation in synthetic(50)
            for message in conversation.messages()
            if "tool_calls" in message
        ]
        assert calls
        for arguments in calls:
            assert json.loads(arguments)["query"]

    def test_event_ids_are_unique(self) -> None:
        ids = [event.id for conversation in synthetic(20) for event in events_of(conversation)]
        assert len(set(ids)) == len(ids)

    def test_no_two_sessions_write_the_same_shared_key(self) -> None:
        conversations = synthetic(3 * NUM_SHARED_APP_KEYS)
        written = [
            {
                name
                for event in events_of(conversation)
                for name in event.state_delta
                if name.startswith(("app:", "user:"))
            }
            for conversation in conversations
        ]
        for names, conversation in zip(written, conversations, strict=True):
            assert names <= set(conversation.shared_keys)
        everything = Counter(name for names in written for name in names)
        assert set(everything.values()) == {1}
        num_app_keys = sum(name.startswith("app:") for name in everything)
        assert num_app_keys == NUM_SHARED_APP_KEYS

    def test_users_have_the_sessions_asked_for(self) -> None:
        users = Counter(conversation.key.user_id for conversation in synthetic(10))
        assert sorted(users.values()) == [2, 4, 4]


class TestTurns:
    def test_a_turn_begins_at_a_user_message(self, tmp_path: Path) -> None:
        call = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
        result = {"role": "tool", "tool_call_id": "1", "name": "search", "content": "found"}
        system, user = {"role": "system", "content": "!"}, {"role": "user", "content": "?"}
        messages = [system, call, user, call, result, result, user, user, call]
        path = trace_of(tmp_path / "trace.jsonl", {**GOOD_LINE, "messages": messages})
        [conversation] = load_trace(path)
        opening, *turns = conversation.turns()
        assert roles_of(opening) == ["system", "assistant"]
        assert [roles_of(turn) for turn in turns] == [
            ["user", "assistant", "tool", "tool"],
            ["user"],
            ["user", "assistant"],
        ]
        names = [event.invocation_id for event in events_of(conversation)]
        assert names == [f"turn-{number}" for number in (0, 0, 1, 1, 1, 1, 2, 3, 3)]

    def test_a_tool_result_removes_what_its_call_has_set(self, tmp_path: Path) -> None:
        call = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
        result = {"role": "tool", "tool_call_id": "1", "name": "search", "content": "found"}
        messages = [{"role": "user", "content": "?"}, call, result]
        [conversation] = load_trace(
            trace_of(tmp_path / "trace.jsonl", {**GOOD_LINE, "messages": messages})
        )
        user, asking, answer = events_of(conversation)
        assert (user.author, asking.author, answer.author) == ("user", "assistant", "search")
        assert user.state_delta == {}
        assert asking.state_delta == {"pending_call": {"turn": 1}}
        assert answer.state_removed == ["pending_call"]
        assert answer.state_delta == {
            "num_tool_results": 1,
            "last_result": {"tool": "search", "call": "1"},
        }

    @pytest.mark.parametrize("roles", [[], ["system"], ["assistant", "user"], ["user"] * 3])
    def test_the_number_of_turns_is_right_for_odd_conversations(
        self, roles: list[str], tmp_path: Path
    ) -> None:
        messages = [{"role": role, "content": ""} for role in roles]
        [conversation] = load_trace(
            trace_of(tmp_path / "trace.jsonl", {**GOOD_LINE, "messages": messages})
        )
        assert len(list(conversation.turns())) == 1 + conversation.num_turns
        assert [event.content for event in events_of(conversation)] == messages


class TestTrace:
    def test_messages_come_back_as_they_stand_in_the_file(self, tmp_path: Path) -> None:
        messages = [
            {"role": "system", "content": "Ünïcode 🙂"},
            {
                "role": "user",
                "content": [{"type": "text", "text": "a"}],
                "extra": 12345678901234567,
            },
            {"role": "assistant", "content": None, "score": 1.0},
        ]
        path = trace_of(
            tmp_path / "trace.jsonl", {**GOOD_LINE, "messages": messages, "more": True}, ""
        )
        [conversation] = load_trace(path)
        assert list(conversation.messages()) == messages
        assert list(conversation.messages()) == messages
        assert [event.content for event in events_of(conversation)] == messages

    @pytest.mark.parametrize(
        ("line", "complaint"),
        [
            ('{"app_name": ', "truncated"),
            ("[]", "Expected `object`"),
            ({**GOOD_LINE, "user_id": 7}, "user_id"),
            ({"app_name": "a", "user_id": "u", "messages": []}, "session_id"),
            ({**GOOD_LINE, "messages": {}}, "messages"),
            ({**GOOD_LINE, "messages": [1]}, "messages"),
            ({**GOOD_LINE, "user_id": ""}, "user_id must not be empty"),
            ({**GOOD_LINE, "user_id": "é" * 129}, "user_id is 258 bytes long"),
            (
                {**GOOD_LINE, "messages": [{"content": "x"}]},
                "required field `role` - at `$.messages[0]`",
            ),
            (
                {**GOOD_LINE, "messages": [*GOOD_LINE["messages"], {"role": "wizard"}]},
                "'wizard' - at `$.messages[1].role`",
            ),
            (
                {**GOOD_LINE, "messages": [{"role": "tool", "name": 5}]},
                "got `int` - at `$.messages[0].name`",
            ),
            (GOOD_LINE, "the same session as in line 1"),
        ],
    )
    def test_a_bad_line_is_named_with_what_is_wrong(
        self, line: dict[str, Any] | str, complaint: str, tmp_path: Path
    ) -> None:
        path = trace_of(tmp_path / "trace.jsonl", GOOD_LINE, "", line)
        with pytest.raises(CannotStart) as raised:
            load_trace(path)
        assert str(raised.value).startswith(f"{path}:3: ")
        assert complaint in str(raised.value)

    def test_a_line_that_is_not_utf8_is_named(self, tmp_path: Path) -> None:
        path = trace_of(tmp_path / "trace.jsonl", GOOD_LINE)
        path.write_bytes(path.read_bytes().replace(b"Hello", b"\xff"))
        with pytest.raises(CannotStart, match=r"trace\.jsonl:1: "):
            load_trace(path)

    def test_a_line_nested_too_deep_is_named(self, tmp_path: Path) -> None:
        deep = "[" * 100_000 + "]" * 100_000
        path = trace_of(tmp_path / "trace.jsonl", f'{{"app_name": "a", "messages": {deep}}}')
        with pytest.raises(CannotStart, match=r"trace\.jsonl:1: "):
            load_trace(path)

    def test_a_file_without_conversations_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(CannotStart, match="contains no conversation"):
            load_trace(trace_of(tmp_path / "trace.jsonl", "", "  "))

    def test_a_file_that_cannot_be_read_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(CannotStart, match=r"missing\.jsonl: cannot be read: No such file"):
            load_trace(tmp_path / "missing.jsonl")

    @pytest.mark.skipif(not RECORDING.exists(), reason="the recorded conversations are not here")
    def test_the_recording_is_replayed_whole(self) -> None:
        conversations = load_trace(RECORDING)
        recorded = [json.loads(line) for line in RECORDING.read_text().splitlines()]
        assert len(conversations) == 100
        for conversation, line in zip(conversations, recorded, strict=True):
            assert [event.content for event in events_of(conversation)] == line["messages"]
            assert len(list(conversation.turns())) == 1 + conversation.num_turns
