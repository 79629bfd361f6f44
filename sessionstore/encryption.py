"""Encryption of stored values with AES-SIV, and the keys for it. It needs the extra `encryption`.

    byte 0x03, the length of the key's name, the name, an authentication tag of 16 bytes, the
    encrypted bytes

AES-SIV is deterministic: equal values in equal contexts give equal bytes. So a repeated append
finds its event. The context is authenticated with each value: application, user, kind and state
key. So nobody can move a value to another user or another field. The session is not a part of it,
because a fork copies values.
"""

from __future__ import annotations

import os
import re
from base64 import b64decode
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from .errors import InvalidArgument
from .transform import ENCRYPTED, Context, Unreadable

KEY_SIZES = (32, 64)
"""Sizes of a key in bytes: AES-128-SIV and AES-256-SIV, which need two AES keys each."""

DATA_KEY_MARK = "~"
"""The first character of the names of data keys. Names in a ring cannot begin with it."""

_NAME_LIMIT = 32
_is_name = re.compile(r"[A-Za-z0-9._-]{1,32}", re.ASCII).fullmatch


class KeyRing:
    """The option `encryption` of a service: named keys. The first encrypts; all of them decrypt.

    To change keys, first add a new one at the end of the ring of every process. Then move it to the
    front, run `sessionstore rekey`, and remove the old key.

    Args:
        keys: keys by name: 64 bytes (AES-256) or 32 bytes (AES-128), or the same as Base64 text. A
            name has up to 32 of the characters `A-Z a-z 0-9 . _ -`. It is part of every stored
            value.
        read_only: encrypt nothing new. Services that have this option can read what others encrypt.

    Raises:
        InvalidArgument: a name or a key is not valid. The message does not show the key.
        ImportError: the extra `encryption` is not installed.
    """

    def __init__(self, keys: Mapping[str, bytes | str], *, read_only: bool = False) -> None:
        # Tools that report errors show the variables of all frames: these must have no key.
        try:
            self._keys = _check_keys(keys)
            self._ciphers = {name: NamedKey(name, key) for name, key in self._keys.items()}
        except (InvalidArgument, ImportError) as error:
            raise error.with_traceback(None) from None
        finally:
            del keys
        if not isinstance(read_only, bool):
            raise InvalidArgument(
                f"read_only must be True or False, not {type(read_only).__name__}"
            )
        self.read_only = read_only
        self._by_prefix = {key.prefix: key for key in self._ciphers.values()}
        self.first = self._ciphers[next(iter(self._keys))]

    @classmethod
    def from_text(cls, text: str, *, read_only: bool = False) -> KeyRing:
        """The ring in a text like `2026-01:BASE64,2026-07:BASE64`.

        Commas or ends of lines separate the keys. Lines that begin with # are comments.

        Raises:
            InvalidArgument: an entry is not valid. The message does not show the key.
        """
        try:
            return cls(_parse(text), read_only=read_only)
        except InvalidArgument as error:
            raise error.with_traceback(None) from None
        finally:
            del text

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], *, read_only: bool = False) -> KeyRing:
        """The ring in a file, as `from_text` reads it.

        Raises:
            InvalidArgument: the file cannot be read, or an entry is not valid.
        """
        try:
            text = Path(path).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not a text file"
            raise InvalidArgument(
                f"the key ring {os.fspath(path)} cannot be read: {reason}"
            ) from None
        try:
            return cls.from_text(text, read_only=read_only)
        except InvalidArgument as error:
            raise InvalidArgument(f"the key ring {os.fspath(path)}: {error}") from None
        finally:
            del text

    @classmethod
    def from_env(cls, variable: str, *, read_only: bool = False) -> KeyRing:
        """The ring in an environment variable, as `from_text` reads it.

        Raises:
            InvalidArgument: the variable is not set, or an entry is not valid.
        """
        text = os.environ.get(variable)
        if not text:
            raise InvalidArgument(f"the environment variable {variable} has no key ring")
        try:
            return cls.from_text(text, read_only=read_only)
        finally:
            del text

    @property
    def names(self) -> list[str]:
        """The names of the keys; the first one encrypts."""
        return list(self._keys)

    def wrap(self, data: bytes, context: Context) -> bytes:
        """An encoded value, encrypted with the first key."""
        return data if self.read_only else self.first.seal(data, associated_data(context))

    def unwrap(self, data: bytes, context: Context) -> bytes:
        """The decrypted value. Raises Unreadable if the key is not in the ring or does not fit."""
        key = self._by_prefix.get(prefix_of(data)) or self.key_named(name_of_key(data))
        return key.open(data, associated_data(context))

    def key_named(self, name: str) -> NamedKey:
        """A key of the ring. Raises Unreadable if the ring does not have it."""
        key = self._ciphers.get(name)
        if key is None and name.startswith(DATA_KEY_MARK):
            raise Unreadable(
                f"it is encrypted with a data key of its user, {name!r}: the option "
                "key_store is needed"
            )
        if key is None:
            raise Unreadable(
                f"it is encrypted with the key {name!r}, which encryption= does not have"
            )
        return key

    def __repr__(self) -> str:
        return f"KeyRing({', '.join(self._keys)})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, KeyRing):
            return NotImplemented
        same_order = list(self._keys.items()) == list(other._keys.items())
        return same_order and self.read_only == other.read_only

    def __hash__(self) -> int:
        return hash((tuple(self._keys), self.read_only))

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickle, (self._keys, self.read_only)


def _unpickle(keys: dict[str, bytes], read_only: bool) -> KeyRing:
    return KeyRing(keys, read_only=read_only)


class NamedKey:
    """A key with its name.

    Attributes:
        prefix: the first bytes of every value that it encrypts: tag and name.

    Args:
        name: is stored with every value.
        key: 32 or 64 bytes.
    """

    def __init__(self, name: str, key: bytes) -> None:
        self.name = name
        cipher, self._invalid_tag = _import_cipher()
        self._cipher = cipher(key)
        encoded = name.encode()
        self.prefix = ENCRYPTED + bytes([len(encoded)]) + encoded
        self._size = len(self.prefix)

    def __repr__(self) -> str:
        return f"NamedKey({self.name})"

    def seal(self, data: bytes, associated: bytes) -> bytes:
        """The data, encrypted. `open` needs the same associated data."""
        sealed: bytes = self._cipher.encrypt(data, [associated])
        return self.prefix + sealed

    def open(self, data: bytes, associated: bytes) -> bytes:
        """The data that was sealed. Raises Unreadable if it was changed or moved."""
        try:
            opened: bytes = self._cipher.decrypt(data[self._size :], [associated])
        except (self._invalid_tag, ValueError):
            raise Unreadable(
                f"the key {self.name!r} does not open it: it was changed, or it belongs to another "
                "user or field"
            ) from None
        return opened


@lru_cache(maxsize=4096)
def associated_data(context: Context) -> bytes:
    """The associated data of a value: its context as bytes, which is authenticated with it."""
    return encode_parts(*context)


def encode_parts(*parts: str) -> bytes:
    """Texts as bytes. Different texts have different bytes."""
    return "".join([f"{len(part)}:{part}" for part in parts]).encode("utf-8", "surrogatepass")


def prefix_of(data: bytes) -> bytes:
    """The first bytes of an encrypted value: tag and name of its key."""
    return data[: 2 + data[1]] if len(data) > 1 else data


def is_of_data_key(data: bytes) -> bool:
    """Whether a stored value is encrypted with a data key."""
    return data[:1] == ENCRYPTED and data[2:3] == DATA_KEY_MARK.encode()


def name_of_key(data: bytes) -> str:
    """The name of the key that encrypted a value. Raises Unreadable if it is cut off."""
    end = 2 + data[1] if len(data) > 1 else 0
    if not 2 < end < len(data):
        raise Unreadable("it is encrypted, but cut off")
    return data[2:end].decode("ascii", "replace")


def check_key_name(name: object) -> str:
    """A name of a key, if it is valid. Raises InvalidArgument."""
    if not isinstance(name, str) or not _is_name(name):
        # A long one may be the key itself: the two may be in the wrong order.
        is_short = isinstance(name, (str, int)) and len(str(name)) <= _NAME_LIMIT
        shown = repr(name) if is_short else "what was given"
        raise InvalidArgument(
            f"the name of a key must have 1 to 32 of the characters A-Z a-z 0-9 . _ -, not {shown}"
        )
    return name


def _parse(text: str) -> dict[str, str]:
    """The keys in a text by name."""
    lines = (line for line in text.splitlines() if not line.lstrip().startswith("#"))
    keys: dict[str, str] = {}
    for entry in filter(None, re.split(r"[\s,]+", "\n".join(lines))):
        name, colon, key = entry.partition(":")
        if not colon:
            raise InvalidArgument("a key must be written as NAME:BASE64")
        if check_key_name(name) in keys:
            raise InvalidArgument(f"two keys have the name {name!r}")
        keys[name] = key
    if not keys:
        raise InvalidArgument("no keys found; `sessionstore new-key` prints one")
    return keys


def _check_keys(keys: object) -> dict[str, bytes]:
    if not isinstance(keys, Mapping) or not keys:
        raise InvalidArgument("keys must be a dict of names and keys, with at least one key")
    return {check_key_name(name): _check_key(name, key) for name, key in keys.items()}


def _check_key(name: str, key: object) -> bytes:
    if isinstance(key, str):
        key = _decode(key)
        if key is None:
            raise InvalidArgument(f"the key {name!r} is not valid Base64")
    if not isinstance(key, bytes):
        kind = type(key).__name__
        raise InvalidArgument(f"the key {name!r} must be bytes or Base64 text, not {kind}")
    if len(key) not in KEY_SIZES:
        raise InvalidArgument(f"the key {name!r} has {len(key)} bytes; 64 or 32 are needed")
    return key


def _decode(text: str) -> bytes | None:
    """The bytes of Base64 text; None if it is not valid."""
    try:
        return b64decode(text.replace("-", "+").replace("_", "/"), validate=True)
    except ValueError:
        return None


def _import_cipher() -> tuple[Any, type[Exception]]:
    """The class of AES-SIV ciphers, and what they raise for changed data."""
    try:
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESSIV
    except ImportError as error:
        message = "encryption needs the extra `encryption`: pip install 'sessionstore[encryption]'"
        raise ImportError(message, name=error.name, path=error.path) from error
    return AESSIV, InvalidTag
