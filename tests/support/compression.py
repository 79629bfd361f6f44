"""Compression with small dictionaries that were trained on invented events."""

from __future__ import annotations

from pathlib import Path

from sessionstore import Zstd

FOLDER = Path(__file__).parents[1] / "golden" / "compressed"

FIRST, SECOND = ((FOLDER / f"{name}.zdict").read_bytes() for name in ("first", "second"))
"""Two dictionaries."""

COMPRESSION = Zstd(dictionaries=[FIRST], min_bytes=0)
"""Compresses whatever becomes smaller."""

READING = Zstd(dictionaries=[FIRST], read_only=True)
"""Reads what COMPRESSION has compressed, and compresses nothing."""


NEWER = Zstd(dictionaries=[SECOND, FIRST], min_bytes=0)
"""Compresses with another dictionary, and reads both."""


def plain(data: bytes) -> bytes:
    """The encoded value in stored bytes."""
    return NEWER.unwrap(data)
