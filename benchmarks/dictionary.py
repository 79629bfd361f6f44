"""Encoded events, to train dictionaries on."""

from __future__ import annotations

from collections.abc import Iterable

from sessionstore import Event
from sessionstore.codec import Codec
from sessionstore.transform import TierOwner

_codec = Codec()
_NOBODY = TierOwner("")  # a codec that only encodes does not use the owner of an event


def encoded(events: Iterable[Event]) -> list[bytes]:
    """The bytes of events as a service without compression stores them."""
    return [_codec.encode_event(event, "event", _NOBODY)[0] for event in events]
