"""The Calls on the index of a user's sessions, and reads of many sessions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..calls import Call, Command
from ..model import Session, SessionKey
from ..options import check_int
from ..replies import (
    Place,
    SharedState,
    decode_count,
    decode_places,
    decode_session,
    members_with_scores,
)
from ..scripts import SCRIPTS
from ..tiers import Tier
from ..transform import TierOwner
from .base import BaseOps, log_commands

SESSIONS_PER_PAGE_LIMIT = 1000
"""Maximum number of sessions on one page of a list."""


class ListingOps(BaseOps):
    """Calls on the index."""

    def list_places(
        self,
        app_name: str,
        user_id: str,
        limit: int,
        after: Place | None = None,
        *,
        upward: bool = False,
        for_write: bool = False,
    ) -> Call[list[Place]]:
        """Places of a user's sessions in the index, including those of expired sessions.

        Args:
            app_name: the application.
            user_id: the user.
            limit: maximum number of places, 1 or more.
            after: the place before the first one; None = the end of the index.
            upward: False = last updated first, True = last updated last.
            for_write: it is a step of a write, so a replica must not answer.
        """
        index = self._keys.user(app_name, user_id).session_index
        rev = () if upward else ("REV",)
        if after is None:
            command: Command = ("ZRANGE", index, 0, limit - 1, *rev, "WITHSCORES")
            return Call(
                "list_sessions",
                lambda replies: decode_places(index, members_with_scores(replies[0])),
                commands=(command,),
                writes=for_write,
            )

        def decode(replies: list[Any]) -> list[Place]:
            # Redis sorts members with the same score by their bytes.
            same, others = replies
            edge = after.session_id.encode()
            same = [member for member in same if (member > edge if upward else member < edge)]
            entries = [(member, after.updated_us) for member in same]
            return decode_places(index, (entries + members_with_scores(others))[:limit])

        score, end = after.updated_us, "+inf" if upward else "-inf"
        commands: tuple[Command, ...] = (
            ("ZRANGE", index, score, score, "BYSCORE", *rev),
            (
                *("ZRANGE", index, b"(%d" % score, end, "BYSCORE", *rev),
                *("LIMIT", 0, limit, "WITHSCORES"),
            ),
        )
        return Call("list_sessions", decode, commands=commands, writes=for_write)

    def list_sessions(
        self,
        app_name: str,
        user_id: str,
        ids: Sequence[str],
        event_num: int,
        *,
        tiers: bool = True,
    ) -> Call[tuple[list[Session | None], SharedState]]:
        """Read sessions by id; None for a session that has expired.

        Returns the sessions with the state of their own tier, and the state of the other tiers, if
        `tiers` asks for it and they share the slot. A session of release 0.1.0 may have NOT_COUNTED
        as its `event_count`.
        """
        check_int("event_num", event_num, low=0)
        user = self._keys.user(app_name, user_id)
        sessions = [self._keys.session(app_name, user_id, name) for name in ids]
        owner = TierOwner(app_name, user_id)
        shared_tiers: list[tuple[bytes, Tier]] = [(user.user, "user"), (user.app, "app")]
        if self.app_in_own_slot:
            shared_tiers.pop()
        if not tiers:
            shared_tiers.clear()
        first = len(shared_tiers)
        commands: list[Command] = [("HGETALL", tier) for tier, _ in shared_tiers]
        for keys in sessions:
            commands.append(("HGETALL", keys.session))
            if event_num:
                commands += log_commands(keys.events, event_num, None)[0]
        step = 3 if event_num else 1

        def decode(replies: list[Any]) -> tuple[list[Session | None], SharedState]:
            shared = SharedState()
            for reply, (tier_key, tier) in zip(replies, shared_tiers, strict=False):
                shared.add_tier(self._codec, owner, reply, tier_key, tier)
            found: list[Session | None] = []
            for number, (name, keys) in enumerate(zip(ids, sessions, strict=True)):
                at = first + number * step
                if not replies[at]:
                    found.append(None)
                    continue
                parts = [replies[at], (), (), *replies[at + 1 : at + step]]
                key = SessionKey(app_name, user_id, name)
                found.append(decode_session(self._codec, key, keys, parts))
            return found, shared

        # The states of many sessions may be large.
        return Call("list_sessions", decode, commands=tuple(commands), writes=False, is_bulk=True)

    def count_events(self, app_name: str, user_id: str, ids: Sequence[str]) -> Call[list[int]]:
        """How many events sessions have."""
        keys = (self._keys.session(app_name, user_id, name) for name in ids)
        commands = tuple(("ZCARD", each.events) for each in keys)
        return Call("list_sessions", lambda replies: replies, commands=commands, writes=False)

    def prune_index(self, app_name: str, user_id: str, ids: Sequence[str]) -> Call[int]:
        """Remove expired sessions from the index and count them."""
        index = self._keys.user(app_name, user_id).session_index
        sessions = (self._keys.session(app_name, user_id, name).session for name in ids)
        keys = (index, *sessions)
        script = SCRIPTS["prune_index"]
        return Call("prune_index", decode_count, script, keys, tuple(map(str.encode, ids)))
