"""Flows that list the users of an application and delete a user."""

from __future__ import annotations

from uuid import uuid4

from ..calls import Flow
from ..model import DeletedUser
from ..ops import Ops
from ..replies import Place

_DELETED_PER_CALL = 100  # sessions, two keys each


def list_users(ops: Ops, app_name: str) -> Flow[list[str]]:
    """List the users of an application by a scan of all keys of all servers."""
    slots: list[int | None] = [None]
    if ops.app_in_own_slot:  # users are spread over a cluster
        slots = yield ops.list_primaries()
    users: set[str] = set()
    for slot in slots:
        cursor: int | None = None
        while cursor != 0:
            cursor, found = yield ops.list_users(app_name, slot, cursor or 0)
            users.update(found)
    return sorted(users)


def delete_user(ops: Ops, app_name: str, user_id: str) -> Flow[DeletedUser]:
    """Delete the sessions that exist now, and then the state, unless there are new sessions.

    The data key comes last, and only if no session was created and nothing written since `retire`.
    It walks upwards: a session that is written meanwhile moves up, so the walk still reaches it.
    """
    existed_us: int
    existed_us, _ = yield ops.delete_sessions(app_name, user_id, 0, ())
    num_deleted = 0
    place: Place | None = None
    is_end = False
    while not is_end:
        places: list[Place] = yield ops.list_places(
            app_name, user_id, _DELETED_PER_CALL, place, upward=True, for_write=True
        )
        is_end = len(places) < _DELETED_PER_CALL
        if places:
            place = places[-1]
            ids = [each.session_id for each in places]
            _, deleted = yield ops.delete_sessions(app_name, user_id, existed_us, ids)
            num_deleted += deleted
    token = uuid4().hex
    if ops.data_keys is not None:
        yield ops.data_keys.retire((app_name, user_id), token)
    num_left, num_keys = yield ops.delete_user(app_name, user_id)
    created: list[str] = []
    if num_left:
        places = yield ops.list_places(app_name, user_id, num_left, for_write=True)
        created = [each.session_id for each in places]
    has_data_key = False
    if ops.data_keys is not None:
        has_data_key = bool(num_left) or (yield ops.data_keys.delete((app_name, user_id), token))
    return DeletedUser(num_deleted, num_keys, created, has_data_key)
