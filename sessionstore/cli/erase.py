"""The command `sessionstore erase`: delete all data of a user, and prove it."""

from __future__ import annotations

from collections.abc import Iterator

import click

from ..calls import Flow
from ..drive import drive
from ..keys import StoredKey
from ..ops import Ops
from ..sync import SessionService
from .keyspace import ask, scan
from .opened import counted, print_json, store_options


@click.command(
    "erase",
    short_help="Delete all data of a user, and prove it.",
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
        for key in _keys_of(service, app_name, user_id):
            _print_key(key, as_json)
        return
    if not yes:
        click.confirm(f"Delete all data of user {user_id!r} of {app_name!r}?", abort=True, err=True)
    deleted = service.delete_user(app_name=app_name, user_id=user_id)
    left = list(_keys_of(service, app_name, user_id))
    # Fragments, and the events of a restore, would expire by themselves within an hour.
    temporary = [key.key for key in left if key.is_temporary]
    for name in temporary:
        ask(service, ("UNLINK", name), writes=True)
    if temporary:
        left = list(_keys_of(service, app_name, user_id))
    has_data_key = drive(_has_data_key(service._ops, app_name, user_id), service._executor)
    if as_json:
        print_json(
            {
                "sessions": deleted.num_sessions,
                "state_keys": deleted.num_state_keys,
                "left": [key.key.decode("utf-8", "replace") for key in left],
                "has_data_key": has_data_key,
            }
        )
    else:
        click.echo(
            f"Deleted {counted(deleted.num_sessions, 'session')} and"
            f" {counted(deleted.num_state_keys, 'state key')}. Redis keys left: {len(left)}"
        )
        for key in left:
            _print_key(key, as_json)
        if has_data_key:
            click.echo("The user's data key is left: something was written meanwhile.")
        elif service._ops.data_keys is not None:
            click.echo("The user's data key is gone: no copy of the data can be read any more.")
    context.exit(1 if left or has_data_key else 0)


def _has_data_key(ops: Ops, app_name: str, user_id: str) -> Flow[bool]:
    """Whether the key store has a data key of a user."""
    if ops.data_keys is None:
        return False
    name, _ = yield ops.data_keys.read_wrapped((app_name, user_id))
    return name is not None


def _keys_of(service: SessionService, app_name: str, user_id: str) -> Iterator[StoredKey]:
    seen = set()
    for key in scan(service, app_name):
        if key.user_id == user_id and key.key not in seen:
            seen.add(key.key)
            yield key


def _print_key(key: StoredKey, as_json: bool) -> None:
    name = key.key.decode("utf-8", "replace")
    if as_json:
        print_json({"key": name, "role": key.role})
    else:
        click.echo(name)
