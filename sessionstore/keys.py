"""The only place that spells a Redis key.

    appdata:{app}              hash    app tier
    userdata:{app:user}        hash    user tier
    sessions:{app:user}        zset    index of the user's sessions
    session:{app:user}:sid     hash    header and session tier
    events:{app:user}:sid      zset    the log
    events:{app:user}:sid:id   zset    events of a session that is being restored
    stream:{app:user}:sid      zset    fragments of events that are being written
    datakey:{app:user}         hash    in a key store: the key that encrypts the user's data

Every byte of an id outside `A-Z a-z 0-9 . _ ~ @ + = , -` is percent-encoded. An id therefore never
contains `:`, `{` or `}`: no two (app, user, session) triples share a key, and no id can move a key
to another slot or act as a pattern.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Literal, NamedTuple
from urllib.parse import quote, unquote

from .errors import InvalidArgument

ID_LIMIT = 256
"""Maximum size of an id, in bytes of UTF-8."""

PartitionBy = Literal["user", "app"]

_CACHED_SESSIONS = 16_384  # about 500 bytes each

_SAFE = "._~@+=,-"
_is_plain = re.compile(rf"[A-Za-z0-9{re.escape(_SAFE)}]{{1,{ID_LIMIT}}}", re.ASCII).fullmatch


def encode_id(name: str, value: object) -> str:
    """An id, encoded for a key.

    Args:
        name: the argument that an error message names.
        value: the id.

    Raises:
        InvalidArgument: the id is not a str, empty, not valid Unicode or longer than 256 bytes.
    """
    if not isinstance(value, str):
        raise InvalidArgument(f"{name} must be a str, not {type(value).__name__}")
    if _is_plain(value):
        return value
    if not value:
        raise InvalidArgument(f"{name} must not be empty")
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise InvalidArgument(
            f"{name} is not valid Unicode: it contains a lone surrogate"
        ) from None
    if size > ID_LIMIT:
        raise InvalidArgument(f"{name} is {size} bytes long; at most {ID_LIMIT} are allowed")
    return quote(value, safe=_SAFE)


def _check_key_prefix(value: object) -> str:
    """The prefix, if it is valid.

    Raises:
        InvalidArgument: it is not a str, not valid Unicode or too long, or contains a brace, which
            would act as the hash tag.
    """
    if not isinstance(value, str):
        raise InvalidArgument(f"key_prefix must be a str, not {type(value).__name__}")
    if value:
        encode_id("key_prefix", value)
    if "{" in value or "}" in value:
        raise InvalidArgument("key_prefix must not contain { or }: they mark the hash tag")
    return value


class UserKeys(NamedTuple):
    """The keys of one user.

    `session_index` and `user` share a slot; with partition_by="app" all three do.
    """

    session_index: bytes
    user: bytes
    app: bytes


class SessionKeys(NamedTuple):
    """The keys of one session, in the order in which scripts take them.

    All but `app` share a slot; with partition_by="app" all of them do.

    The channel that wakes watchers of the session has the same name as the key `session`.
    """

    session: bytes
    events: bytes
    session_index: bytes
    user: bytes
    app: bytes

    @property
    def stream(self) -> bytes:
        """The fragments. Only scripts and reads about them use this key."""
        return self.events.replace(b"events:{", b"stream:{", 1)

    @property
    def channel(self) -> bytes:
        """The sharded channel on which scripts publish when the log has changed."""
        return self.session


class UserPattern(NamedTuple):
    """The keys of the indexes and of the state of all users of an application.

    Each is `prefix`, "sessions:" or "userdata:", `head`, an encoded user id, `tail`.
    """

    prefix: str
    head: str
    tail: str

    @property
    def glob(self) -> str:
        """The pattern for SCAN. No other role of keys begins and ends like these two."""
        prefix, head = map(escape_glob, self[:2])
        return f"{prefix}[su]*[sa]:{head}*{self.tail}"

    def user_id(self, key: bytes) -> str:
        """The user id in a key."""
        _, _, rest = key.decode().removeprefix(self.prefix).partition(":" + self.head)
        return unquote(rest[: len(rest) - len(self.tail)])


class StoredKey(NamedTuple):
    """A key of a store, taken apart. What its role does not name is empty text.

    Attributes:
        role: what stands in front of the hash tag.
        app_name: the application.
        user_id: the user.
        session_id: the session.
        is_temporary: it expires by itself soon: fragments, or the events of a restore.
        key: the whole key.
    """

    role: str
    app_name: str
    user_id: str
    session_id: str
    is_temporary: bool
    key: bytes


_ROLES = ("appdata", "userdata", "sessions", "session", "events", "stream", "datakey")


def escape_glob(text: str) -> str:
    """A pattern for SCAN that matches this text only."""
    return re.sub(r"([*?\[\]\\])", r"\\\1", text)


def type_check(key: bytes) -> tuple[str, bytes]:
    """A cheap command that the server refuses if the key has a wrong type."""
    role, _, _ = key.partition(b"{")  # with the prefix, which has no braces
    is_set = role.endswith((b"events:", b"sessions:", b"stream:"))
    return "ZCARD" if is_set else "HLEN", key


class Keys:
    """Spells the keys of one service.

    Args:
        key_prefix: text in front of every key; no braces.
        partition_by: "user" gives every user a cluster slot, "app" every application.
    """

    def __init__(self, key_prefix: str = "", partition_by: PartitionBy = "user") -> None:
        self._prefix = _check_key_prefix(key_prefix)
        if partition_by not in ("user", "app"):
            raise InvalidArgument(f'partition_by must be "user" or "app", not {partition_by!r}')
        self._by_user = partition_by == "user"
        tag = r"\{([^:{}]+)(?::([^:{}]+))?\}" if self._by_user else r"\{([^:{}]+)\}(?::([^:{}]+))?"
        role = rf"{re.escape(key_prefix)}({'|'.join(_ROLES)})"
        self._is_key = re.compile(rf"{role}:{tag}(?::([^:{{}}]+))?(:[^{{}}]+)?").fullmatch
        # An agent uses the same session with every event.
        self._cached_session = lru_cache(maxsize=_CACHED_SESSIONS)(self._spell_session)

    def app(self, app_name: str) -> bytes:
        """The hash of an application's state."""
        return f"{self._prefix}appdata:{{{encode_id('app_name', app_name)}}}".encode()

    def user(self, app_name: str, user_id: str) -> UserKeys:
        """The keys of a user and of the application."""
        app = encode_id("app_name", app_name)
        tag = self._tag(app, encode_id("user_id", user_id))
        prefix = self._prefix
        return UserKeys(
            session_index=f"{prefix}sessions:{tag}".encode(),
            user=f"{prefix}userdata:{tag}".encode(),
            app=f"{prefix}appdata:{{{app}}}".encode(),
        )

    def data_key(self, app_name: str, user_id: str) -> bytes:
        """The key of a key store that holds the data key of a user."""
        app, user = encode_id("app_name", app_name), encode_id("user_id", user_id)
        return f"{self._prefix}datakey:{self._tag(app, user)}".encode()

    def session(self, app_name: str, user_id: str, session_id: str) -> SessionKeys:
        """The keys of a session, its user and its application."""
        try:
            return self._cached_session(app_name, user_id, session_id)
        except TypeError:  # not hashable, so not a str: encode_id names the argument
            return self._spell_session(app_name, user_id, session_id)

    @staticmethod
    def staged(keys: SessionKeys, creation_id: str) -> bytes:
        """Where events of a session are collected that `restore_session` will create."""
        return keys.events + b":" + creation_id.encode()

    def users(self, app_name: str) -> UserPattern:
        """The pattern of the indexes and of the state of an application's users."""
        tag = self._tag(encode_id("app_name", app_name), "*")
        head, _, tail = tag.partition("*")
        return UserPattern(self._prefix, head, tail)

    def glob(
        self,
        app_name: str | None = None,
        user_id: str | None = None,
        *,
        kind: Literal["all", "heads", "owners"] = "all",
    ) -> str:
        """The pattern for SCAN of all keys; or those of an application, or of a user.

        It may match other keys too: see `parse`.

        Args:
            app_name: the application; None = all.
            user_id: the user; None = all.
            kind: "heads" leaves out events, "owners" also sessions and fragments.
        """
        role = {"all": "*", "heads": "[^e]*", "owners": "[asu]*[as]"}[kind]
        if app_name is None:
            tag = "{"
        else:
            app = encode_id("app_name", app_name)
            tag = f"{{{app}[:}}]"
            if user_id is not None:
                tag = self._tag(app, encode_id("user_id", user_id))
        return f"{escape_glob(self._prefix)}{role}:{tag}*"

    def parse(self, key: bytes) -> StoredKey | None:
        """What a key belongs to; None if this store has no such keys."""
        name = key.decode("utf-8", "replace")
        found = self._is_key(name)
        if found is None:
            return None
        role, app_name, user_id, session_id, rest = found.groups("")
        of_session = role in ("session", "events", "stream")
        if bool(user_id) == (role == "appdata") or bool(session_id) != of_session:
            return None  # a service with the other partition_by wrote it
        if "%" in name:
            app_name, user_id, session_id = map(unquote, (app_name, user_id, session_id))
        is_temporary = role == "stream" or bool(rest)
        return StoredKey(role, app_name, user_id, session_id, is_temporary, key)

    def _spell_session(self, app_name: str, user_id: str, session_id: str) -> SessionKeys:
        app = encode_id("app_name", app_name)
        tag = self._tag(app, encode_id("user_id", user_id))
        name = encode_id("session_id", session_id)
        prefix = self._prefix
        return SessionKeys(
            session=f"{prefix}session:{tag}:{name}".encode(),
            events=f"{prefix}events:{tag}:{name}".encode(),
            session_index=f"{prefix}sessions:{tag}".encode(),
            user=f"{prefix}userdata:{tag}".encode(),
            app=f"{prefix}appdata:{{{app}}}".encode(),
        )

    def _tag(self, app: str, user: str) -> str:
        return f"{{{app}:{user}}}" if self._by_user else f"{{{app}}}:{user}"
