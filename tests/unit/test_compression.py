"""Compression of stored values: frames, dictionaries, damage, limits, threads."""

from __future__ import annotations

import contextlib
import copy
import pickle
import random
import struct
import subprocess
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from support.compression import COMPRESSION, FIRST, FOLDER, READING, SECOND
from unit_support import unhurried

from sessionstore import CorruptData, Event, InMemorySessionService, InvalidArgument, Zstd
from sessionstore.codec import Codec
from sessionstore.compression import (
    DECOMPRESSED_LIMIT,
    DICTIONARY_SIZE_LIMIT,
    dictionary_id,
    train_dictionary,
)
from sessionstore.sync import InMemorySessionService as InMemoryForThreads
from sessionstore.transform import TierOwner, Unreadable

OWNER = TierOwner("app", "user")
EVENT = Event(
    "user",
    {"text": "please book a seat by the window " * 4},
    id="e1",
    timestamp=datetime(2026, 1, 1, tzinfo=UTC),
)
TEXT = "please book a seat by the window " * 4
PLAIN = Codec().encode_event(EVENT, "event", OWNER)[0]
FRAMES = sorted(path.name for path in FOLDER.glob("*.zst"))


def codec(compression: Zstd | None, **options: Any) -> Codec:
    return Codec(compression=compression, **options)


@unhurried
@given(st.binary(max_size=300), st.integers(0, 300), st.booleans())
def test_what_is_compressed_is_read_back(
    data: bytes, min_bytes: int, with_dictionary: bool
) -> None:
    zstd = Zstd(dictionaries=[FIRST] if with_dictionary else [], min_bytes=min_bytes)
    stored = zstd.wrap(b"{" + data)
    assert len(stored) <= len(data) + 1
    assert (zstd.unwrap(stored) if stored[:1] == b"\x02" else stored) == b"{" + data


def test_a_value_that_is_small_or_does_not_shrink_is_stored_as_it_is() -> None:
    noise = random.Random(1).randbytes(500)
    assert Zstd().wrap(noise) == noise
    assert Zstd(min_bytes=301).wrap(b"x" * 300) == b"x" * 300
    assert Zstd(min_bytes=300).wrap(b"x" * 300)[:1] == b"\x02"
    assert Zstd(read_only=True).wrap(b"x" * 300) == b"x" * 300


def test_a_frame_names_its_dictionary_and_its_size_and_has_a_checksum() -> None:
    stored = COMPRESSION.wrap(PLAIN)
    found = zstandard.get_frame_parameters(stored[1:])
    assert found.dict_id == dictionary_id(FIRST)
    assert (found.content_size, found.has_checksum) == (len(PLAIN), True)
    assert len(stored) < len(Zstd().wrap(PLAIN)) < len(PLAIN)


def test_the_first_dictionary_compresses_and_all_are_for_reading() -> None:
    old = Zstd(dictionaries=[FIRST])
    prepared = Zstd(dictionaries=[FIRST, SECOND])
    new = Zstd(dictionaries=[SECOND, FIRST])
    assert old.wrap(PLAIN) == prepared.wrap(PLAIN) != new.wrap(PLAIN)
    for stored in (old.wrap(PLAIN), new.wrap(PLAIN), Zstd().wrap(PLAIN)):
        assert prepared.unwrap(stored) == new.unwrap(stored) == PLAIN


def test_a_dictionary_is_a_file_or_its_content() -> None:
    path = FOLDER / "first.zdict"
    for dictionary in (FIRST, path, str(path)):
        assert Zstd(dictionaries=[dictionary]).wrap(PLAIN) == Zstd(dictionaries=[FIRST]).wrap(PLAIN)
    assert str(dictionary_id(FIRST)) in repr(Zstd(dictionaries=[path]))


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"dictionaries": FIRST}, r"^dictionaries must be a list"),
        ({"dictionaries": "first.zdict"}, r"^dictionaries must be a list"),
        ({"dictionaries": None}, r"^dictionaries must be a list"),
        ({"dictionaries": [FIRST, 5]}, r"^dictionaries\[1\] must be bytes or the path"),
        ({"dictionaries": ["/no/such"]}, r"^/no/such: No such file"),
        ({"dictionaries": [Path("/")]}, r"^/: Is a directory"),
        ({"dictionaries": [b""]}, r"^dictionaries\[0\] is not a dictionary"),
        ({"dictionaries": [FIRST[:-1]]}, r"^dictionaries\[0\] is not .* or it is damaged"),
        ({"dictionaries": [FIRST, FIRST[:600]]}, r"^dictionaries\[1\] is not .* damaged"),
        ({"dictionaries": [FIRST[:99] + b"?" + FIRST[100:]]}, "damaged"),
        ({"dictionaries": [FIRST + b"x" * DICTIONARY_SIZE_LIMIT]}, "damaged"),
        ({"level": 0}, r"^level must be an int from 1 to 19, not 0"),
        ({"level": 20}, r"^level"),
        ({"level": "3"}, r"^level"),
        ({"level": True}, r"^level"),
        ({"min_bytes": -1}, r"^min_bytes"),
        ({"min_bytes": None}, r"^min_bytes"),
        ({"read_only": 1}, r"^read_only"),
    ],
)
def test_a_bad_argument_is_refused(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InvalidArgument, match=complaint):
        Zstd(**options)


def test_it_is_copied_and_pickled() -> None:
    zstd = Zstd(dictionaries=[FIRST, SECOND], level=9, min_bytes=9)
    newest = Zstd(dictionaries=[SECOND]).wrap(PLAIN)
    for same in (pickle.loads(pickle.dumps(zstd)), copy.deepcopy(zstd)):
        assert (repr(same), same.wrap(PLAIN)) == (repr(zstd), zstd.wrap(PLAIN))
        assert same.unwrap(newest) == PLAIN
    assert copy.copy(Zstd(read_only=True)).wrap(PLAIN) == PLAIN


# -- equal bytes -----------------------------------------------------------------------------------


def test_equal_values_become_equal_bytes_in_any_order_and_any_thread() -> None:
    chance = random.Random(5)
    values = [b"{" + chance.choice([PLAIN, b"ab"]) * chance.randint(1, 90) for _ in range(200)]
    values += [bytes(chance.choices(b"abcd", k=chance.randint(1, 9000))) for _ in range(200)]
    expected = {value: Zstd(dictionaries=[FIRST]).wrap(value) for value in values}
    shared = Zstd(dictionaries=[FIRST])
    wrong: list[bytes] = []

    def work(seed: int) -> None:
        for value in random.Random(seed).sample(values, len(values)):
            stored = shared.wrap(value)
            again = shared.unwrap(stored) if stored[:1] == b"\x02" else stored
            if stored != expected[value] or again != value:
                wrong.append(value)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# -- damage ----------------------------------------------------------------------------------------


def damaged_frames() -> dict[str, bytes]:
    frame = COMPRESSION.wrap(PLAIN)
    return {
        "nothing": b"\x02",
        "a header alone": frame[:9],
        "cut": frame[:-1],
        "cut in the middle": frame[: len(frame) // 2],
        "more behind it": frame + b"x",
        "two frames": frame + frame[1:],
        "a skippable frame": b"\x02\x50\x2a\x4d\x18\x04\0\0\0abcd",
        "JSON": b"\x02" + PLAIN,
    }


@pytest.mark.parametrize("name", damaged_frames())
def test_a_damaged_frame_is_corrupt_data(name: str) -> None:
    with pytest.raises(Unreadable, match=r"^its zstd frame is"):
        COMPRESSION.unwrap(damaged_frames()[name])


def test_every_flipped_bit_is_found() -> None:
    frame = COMPRESSION.wrap(PLAIN)
    found = 0
    for place in range(8, len(frame) * 8):
        bad = bytearray(frame)
        bad[place // 8] ^= 1 << place % 8
        try:
            assert COMPRESSION.unwrap(bytes(bad)) == PLAIN  # a bit that means nothing
        except Unreadable:
            found += 1
    assert found > len(frame) * 8 - 8 - 12


@settings(unhurried, max_examples=300)
@given(st.binary(max_size=60), st.integers(0, 60), st.booleans())
def test_random_bytes_raise_no_other_error_than_unreadable(
    noise: bytes, place: int, with_magic: bool
) -> None:
    frame = COMPRESSION.wrap(PLAIN)
    magic = b"\x02\x28\xb5\x2f\xfd" if with_magic else b"\x02"
    for bad in (magic + noise, frame[:place] + noise + frame[place + len(noise) :]):
        if bad[:1] == b"\x02":
            with contextlib.suppress(Unreadable):
                COMPRESSION.unwrap(bad)


def test_a_value_in_a_frame_in_a_frame_is_refused() -> None:
    nested = b"\x02" + zstandard.ZstdCompressor().compress(Zstd().wrap(PLAIN))
    with pytest.raises(ValueError, match="unknown format"):
        codec(COMPRESSION).decode_event(nested, OWNER)
    with pytest.raises(ValueError, match="unknown format"):
        codec(COMPRESSION).decode_events([nested], OWNER)


def test_a_missing_dictionary_is_named() -> None:
    stored = Zstd(dictionaries=[SECOND]).wrap(PLAIN)
    for reader in (COMPRESSION, READING, Zstd()):
        with pytest.raises(Unreadable, match=f"needs the zstd dictionary {dictionary_id(SECOND)},"):
            reader.unwrap(stored)


def test_another_dictionary_with_the_same_id_is_found() -> None:
    frame = bytearray(COMPRESSION.wrap(PLAIN))
    place = frame.index(FIRST[4:8])
    frame[place : place + 4] = SECOND[4:8]
    with pytest.raises(Unreadable, match="damaged"):
        Zstd(dictionaries=[SECOND]).unwrap(bytes(frame))


# -- limits ----------------------------------------------------------------------------------------


def test_a_frame_that_would_become_too_large_is_refused() -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(DECOMPRESSED_LIMIT + 1))
    assert len(bomb) < 10_000
    with pytest.raises(Unreadable, match="too long"):
        COMPRESSION.unwrap(b"\x02" + bomb)
    largest = zstandard.ZstdCompressor().compress(bytes(DECOMPRESSED_LIMIT))
    assert len(COMPRESSION.unwrap(b"\x02" + largest)) == DECOMPRESSED_LIMIT


def test_a_frame_without_its_size_is_refused() -> None:
    writer = zstandard.ZstdCompressor().compressobj()
    frame = writer.compress(bytes(10_000)) + writer.flush()
    with pytest.raises(Unreadable, match="has no size"):
        COMPRESSION.unwrap(b"\x02" + frame)


def test_a_frame_that_is_longer_than_it_says_is_refused() -> None:
    frame = bytearray(zstandard.ZstdCompressor().compress(bytes(100_000)))
    assert struct.unpack("<I", frame[5:9]) == (100_000,)
    frame[5:9] = struct.pack("<I", 1000)
    with pytest.raises(Unreadable, match="damaged"):
        COMPRESSION.unwrap(b"\x02" + bytes(frame))


def test_size_limits_apply_before_compression() -> None:
    service = InMemoryForThreads(
        compression=COMPRESSION, event_size_limit=900, value_size_limit=900, summary_size_limit=900
    )
    session = service.create_session(app_name="app", user_id="user")
    for write in (
        lambda: service.append_event(session, Event("user", "x" * 1000)),
        lambda: service.update_session_state(session, {"a": "x" * 1000}),
        lambda: service.compact_session(session, upto=1, summary="x" * 1000),
    ):
        with pytest.raises(InvalidArgument, match="at most 900 are allowed"):
            write()


# -- services --------------------------------------------------------------------------------------


async def test_a_service_without_the_option_reads_what_needs_no_dictionary() -> None:
    writer = InMemorySessionService(compression=Zstd())
    session = await writer.create_session(app_name="app", user_id="user", session_id="sid")
    await writer.append_event(session, EVENT)
    await writer.update_session_state(session, {"a": "x" * 100})
    reader = InMemorySessionService()
    reader._executor = writer._executor
    found = await reader.get_session(app_name="app", user_id="user", session_id="sid")
    assert found is not None
    assert (found.events, found.state) == ([EVENT], {"a": "x" * 100})
    assert (await reader.append_event(found, EVENT)) == EVENT


@pytest.mark.parametrize("compression", [None, Zstd(), Zstd(dictionaries=[SECOND])], ids=repr)
async def test_reads_without_the_dictionary_raise_corrupt_data(compression: Zstd | None) -> None:
    writer = InMemorySessionService(compression=COMPRESSION, stream_ttl=60)
    session = await writer.create_session(app_name="app", user_id="user", session_id="sid")
    await writer.append_event(session, EVENT)
    await writer.update_user_state(app_name="app", user_id="user", state={"a": "x" * 100})
    reader = InMemorySessionService(compression=compression)
    reader._executor = writer._executor
    missing = rf"needs the zstd dictionary {dictionary_id(FIRST)}"
    for read, key in (
        (lambda: reader.get_events(session), "events:{app:user}:sid"),
        (lambda: reader.get_session(**IDS), "userdata:{app:user} field a"),
        (lambda: reader.list_sessions(app_name="app", user_id="user"), "userdata:"),
        (lambda: reader.get_user_state(app_name="app", user_id="user"), "userdata:"),
        (lambda: reader.pop_event(session), "events:"),
    ):
        with pytest.raises(CorruptData, match=missing) as caught:
            await read()
        assert caught.value.key.startswith(key)


IDS: dict[str, Any] = {"app_name": "app", "user_id": "user", "session_id": "sid"}


async def test_a_dictionary_is_introduced_to_readers_first() -> None:
    before, ready, writer = (
        InMemorySessionService(compression=option)
        for option in (None, Zstd(dictionaries=[FIRST], read_only=True), COMPRESSION)
    )
    session = await before.create_session(**IDS, state={"a": TEXT})
    await before.append_event(session, Event("user", TEXT, id="1"))
    for service in (ready, writer):
        service._executor = before._executor
    await ready.append_event(session.key, Event("user", TEXT, id="2"))
    assert [event.id for event in (await before.get_events(session)).events] == ["1", "2"]
    await writer.append_event(session.key, Event("user", TEXT, id="3"))
    for service in (ready, writer):
        found = await service.get_session(**IDS)
        assert found is not None
        assert [event.id for event in found.events] == ["1", "2", "3"]
    with pytest.raises(CorruptData):
        await before.get_events(session)


async def test_a_repeat_is_recognized_unless_the_first_dictionary_has_changed() -> None:
    old, new = (
        InMemorySessionService(compression=COMPRESSION),
        InMemorySessionService(compression=Zstd(dictionaries=[SECOND, FIRST])),
    )
    new._executor = old._executor
    session = await old.create_session(**IDS)
    event = Event("user", TEXT)
    for _ in range(2):
        await old.append_event(session.key, event)
    assert (await new.get_events(session)).events == [event]
    for _ in range(2):
        await new.append_event(session.key, event)
    page = await new.get_events(session)
    assert page.events == [event, event]
    # What another dictionary compressed can be changed.
    await new.replace_event(session.key, page.positions[0] or 0, event, Event("user", "new"))
    assert await new.delete_event(session.key, page.positions[1] or 0, event)
    assert [found.content for found in (await new.get_events(session)).events] == ["new"]


def test_integers_of_state_stay_text_and_can_be_added_to() -> None:
    service = InMemoryForThreads(compression=COMPRESSION)
    session = service.create_session(app_name="app", user_id="user", state={"n": 10**12})
    assert service.increment_session_state(session, {"n": 1}) == {"n": 10**12 + 1}


@pytest.mark.parametrize("name", FRAMES)
def test_golden_frames_are_read(name: str) -> None:
    stored = (FOLDER / name).read_bytes()
    original = FOLDER.parent / name.removesuffix(".zst").removesuffix(".without")
    assert stored[:1] == b"\x02"
    assert READING.unwrap(stored) == original.read_bytes()
    assert len(stored) < len(original.read_bytes())


def test_there_are_golden_frames_of_each_kind() -> None:
    frames = [zstandard.get_frame_parameters((FOLDER / name).read_bytes()[1:]) for name in FRAMES]
    assert {frame.dict_id for frame in frames} == {0, dictionary_id(FIRST)}


# -- training --------------------------------------------------------------------------------------


def test_a_dictionary_that_was_trained_can_be_used() -> None:
    samples = [b'{"id":"%d","text":"see you at noon in Lisbon"}' % number for number in range(2000)]
    dictionary = train_dictionary(samples, 2000)
    assert len(dictionary) <= 2000
    assert train_dictionary(samples, 2000) == dictionary
    zstd = Zstd(dictionaries=[dictionary], min_bytes=0)
    stored = zstd.wrap(samples[0])
    assert len(stored) < len(samples[0])
    assert zstd.unwrap(stored) == samples[0]


@pytest.mark.parametrize("samples", [[], [b"{}"], [b"x" * 100] * 5])
def test_too_few_samples_are_refused(samples: list[bytes]) -> None:
    with pytest.raises(InvalidArgument, match="are too few to train a dictionary"):
        train_dictionary(samples)


def test_without_the_extra_it_is_named() -> None:
    program = """
import sys
sys.modules["zstandard"] = None
from sessionstore import Zstd
from sessionstore.sync import InMemorySessionService
try:
    Zstd()
except ImportError as error:
    print(error)
service = InMemorySessionService()
session = service.create_session(app_name="app", user_id="user", state={"a": 1})
service._executor.keyspace.hset(b"userdata:{app:user}", (b"a", b"\\x02"))
try:
    service.get_user_state(app_name="app", user_id="user")
except Exception as error:
    print(error)
"""
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    first, second = found.stdout.splitlines()
    assert first == "compression needs the extra `zstd`: pip install 'sessionstore[zstd]'"
    assert second == f"userdata:{{app:user}} field a does not decode ({first})"
