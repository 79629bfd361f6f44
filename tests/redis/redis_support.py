"""Shared by the tests on real servers: the session of the registry, and its keys."""

from __future__ import annotations

from typing import Any

from support.scene import KEY

from sessionstore.keys import Keys

USER: dict[str, Any] = {"app_name": KEY.app_name, "user_id": KEY.user_id}
IDS: dict[str, Any] = {**USER, "session_id": KEY.session_id}
STATE = {"k": 1, "user:k": 2, "app:k": 3}

SESSION, EVENTS, INDEX, USER_TIER, APP_TIER = Keys().session(**IDS)
STREAM = Keys().session(**IDS).stream
SLOTS = {
    "session": (SESSION, b"hash"),
    "events": (EVENTS, b"zset"),
    "stream": (STREAM, b"zset"),
    "index": (INDEX, b"zset"),
    "user": (USER_TIER, b"hash"),
    "app": (APP_TIER, b"hash"),
}
"""The keys of a session and their types, by the roles that `Operation.keys` names."""
