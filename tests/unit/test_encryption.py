"""Encrypted values: what opens them, what does not, and what a key ring accepts and shows."""

from __future__ import annotations

import copy
import json
import os
import pickle
import subprocess
import sys
from base64 import b64decode, b64encode, urlsafe_b64encode
from collections.abc import Callable
from pathlib import Path
from tempfile import NamedTemporaryFile
from traceback import walk_tb
from typing import Any

import pytest
import redis.asyncio

import sessionstore.sync
from sessionstore import InMemorySessionService, RedisSessionService, encryption
from sessionstore.data_keys import DataKey, DataKeys, UserEncryption
from sessionstore.encryption import KeyRing, NamedKey
from sessionstore.errors import InvalidArgument
from sessionstore.keys import Keys
from sessionstore.transform import Context, Transform, Unreadable

GOLDEN = Path(__file__).parents[1] / "golden"

OLD, NEW = bytes(range(64)), bytes(range(100, 132))
RING = KeyRing({"2026-07": NEW, "2026-01": OLD})
PLACE = Context("shop", "ann", "state", "step")
KEY_FIRST = f"{'secret' * 8}:a"
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
        ({b"secret-in-place-of-its-name!": "a"}, "the name of a key"),
        ({b64encode(b"secret" + OLD[6:]).decode() + ".secret": "a"}, "the name of a key"),
    ],
)
def test_a_key_that_is_not_valid_is_refused_and_not_shown(keys: object, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message) as caught:
        KeyRing(keys)  # type: ignore[arg-type]
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["secret", "a:secret", "a:secret,a:secret", "", KEY_FIRST, f"{KEY_FIRST},{KEY_FIRST}"]
)
def test_text_that_is_not_valid_is_refused_and_not_shown(text: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        KeyRing.from_text(text)
    assert "secret" not in str(caught.value)


def test_a_ring_shows_names_only_and_is_copied_and_pickled() -> None:
    assert repr(RING) == "KeyRing(2026-07, 2026-01)"
    assert repr(RING.first) == "NamedKey(2026-07)"
    for same in (pickle.loads(pickle.dumps(RING)), copy.deepcopy(RING)):
        assert same == RING
        assert hash(same) == hash(RING)
        assert same.unwrap(RING.wrap(DATA, PLACE), PLACE) == DATA
    assert KeyRing({"2026-01": OLD, "2026-07": NEW}) != RING
    assert KeyRing({"2026-07": NEW, "2026-01": OLD}, read_only=True) != RING
    assert RING != "KeyRing"


SECRET = b"a secret key, x." * 4
SECRET_TEXT = b64encode(SECRET).decode()


def _from_file(text: str) -> KeyRing:
    with NamedTemporaryFile("w") as file:
        file.write(text)
        file.flush()
        return KeyRing.from_file(file.name)


def _without_the_extra(make: Callable[[], KeyRing]) -> KeyRing:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "cryptography.exceptions", None)
        return make()


def _from_env(text: str) -> KeyRing:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RING", text)
        return KeyRing.from_env("RING")


@pytest.mark.parametrize(
    "make",
    [
        lambda: KeyRing({"a": SECRET, "b": b"short"}),
        lambda: KeyRing({"a": SECRET_TEXT, "b": SECRET_TEXT[:-3]}),
        lambda: KeyRing({"a": SECRET_TEXT + "?"}),
        lambda: KeyRing(SECRET),  # type: ignore[arg-type]  # wrong on purpose
        lambda: KeyRing({"a": SECRET}, read_only=1),  # type: ignore[arg-type]  # wrong on purpose
        lambda: KeyRing.from_text(SECRET_TEXT),
        lambda: KeyRing.from_text(f"a:{SECRET_TEXT}, b:{SECRET_TEXT}x"),
        lambda: KeyRing.from_text(f"a:{SECRET_TEXT}, a:{SECRET_TEXT}"),
        lambda: _from_env(f"a:{SECRET_TEXT}x"),
        lambda: _from_file(f"a:{SECRET_TEXT}x"),
        lambda: _without_the_extra(lambda: KeyRing({"a": SECRET})),
        lambda: _without_the_extra(lambda: _from_file(f"a:{SECRET_TEXT}")),
        lambda: _without_the_extra(lambda: KeyRing.from_text(f"a:{SECRET_TEXT}")),
    ],
)
def test_no_variable_of_a_traceback_has_a_key(make: Callable[[], KeyRing]) -> None:
    with pytest.raises((InvalidArgument, ImportError)) as caught:
        make()
    found: BaseException | None = caught.value
    num_frames = 0
    while found is not None:
        for frame, _ in walk_tb(found.__traceback__):
            if frame.f_code.co_filename == encryption.__file__:
                num_frames += 1
                shown = " ".join(map(_shown, frame.f_locals.values()))
                assert "a secret key" not in shown
                assert SECRET_TEXT[:12] not in shown
        found = found.__context__
    assert num_frames


def _shown(value: object) -> str:
    try:
        return repr(value)
    except AttributeError:  # an object whose __init__ has failed
        return ""


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encryption": "x"}, "encryption must be a KeyRing, not str"),
        ({"key_store": "redis://keys"}, "key_store needs encryption, a KeyRing"),
        ({"encryption": RING, "key_store": 5}, "key_store must be a URL, not int"),
        ({"encryption": RING, "key_store": "keys"}, "key_store: url must start with redis://"),
        ({"encryption": RING, "key_store": "redis://data"}, "must not be the URL of the data"),
    ],
)
def test_options_of_a_service_are_checked(options: dict[str, Any], message: str) -> None:
    for kind in (RedisSessionService, sessionstore.sync.RedisSessionService):
        with pytest.raises(InvalidArgument, match=message):
            kind("redis://data", **options)


@pytest.mark.parametrize(
    ("data", "keys"),
    [
        ("redis://data", "redis://data:6379/0"),
        ("redis://user:one@data:6379", "rediss://user:two@data?db=0"),
        ("redis://localhost/1", "redis://127.0.0.1?db=1"),
        ("unix:///run/data", "unix:///run/data?db=0"),
    ],
)
def test_the_database_of_the_data_is_no_key_store(data: str, keys: str) -> None:
    message = "key_store must be another server or database than that of the data"
    options: Any = {"encryption": RING, "key_store": keys}
    for kind in (RedisSessionService, sessionstore.sync.RedisSessionService):
        with pytest.raises(InvalidArgument, match=message):
            kind(data, **options)
        sessionstore.register_redis_instance("data", data)
        with pytest.raises(InvalidArgument, match=message):
            kind(instance_name="data", **options)
    client = redis.asyncio.Redis.from_url(data)
    with pytest.raises(InvalidArgument, match=message):
        RedisSessionService(client=client, **options)


def test_another_database_is_a_key_store() -> None:
    for keys in ("redis://data/1", "redis://data:6380", "redis://other", "redis+cluster://data"):
        RedisSessionService("redis://data", encryption=RING, key_store=keys)


def test_a_key_store_in_memory_is_named_so() -> None:
    with pytest.raises(InvalidArgument, match='key_store must be "memory://" or None in memory'):
        InMemorySessionService(encryption=RING, key_store="redis://keys")
    with pytest.raises(InvalidArgument, match="key_store needs encryption"):
        InMemorySessionService(key_store="memory://")


# -- stored bytes -------------------------------------------------------------------------------


def test_the_vector_of_rfc_5297() -> None:
    """Appendix A.1, deterministic authenticated encryption."""
    key = bytes.fromhex("fffefdfcfbfaf9f8f7f6f5f4f3f2f1f0f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff")
    place = bytes.fromhex("101112131415161718191a1b1c1d1e1f2021222324252627")
    sealed = NamedKey("rfc", key).seal(bytes.fromhex("112233445566778899aabbccddee"), place)
    expected = "85632d07c6e8f37f950acd320a2ecc9340c02b9690c4dc04daef7f6afe5c"
    assert sealed == b"\x03\x03rfc" + bytes.fromhex(expected)


def test_what_was_stored_earlier_is_read_and_written_again_with_the_same_bytes() -> None:
    golden = json.loads((GOLDEN / "encrypted" / "values.json").read_text("utf-8"))
    of_user = golden["data_key"]
    owner = (of_user["app_name"], of_user["user_id"])
    data_key = DataKey(owner, of_user["name"], b64decode(of_user["key"]))
    for row in golden["values"]:
        context, encoded = Context(*row["context"]), b64decode(row["encoded"])
        stored = b64decode(row["stored"])
        encryption: Transform
        if row["key"] == of_user["name"]:
            encryption = UserEncryption(DataKeys(RING, Keys()), data_key)
        else:
            encryption = KeyRing({row["key"]: golden["keys"][row["key"]]})
        assert encryption.wrap(encoded, context) == stored
        assert encryption.unwrap(stored, context) == encoded
    [old, *_] = golden["keys"].items()
    keys = DataKeys(KeyRing(dict([old])), Keys())
    reply = [[of_user["name"].encode(), b64decode(of_user["wrapped"])]]
    found = keys.find(owner).decode(reply)
    assert found is not None
    assert found.key.seal(DATA, b"") == data_key.key.seal(DATA, b"")


def test_a_stored_data_key_is_no_value_of_any_user() -> None:
    keys = DataKeys(RING, Keys())
    call = keys.use(("shop", "state"))
    name, wrapped = call.args
    assert call.decode([[b"OK", name, wrapped]]).name == name.decode()
    with pytest.raises(Unreadable, match="does not open it"):
        RING.unwrap(wrapped, Context("data key", "shop", "state", name.decode()))
