"""How agents store values: compressed, with a dictionary for events like theirs, or encrypted."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable

from sessionstore import Event, KeyRing, Zstd
from sessionstore.compression import train_dictionary

from ..dictionary import encoded

_SAMPLES = 2000
_DICTIONARY_BYTES = 2048


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options --compression and --encryption of a command."""
    parser.add_argument(
        "--compression", action="store_true", help="the services compress all they can"
    )
    parser.add_argument(
        "--encryption", action="store_true", help="they encrypt, with a data key for each user"
    )


def new_ring() -> KeyRing:
    """A key ring with a random key."""
    return KeyRing({"chaos": os.urandom(64)})


def compression_for(events: Iterable[Event]) -> Zstd:
    """Compresses whatever becomes smaller."""
    return Zstd(dictionaries=[train_dictionary(encoded(events), _DICTIONARY_BYTES)], min_bytes=0)


def numbered_events() -> Iterable[Event]:
    """Events like those of fleets: a name with a number, and state with the same name."""
    for number in range(_SAMPLES):
        name = f"agent-{number % 200}"
        delta = {name: number, f"user:{name}": number}
        yield Event(name, number, id=f"{name}-{number}", state_delta=delta, metadata={"n": 1})


def named_events() -> Iterable[Event]:
    """Events like those of exactly_once."""
    for number in range(_SAMPLES):
        name = f"a{number % 4}-{number}"
        delta = {"last": name, "user:last": name} if number % 2 else {}
        increments = {"n": 1, "user:n": 10} if number % 2 else {}
        yield Event("agent", name, id=name, state_delta=delta, state_increments=increments)
