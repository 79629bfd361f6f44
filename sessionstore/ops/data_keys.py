"""The Calls that change the data key of stored values. Those to the key store: ../data_keys.py."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha1

from ..calls import Call
from ..model import SessionKey
from ..replies import decode_count, decode_ok, hash_items
from ..scripts import SCRIPTS
from .base import BaseOps, check_ok, ids_of


class DataKeyOps(BaseOps):
    """Calls on data keys of sessions and values."""

    def set_data_key(self, key: SessionKey, data_key: str, old_key: str) -> Call[None]:
        """Note in the header of a session which data key its next values have."""
        return Call(
            "set_data_key",
            lambda replies: check_ok(replies, key),
            SCRIPTS["set_data_key"],
            self._keys.session(*ids_of(key))[:1],
            (data_key.encode(), old_key.encode()),
        )

    def read_user_tier(self, app_name: str, user_id: str) -> Call[list[tuple[bytes, bytes]]]:
        """Read the user tier as it is stored: keys and values."""
        return Call(
            "get_user_state",
            lambda replies: list(hash_items(replies[0])),
            commands=(("HGETALL", self._keys.user(app_name, user_id).user),),
            writes=False,
            from_primary=True,
        )

    def undo_data_key(self, app_name: str, user_id: str, pairs: Sequence[bytes]) -> Call[None]:
        """Remove state of the user tier that still has these values: key, value, key, ..."""
        keys, script = (self._keys.user(app_name, user_id).user,), SCRIPTS["undo_data_key"]
        return Call("undo_data_key", decode_ok, script, keys, tuple(pairs))

    def reseal_values(
        self,
        hash_key: bytes,
        events: bytes,
        fields: Sequence[tuple[bytes, bytes, bytes]],
        members: Sequence[tuple[int, bytes, bytes]] = (),
    ) -> Call[int]:
        """Put other bytes of the same values in the place of stored ones, unless these changed.

        Args:
            hash_key: the hash of a session or a tier.
            events: the log; b"" = none.
            fields: fields of the hash: name, stored bytes, new bytes.
            members: events: position, stored bytes, new bytes.
        """
        args = [b"%d" % len(fields)]
        for field, old, new in fields:
            args += (field, sha1(old).hexdigest().encode(), new)
        for position, old, new in members:
            args += (b"%d" % position, old, new)
        script, keys = SCRIPTS["reseal_values"], (hash_key, events) if events else (hash_key,)
        return Call("rekey", decode_count, script, keys, tuple(args), is_bulk=True)
