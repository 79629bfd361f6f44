"""The command `sessionstore erase`: delete all data of a user, and prove it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import click

from ..keys import StoredKey
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
    erased = erase_user(service, app_name, user_id)
    if as_json:
        print_json(
            {
                "sessions": erased.num_sessions,
                "state_keys": erased.num_state_keys,
                "left": [key.key.decode("utf-8", "replace") for key in erased.left],
            }
        )
    else:
        click.echo(str(erased))
        for key in erased.left:
            _print_key(key, as_json)
    context.exit(1 if erased.left else 0)


class Erased(NamedTuple):
    """What was deleted of a user, and the keys that are left."""

    num_sessions: int
    num_state_keys: int
    left: list[StoredKey]

    def __str__(self) -> str:
        return (
            f"Deleted {counted(self.num_sessions, 'session')} and"
            f" {counted(self.num_state_keys, 'state key')}. Redis keys left: {len(self.left)}"
        )


def erase_user(service: SessionService, app_name: str, user_id: str) -> Erased:
    """Delete a user's sessions and state, and scan all keys for what is left."""
    deleted = service.delete_user(app_name=app_name, user_id=user_id)
    left = list(_keys_of(service, app_name, user_id))
    # Fragments, and the events of a restore, would expire by themselves within an hour.
    temporary = [key.key for key in left if key.is_temporary]
    for name in temporary:
        ask(service, ("UNLINK", name), writes=True)
    if temporary:
        left = list(_keys_of(service, app_name, user_id))
    return Erased(deleted.num_sessions, deleted.num_state_keys, left)


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
