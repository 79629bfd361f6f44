"""The command `sessionstore erase`: delete all data of a user, and check that nothing is left."""

from __future__ import annotations

from typing import NamedTuple

import click

from ..calls import Flow
from ..drive import drive
from ..encryption import is_of_data_key
from ..keys import StoredKey
from ..ops import Ops
from ..replies import hash_items
from ..sync import SessionService
from .keyspace import ask, ask_each, places, scan
from .opened import counted, print_json, store_options

_SHOWN = 100  # keys that are left


@click.command(
    "erase",
    short_help="Delete all data of a user, and check that nothing is left.",
    help="""Delete a user's sessions and state, and then scan all keys for what is left.

State of the application stays: it belongs to all users. Stop the user's agents first: a session
that is created meanwhile stays.

Exit status: 0 = nothing is left; 1 = something is left.""",
)
@click.argument("app_name", metavar="APP")
@click.argument("user_id", metavar="USER")
@click.option("--dry-run", is_flag=True, help="Only list the user's keys.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@store_options
@click.pass_context
def erase(
    context: click.Context,
    service: SessionService,
    app_name: str,
    user_id: str,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Run the command; the help text is above."""
    if dry_run:
        for key in scan(service, app_name, user_id):
            _print_key(key, as_json)
        return
    if not yes:
        index = service._ops.options.keys.user(app_name, user_id).session_index
        [number] = ask(service, ("ZCARD", index))
        what = f"all data of user {user_id!r} of {app_name!r}, {counted(number, 'session')}"
        try:
            click.confirm(f"Delete {what}?", abort=True, err=True)
        except click.Abort:
            raise click.ClickException(
                "Nothing was deleted; --yes deletes without a question"
            ) from None
    click.echo(f"Deleting user {user_id!r} of {app_name!r} ...", err=True)
    erased = erase_user(service, app_name, user_id)
    if as_json:
        print_json(
            {
                "sessions": erased.num_sessions,
                "state_keys": erased.num_state_keys,
                "num_left": erased.num_left,
                "left": [key.key.decode("utf-8", "replace") for key in erased.left],
                "has_data_key": erased.has_data_key,
            }
        )
    else:
        click.echo(str(erased))
        for key in erased.left:
            _print_key(key, as_json)
    context.exit(1 if erased.num_left or erased.has_data_key else 0)


class Erased(NamedTuple):
    """What was deleted of a user, and what is left."""

    num_sessions: int
    num_state_keys: int
    num_left: int  # keys
    left: list[StoredKey]  # the first ones
    has_data_key: bool | None = None  # None: there is no key store, and none is needed
    needs_key_store: bool = False  # the command has no key store, but the user has a data key

    def __str__(self) -> str:
        text = (
            f"Deleted {counted(self.num_sessions, 'session')} and"
            f" {counted(self.num_state_keys, 'state key')}. Redis keys left: {self.num_left:,}"
        )
        if self.has_data_key is None:
            return text
        if self.needs_key_store:
            return f"{text}. The data key is left: `sessionstore erase` with --key-store removes it"
        if self.has_data_key:
            return f"{text}. The data key is left, because something was written meanwhile"
        return f"{text}. The data key was removed: no copy of the data can be read any more"


def erase_user(service: SessionService, app_name: str, user_id: str) -> Erased:
    """Delete a user's sessions and state, and scan all keys for what is left."""
    needs_key_store = service._ops.data_keys is None and _uses_data_key(service, app_name, user_id)
    deleted = service.delete_user(app_name=app_name, user_id=user_id)
    for key in scan(service, app_name, user_id):
        if key.is_temporary:  # it would expire by itself within an hour
            ask(service, ("UNLINK", key.key), writes=True)
    num_left = 0
    left: list[StoredKey] = []
    for key in scan(service, app_name, user_id):
        num_left += 1
        if len(left) < _SHOWN:
            left.append(key)
    has_data_key = drive(_has_data_key(service._ops, app_name, user_id), service._executor)
    return Erased(
        deleted.num_sessions,
        deleted.num_state_keys,
        num_left,
        left,
        needs_key_store or has_data_key,
        needs_key_store,
    )


def _uses_data_key(service: SessionService, app_name: str, user_id: str) -> bool:
    """Whether a session or state of a user is encrypted with a data key."""
    keys = service._ops.options.keys
    [state] = ask(service, ("HGETALL", keys.user(app_name, user_id).user))
    if any(is_of_data_key(value) for _, value in hash_items(state)):
        return True
    sessions = (
        keys.session(app_name, user_id, place.session_id).session
        for place in places(service, app_name, user_id)
    )
    return any(ask_each(service, (("HGET", key, "data_key") for key in sessions)))


def _has_data_key(ops: Ops, app_name: str, user_id: str) -> Flow[bool | None]:
    """Whether the key store has a data key of a user; None without a key store."""
    if ops.data_keys is None:
        return None
    name, _ = yield ops.data_keys.read_wrapped((app_name, user_id))
    return name is not None


def _print_key(key: StoredKey, as_json: bool) -> None:
    name = key.key.decode("utf-8", "replace")
    if as_json:
        print_json({"key": name, "role": key.role})
    else:
        click.echo(name)
