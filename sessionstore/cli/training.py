"""The command `train-dictionary`: trains a dictionary for compression on stored sessions."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import click

from ..compression import DICTIONARY_SIZE, Zstd, dictionary_id
from ..compression import train_dictionary as train
from ..errors import InvalidArgument
from ..keys import StoredKey
from ..model import SessionKey
from ..ops import ids_of
from ..replies import hash_items
from ..sync import SessionService
from ..transform import Unreadable
from .keyspace import ask, scan, with_data_keys
from .opened import counted, print_json, show_bytes, store_options
from .output_file import output_file
from .store import CannotStart

_EVENTS_PER_SESSION = 20
_FIELDS_PER_SESSION = 50  # of the hash, which has state and header
_CANDIDATES = 20  # sessions that are scanned for each one that is sampled
_BYTES_LIMIT = 32 << 20  # of samples
_HELD_OUT = 5  # every fifth session is only measured


@click.command(
    "train-dictionary",
    short_help="Train a dictionary for compression on stored sessions.",
    help="""Train a dictionary for the option compression, on a random sample of sessions of APP.

It reads random events and state of each sampled session, no more than 32 MiB in all. Every fifth
session is not trained on, but shows what the dictionary would save. The file is needed as long as
there is data that was compressed with it. It holds parts of the sampled sessions. So keep and
protect it like the data. Nothing stored is changed.""",
)
@click.argument("app_name", metavar="APP")
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="The file to write. It must not exist.",
)
@click.option(
    "--sessions",
    "num_sessions",
    type=click.IntRange(10, 100_000),
    default=2000,
    show_default=True,
    help="How many sessions to sample.",
)
@click.option(
    "--size",
    type=click.IntRange(1 << 10, 1 << 20),
    default=DICTIONARY_SIZE,
    show_default=True,
    help="Maximum size of the dictionary, in bytes.",
)
@click.option(
    "--level",
    type=click.IntRange(1, 19),
    default=3,
    show_default=True,
    help="The compression level for the measured savings.",
)
@store_options
def train_dictionary(
    service: SessionService,
    app_name: str,
    output: Path,
    num_sessions: int,
    size: int,
    level: int,
    as_json: bool,
) -> None:
    """Run the command; the help text is above."""
    if output.exists():
        raise CannotStart(f"{output} exists, and stored data may need it: name another file")
    with output_file(output, mode=0o600) as file:
        samples, held_out = _sample(service, _choose(service, app_name, num_sessions))
        try:
            dictionary = train(samples, size)
        except (InvalidArgument, ImportError) as error:
            hint = (
                "" if isinstance(error, ImportError) else "; sample more, or pass a smaller --size"
            )
            raise CannotStart(f"{error}{hint}") from error
        file.write(dictionary)
    before = sum(map(len, held_out))
    after = _size(held_out, Zstd(dictionaries=[dictionary], level=level))
    without = _size(held_out, Zstd(level=level))
    if as_json:
        print_json(
            {
                "file": str(output),
                "id": dictionary_id(dictionary),
                "bytes": len(dictionary),
                "trained_values": len(samples),
                "measured_values": len(held_out),
                "measured_bytes": before,
                "compressed_bytes": after,
                "compressed_bytes_without_dictionary": without,
            }
        )
        return
    click.echo(
        f"{output}: dictionary {dictionary_id(dictionary)}, {show_bytes(len(dictionary))}, "
        f"trained on {counted(len(samples), 'value')}, {show_bytes(sum(map(len, samples)))}"
    )
    click.echo(
        f"{counted(len(held_out), 'value')} of other sessions, {show_bytes(before)}: "
        f"{show_bytes(after)} with it ({_share(after, before)}), "
        f"{show_bytes(without)} without a dictionary ({_share(without, before)})"
    )
    if after >= without:
        click.echo("It saves nothing. Train it again when more sessions are stored.", err=True)


def _choose(service: SessionService, app_name: str, count: int) -> list[StoredKey]:
    """A random sample of the sessions of an application.

    A scan returns keys in the order of a hash table, so its first keys are a random sample, too.
    """
    found: dict[tuple[str, str], StoredKey] = {}
    for key in scan(service, app_name):
        if key.role == "session":
            found.setdefault((key.user_id, key.session_id), key)
            if len(found) == count * _CANDIDATES:
                break
    if not found:
        raise CannotStart(f"{app_name!r} has no sessions")
    return random.sample([*found.values()], min(count, len(found)))


def _sample(
    service: SessionService, chosen: Sequence[StoredKey]
) -> tuple[list[bytes], list[bytes]]:
    """Values to train on, and values of other sessions."""
    samples: list[bytes] = []
    held_out: list[bytes] = []
    size = 0
    for number, key in enumerate(chosen):
        session = SessionKey(*key[1:4])
        values = with_data_keys(service, partial(_values, service, session))
        size += sum(map(len, values))
        (samples if number % _HELD_OUT else held_out).extend(values)
        if size > _BYTES_LIMIT:
            break
    return samples, held_out


def _values(service: SessionService, key: SessionKey) -> list[bytes]:
    """Some encoded values of a session, as they are before compression."""
    codec = service._ops.options.codec
    keys = service._ops.options.keys.session(*ids_of(key))
    events, fields = ask(
        service,
        ("ZRANDMEMBER", keys.events, _EVENTS_PER_SESSION),
        ("HRANDFIELD", keys.session, _FIELDS_PER_SESSION, "WITHVALUES"),
    )
    if fields and isinstance(fields[0], list):  # pairs in RESP3
        fields = [part for pair in fields for part in pair]
    try:
        found = [codec.unwrap(data, key, "event") for data in events]
        for field, data in hash_items(fields):
            if field == b"summary":
                found.append(codec.unwrap(data, key, "summary"))
            elif field[:1] == b".":
                found.append(codec.unwrap(data, key, "state", field[1:].decode()))
    except Unreadable as error:
        where = " / ".join(ids_of(key))
        raise CannotStart(f"{where}: a value cannot be read: {error}") from error
    return found


def _size(values: Sequence[bytes], zstd: Zstd) -> int:
    return sum(len(zstd.wrap(value)) for value in values)


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.0%}" if whole else "?"
