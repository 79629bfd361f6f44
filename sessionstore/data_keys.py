"""Data keys: with a key store every user has one. It encrypts all that belongs to the user.

A data key is encrypted with the key ring, and stored in another database or server than the data.
When it is removed there, no copy of the data can be read any more. A process caches data keys that
it has read for up to five minutes.

A session stores the name of its data key, and refuses values with another one. So a process that
has cached an old key cannot write with it. A flow that writes with a data key where there was none
(a new session, the user tier) calls `use` afterwards. If the data key is still stored, it stays.
Otherwise the flow removes what it wrote, and starts again. So if delete_user and a write run at the
same time, one of them notices the other.
"""

from __future__ import annotations

import os
import time
from base64 import urlsafe_b64encode
from threading import Lock
from typing import Any

import msgspec

from .calls import AsyncExecutor, Call, CallNeeded, Command, SyncExecutor, checked_reply
from .codec import corrupt
from .encryption import DATA_KEY_MARK, KeyRing, NamedKey, associated_data, encode_parts, name_of_key
from .errors import InvalidArgument, ScriptContractError
from .keys import Keys
from .scripts import SCRIPTS
from .transform import Context, Unreadable

CACHED_S = 300.0
"""How long a process caches a data key that it has read, in seconds."""

_CACHED_LIMIT = 10_000  # data keys, about 5 KB each
_KEY_BYTES = 64

Owner = tuple[str, str]
"""Application and user."""


class DataKey:
    """The data key of a user.

    Attributes:
        owner: whose key it is.
        name: its name, which is stored with every value.
        key: encrypts and decrypts.
        ops: the Ops that write with it; None until they are needed. (Ops are of a higher layer.)
    """

    def __init__(self, owner: Owner, name: str, key: bytes) -> None:
        self.owner = owner
        self.name = name
        self.key = NamedKey(name, key)
        self.ops: Any = None

    def __repr__(self) -> str:
        return f"DataKey({self.name})"


class _Cached:
    """What a service has read about the data key of a user.

    Attributes:
        data_key: the key; None = there is none.
        gone: names of keys that the key store no longer has.
        until: when it must be read again, on the clock `time.monotonic`.
    """

    def __init__(self, data_key: DataKey | None, gone: frozenset[str]) -> None:
        self.data_key = data_key
        self.gone = gone
        self.until = time.monotonic() + CACHED_S


class DataKeys:
    """A cache of data keys, and the Calls to the key store.

    Args:
        ring: encrypts data keys, and what belongs to no user.
        keys: spells the keys.
    """

    def __init__(self, ring: KeyRing, keys: Keys) -> None:
        self.ring = ring
        self._keys = keys
        self._cached: dict[Owner, _Cached] = {}
        self._lock = Lock()

    def cached(self, owner: Owner) -> DataKey | None:
        """The data key of a user, if it is in the cache."""
        found = self._cached.get(owner)
        return found.data_key if found is not None and time.monotonic() < found.until else None

    def forget(self, owner: Owner) -> None:
        """Read the data key of a user again when it is needed."""
        with self._lock:
            self._cached.pop(owner, None)

    def make(self, owner: Owner) -> DataKey:
        """A new data key, which is not stored yet."""
        return DataKey(owner, _new_name(), os.urandom(_KEY_BYTES))

    def key_named(self, owner: Owner, name: str) -> NamedKey:
        """The key that encrypted a value of a user.

        Raises:
            CallNeeded: it must be read first.
            Unreadable: it was removed.
        """
        found = self._cached.get(owner)
        if found is not None and time.monotonic() < found.until:
            if found.data_key is not None and found.data_key.name == name:
                return found.data_key.key
            if name in found.gone:
                raise Unreadable(f"its data key {name!r} was deleted, or belongs to another user")
        raise CallNeeded(self.find(owner, name))

    # -- Calls to the key store ----------------------------------------------------------------

    def find(self, owner: Owner, wanted: str = "") -> Call[DataKey | None]:
        """Read the data key of a user. `wanted`: the name of a key that a value needs."""
        where, read = self._keys.data_key(*owner), self.read_wrapped(owner)

        def decode(replies: list[Any]) -> DataKey | None:
            name, wrapped = replies[0]
            if name is None or wrapped is None:
                return self._note(owner, None, wanted)
            return self._note(owner, self._unwrapped(owner, where, name, wrapped), wanted)

        return msgspec.structs.replace(read, decode=decode)  # type: ignore[arg-type]  # another result

    def read_wrapped(self, owner: Owner) -> Call[tuple[bytes | None, bytes | None]]:
        """Read the name and the encrypted bytes of a user's data key; None if the user has none."""
        where = self._keys.data_key(*owner)

        def decode(replies: list[Any]) -> tuple[bytes | None, bytes | None]:
            name, wrapped = replies[0]
            return name, wrapped

        command: Command = ("HMGET", where, "name", "wrapped")
        return Call(
            "read_data_key",
            decode,
            commands=(command,),
            writes=False,
            from_primary=True,
            for_key_store=True,
        )

    def rewrapped(self, owner: Owner, name: bytes, wrapped: bytes) -> bytes:
        """A data key, encrypted with the first key of the ring. Raises CorruptData."""
        where = self._keys.data_key(*owner)
        key = self._open(owner, where, name.decode(), wrapped)
        return self.ring.first.seal(key, _associated_data(owner, name.decode()))

    def use(self, owner: Owner) -> Call[DataKey]:
        """The data key of a user, made if there is none. A running delete_user then keeps it."""
        where = self._keys.data_key(*owner)
        name = _new_name()
        wrapped = self.ring.first.seal(os.urandom(_KEY_BYTES), _associated_data(owner, name))

        def decode(replies: list[Any]) -> DataKey:
            _, *stored = checked_reply(replies[0], 3)
            found = self._unwrapped(owner, where, *stored)
            self._note(owner, found, "")
            return found

        script = SCRIPTS["use_data_key"]
        args = (name.encode(), wrapped)
        return Call("use_data_key", decode, script, (where,), args, for_key_store=True)

    def retire(self, owner: Owner, token: str) -> Call[None]:
        """Mark the data key of a user as about to be removed."""

        def decode(replies: list[Any]) -> None:
            checked_reply(replies[0], 1)

        return self._call("retire_data_key", owner, token, decode)

    def delete(self, owner: Owner, token: str) -> Call[bool]:
        """Remove the data key of a user, unless it was used since `retire`. True = it was used."""

        def decode(replies: list[Any]) -> bool:
            _, num_left = checked_reply(replies[0], 2)
            self.forget(owner)
            return bool(num_left)

        return self._call("delete_data_key", owner, token, decode)

    def _call(self, name: str, owner: Owner, token: str, decode: Any) -> Call[Any]:
        where = (self._keys.data_key(*owner),)
        return Call(name, decode, SCRIPTS[name], where, (token.encode(),), for_key_store=True)

    def _unwrapped(self, owner: Owner, where: bytes, name: bytes, wrapped: bytes) -> DataKey:
        text = name.decode("utf-8", "replace")
        known = self.cached(owner)
        if known is not None and known.name == text:
            return known
        return DataKey(owner, text, self._open(owner, where, text, wrapped))

    def _open(self, owner: Owner, where: bytes, name: str, wrapped: bytes) -> bytes:
        try:
            return self.ring.key_named(name_of_key(wrapped)).open(
                wrapped, _associated_data(owner, name)
            )
        except ValueError as error:
            raise corrupt(where, error, b"wrapped") from None

    def _note(self, owner: Owner, data_key: DataKey | None, wanted: str) -> DataKey | None:
        gone: frozenset[str] = frozenset()
        if wanted and (data_key is None or data_key.name != wanted):
            earlier = self._cached.get(owner)
            gone = (earlier.gone if earlier is not None else gone) | {wanted}
        with self._lock:
            self._cached.pop(owner, None)
            self._cached[owner] = _Cached(data_key, gone)
            if len(self._cached) > _CACHED_LIMIT:
                del self._cached[next(iter(self._cached))]
        return data_key


class UserEncryption:
    """Encrypts what belongs to a user with the user's data key, and app state with the ring.

    Args:
        keys: the data keys.
        data_key: what is written is encrypted with it; None = nothing of a user is written.
        written: receives keys and values of the user tier that are encrypted.
    """

    def __init__(
        self,
        keys: DataKeys,
        data_key: DataKey | None = None,
        written: list[bytes] | None = None,
    ) -> None:
        self._keys = keys
        self._data_key = data_key
        self._written = written

    def wrap(self, data: bytes, context: Context) -> bytes:
        """An encoded value, encrypted."""
        if not context.user_id:
            return self._keys.ring.wrap(data, context)
        data_key = self._data_key
        if data_key is None and self._keys.ring.read_only:
            return data
        if data_key is None or data_key.owner != context[:2]:
            raise ScriptContractError("a value of a user would be written without its data key")
        sealed = data_key.key.seal(data, associated_data(context))
        if self._written is not None and context.name.startswith("user:"):
            self._written += (context.name.removeprefix("user:").encode(), sealed)
        return sealed

    def unwrap(self, data: bytes, context: Context) -> bytes:
        """The decrypted value. Raises CallNeeded if the data key must be read first."""
        owner = context[:2]
        data_key = self._data_key or self._keys.cached(owner)
        if (
            data_key is not None
            and data_key.owner == owner
            and data.startswith(data_key.key.prefix)
        ):
            return data_key.key.open(data, associated_data(context))
        name = name_of_key(data)
        if not name.startswith(DATA_KEY_MARK):
            return self._keys.ring.unwrap(data, context)
        return self._keys.key_named(owner, name).open(data, associated_data(context))


class AsyncKeyedExecutor:
    """Sends Calls for the key store to one executor, and all other Calls to another.

    Args:
        data: the executor of the data.
        keys: the executor of the key store.

    Raises:
        InvalidArgument: both use the same database.
    """

    def __init__(self, data: AsyncExecutor, keys: AsyncExecutor) -> None:
        _check_apart(data, keys)
        self._data = data
        self._keys = keys

    def execute(self, call: Call[Any]) -> Any:
        """One reply per command of the Call."""
        return (self._keys if call.for_key_store else self._data).execute(call)

    async def aclose(self) -> None:
        """Close both."""
        try:
            await self._data.aclose()
        finally:
            await self._keys.aclose()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._data, name)


class KeyedExecutor:
    """The same for threads.

    Attributes:
        keys: the executor of the key store.
    """

    def __init__(self, data: SyncExecutor, keys: SyncExecutor) -> None:
        _check_apart(data, keys)
        self._data = data
        self.keys = keys

    def execute(self, call: Call[Any]) -> list[Any]:
        """One reply per command of the Call."""
        return (self.keys if call.for_key_store else self._data).execute(call)

    def close(self) -> None:
        """Close both."""
        try:
            self._data.close()
        finally:
            self.keys.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._data, name)


def _check_apart(data: Any, keys: Any) -> None:
    places = []
    for each in (data.traffic(), keys.traffic()):
        host, port = each.server or ("", None)  # several servers: only their URLs are compared
        places.append(("127.0.0.1" if host == "localhost" else host, port, each.database))
    if places[0] == places[1] and places[0][0]:
        raise InvalidArgument("key_store must be another server or database than that of the data")


def _new_name() -> str:
    return DATA_KEY_MARK + urlsafe_b64encode(os.urandom(9)).decode()


def _associated_data(owner: Owner, name: str) -> bytes:
    # No value has this associated data, because an application has a name.
    return encode_parts("", "data key", *owner, name)
