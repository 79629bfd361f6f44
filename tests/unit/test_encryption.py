"""Encrypted values: what opens them, what does not, and what a key ring accepts and shows."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from base64 import b64encode, urlsafe_b64encode
from pathlib import Path

import pytest

from sessionstore.encryption import KeyRing
from sessionstore.errors import InvalidArgument
from sessionstore.transform import Context, Unreadable

OLD, NEW = bytes(range(64)), bytes(range(100, 132))
RING = KeyRing({"2026-07": NEW, "2026-01": OLD})
PLACE = Context("shop", "ann", "state", "step")
DATA = b'{"secret":"tea"}'

# -- values -------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"1", DATA, b"\x00", b"\x02" + bytes(100), bytes(1 << 20)])
def test_what_is_sealed_is_opened_again(data: bytes) -> None:
    sealed = RING.wrap(data, PLACE)
    assert sealed[:1] == b"\x03"
    assert data not in sealed
    assert RING.unwrap(sealed, PLACE) == data


def test_equal_values_at_one_place_have_equal_bytes_in_every_ring() -> None:
    again = KeyRing({"2026-07": NEW})
    assert RING.wrap(DATA, PLACE) == again.wrap(DATA, PLACE)


def test_the_first_key_writes_and_all_read() -> None:
    by_old = KeyRing({"2026-01": OLD}).wrap(DATA, PLACE)
    assert b"2026-01" in by_old
    assert b"2026-07" in RING.wrap(DATA, PLACE)
    assert RING.unwrap(by_old, PLACE) == DATA


def test_a_ring_that_does_not_write_reads() -> None:
    readers = KeyRing({"2026-07": NEW}, read_only=True)
    assert readers.wrap(DATA, PLACE) == DATA
    assert readers.unwrap(RING.wrap(DATA, PLACE), PLACE) == DATA


@pytest.mark.parametrize(
    "elsewhere",
    [
        PLACE._replace(app_name="shop2"),
        PLACE._replace(user_id="bob"),
        PLACE._replace(user_id=""),
        PLACE._replace(kind="event"),
        PLACE._replace(name="ste"),
        Context("sho", "pann", "state", "step"),
    ],
)
def test_a_value_that_was_moved_is_not_opened(elsewhere: Context) -> None:
    sealed = RING.wrap(DATA, PLACE)
    with pytest.raises(Unreadable, match="'2026-07' does not open it"):
        RING.unwrap(sealed, elsewhere)


def test_every_flipped_bit_is_noticed() -> None:
    sealed = RING.wrap(b"tea", PLACE)
    for number in range(8, 8 * len(sealed)):  # the first byte is the tag
        changed = bytearray(sealed)
        changed[number // 8] ^= 1 << number % 8
        with pytest.raises(Unreadable):
            RING.unwrap(bytes(changed), PLACE)


def test_every_cut_is_noticed() -> None:
    sealed = RING.wrap(b"tea", PLACE)
    for size in range(1, len(sealed)):
        with pytest.raises(Unreadable):
            RING.unwrap(sealed[:size], PLACE)


def test_an_unknown_key_is_named() -> None:
    sealed = RING.wrap(DATA, PLACE)
    with pytest.raises(Unreadable, match="key '2026-07', which encryption= does not have"):
        KeyRing({"2026-01": OLD}).unwrap(sealed, PLACE)


def test_another_key_of_the_same_name_is_noticed() -> None:
    sealed = RING.wrap(DATA, PLACE)
    with pytest.raises(Unreadable, match="does not open it"):
        KeyRing({"2026-07": os.urandom(32)}).unwrap(sealed, PLACE)


# -- rings --------------------------------------------------------------------------------------


def test_keys_may_be_text() -> None:
    old, new = b64encode(OLD).decode(), urlsafe_b64encode(NEW).decode()
    assert KeyRing({"2026-07": new, "2026-01": old}) == RING
    assert KeyRing.from_text(f"2026-07:{new},2026-01:{old}") == RING


def test_a_ring_is_read_from_a_file_and_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = f"# ours\n2026-07:{b64encode(NEW).decode()}\n\n2026-01:{b64encode(OLD).decode()}\n"
    (tmp_path / "keys").write_text(lines)
    assert KeyRing.from_file(tmp_path / "keys") == RING
    monkeypatch.setenv("KEYS", lines)
    assert KeyRing.from_env("KEYS", read_only=True).read_only
    assert KeyRing.from_env("KEYS").names == ["2026-07", "2026-01"]
    with pytest.raises(InvalidArgument, match="nothing cannot be read: No such file"):
        KeyRing.from_file(tmp_path / "nothing")
    with pytest.raises(InvalidArgument, match="OTHER has no key ring"):
        KeyRing.from_env("OTHER")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "at least one key"),
        (b"key", "at least one key"),
        ({"a": b"secret-16-bytes!"}, "the key 'a' has 16 bytes; 64 or 32 are needed"),
        ({"a": "secret!"}, "the key 'a' is not valid Base64"),
        ({"a": "\u00e9"}, "the key 'a' is not valid Base64"),
        ({"a": 5}, "the key 'a' must be bytes or Base64 text, not int"),
        ({"": OLD}, "the name of a key"),
        ({"~a": OLD}, "the name of a key"),
        ({"a" * 33: OLD}, "the name of a key"),
        ({5: OLD}, "the name of a key"),
    ],
)
def test_a_key_that_is_not_valid_is_refused_and_not_shown(keys: object, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message) as caught:
        KeyRing(keys)  # type: ignore[arg-type]
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("text", ["secret", "a:secret", "a:secret,a:secret", ""])
def test_text_that_is_not_valid_is_refused_and_not_shown(text: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        KeyRing.from_text(text)
    assert "secret" not in str(caught.value)


def test_a_ring_shows_names_only_and_is_copied_and_pickled() -> None:
    assert repr(RING) == "KeyRing(2026-07, 2026-01)"
    assert repr(RING.first) == "AuthenticatedKey(2026-07)"
    for same in (pickle.loads(pickle.dumps(RING)), copy.deepcopy(RING)):
        assert same == RING
        assert hash(same) == hash(RING)
        assert same.unwrap(RING.wrap(DATA, PLACE), PLACE) == DATA
    assert KeyRing({"2026-01": OLD, "2026-07": NEW}) != RING
    assert KeyRing({"2026-07": NEW, "2026-01": OLD}, read_only=True) != RING
    assert RING != "KeyRing"


def test_without_the_extra_one_sentence_names_it() -> None:
    code = (
        "import sys; sys.modules['cryptography'] = None\n"
        "import sessionstore\n"
        "from sessionstore.encryption import KeyRing\n"
        "try:\n    KeyRing({'a': bytes(64)})\n"
        "except ImportError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'sessionstore[encryption]'" in done.stdout
