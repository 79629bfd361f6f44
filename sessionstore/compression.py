"""Compression of stored values with zstd and dictionaries that are trained on them.

Events are small, and much of each is the same as in others: names of fields, tools, phrases. A
dictionary holds what they have in common, so a compressed event is much smaller with it.

A stored value is the tag 0x02 and a zstd frame with its size, its checksum, and the id of its
dictionary. The id of a dictionary is a digest of it, so a damaged file is refused.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

from .errors import InvalidArgument
from .transform import COMPRESSED, Unreadable

DICTIONARY_SIZE = 32 << 10
"""Size of a dictionary by default, in bytes. A larger one rarely saves more."""

DECOMPRESSED_LIMIT = 64 << 20
"""Maximum size of a value, in bytes: no value is larger when it is written."""

DICTIONARY_SIZE_LIMIT = 1 << 20
"""Maximum size of a dictionary, in bytes."""

_LEVELS = range(1, 20)  # higher ones take hundreds of megabytes
_MAGIC = b"\x37\xa4\x30\xec"
_MISSING = "compression needs the extra `zstd`: pip install 'sessionstore[zstd]'"


class _ThreadContexts(threading.local):
    """The zstd contexts of one thread: they are not thread-safe, and expensive to make."""

    def __init__(self) -> None:
        self.compress: Any = None
        self.decompress: dict[int, Any] = {}  # by the id of the dictionary; 0 = without one


class Zstd:
    """The option `compression` of a service: compresses values, and reads compressed ones.

    Values that do not become smaller are stored as they are, and so are integers, which scripts add
    to. Size limits apply to values before they are compressed. One object may serve any number of
    services and threads.

    Equal events become equal bytes only if all arguments, except later dictionaries, and the
    release of zstd are the same. If they change between an append and its repeat, the event is
    stored twice.

    Args:
        dictionaries: files that `sessionstore train-dictionary` wrote, or their content. The first
            one compresses; all of them decompress. A value can only be read with the dictionary
            that compressed it, so keep every dictionary as long as there is such data.
        level: from 1, the fastest, to 19, the smallest values.
        min_bytes: smaller values are stored as they are, 0 or more.
        read_only: compress nothing. Services that have this option can read what others compress.

    Raises:
        ImportError: the extra `zstd` is not installed.
        InvalidArgument: an argument is not valid, or a dictionary cannot be read or is damaged.

    Cost: a few microseconds for each value that is written or read.
    """

    def __init__(
        self,
        *,
        dictionaries: Sequence[bytes | str | os.PathLike[str]] = (),
        level: int = 3,
        min_bytes: int = 64,
        read_only: bool = False,
    ) -> None:
        self._zstd = _import_zstd()
        if isinstance(dictionaries, (bytes, str)) or not isinstance(dictionaries, Sequence):
            kind = type(dictionaries).__name__
            raise InvalidArgument(f"dictionaries must be a list, not {kind}")
        if type(level) is not int or level not in _LEVELS:
            raise InvalidArgument(f"level must be an int from 1 to 19, not {level!r}")
        if type(min_bytes) is not int or min_bytes < 0:
            raise InvalidArgument(f"min_bytes must be an int of 0 or more, not {min_bytes!r}")
        if not isinstance(read_only, bool):
            kind = type(read_only).__name__
            raise InvalidArgument(f"read_only must be True or False, not {kind}")
        self._dictionaries: dict[int, Any] = {}
        for number, dictionary in enumerate(dictionaries):
            content = _read_dictionary(dictionary, f"dictionaries[{number}]")
            loaded = self._zstd.ZstdCompressionDict(content, self._zstd.DICT_TYPE_FULLDICT)
            self._dictionaries.setdefault(loaded.dict_id(), loaded)
        self._level = level
        self._min_bytes = min_bytes
        self._read_only = read_only
        self._contexts = _ThreadContexts()

    def __repr__(self) -> str:
        ids = ", ".join(map(str, self._dictionaries))
        return f"Zstd(dictionaries with the ids [{ids}], level={self._level})"

    def __reduce__(self) -> tuple[Any, ...]:
        # The contexts of threads cannot be pickled or copied.
        dictionaries = [each.as_bytes() for each in self._dictionaries.values()]
        return _unpickle, (dictionaries, self._level, self._min_bytes, self._read_only)

    def wrap(self, data: bytes) -> bytes:
        """A value as it is stored: compressed, if that makes it smaller."""
        if len(data) < self._min_bytes or self._read_only:
            return data
        compress = self._contexts.compress
        if compress is None:
            compress = self._contexts.compress = self._compressor()
        packed: bytes = compress(data)
        return COMPRESSED + packed if len(packed) + 1 < len(data) else data

    def unwrap(self, data: bytes) -> bytes:
        """The value in stored bytes that are compressed. Raises the same as `unwrap_all`."""
        return self.unwrap_all([data])[0]

    def unwrap_all(self, stored: Iterable[bytes]) -> list[bytes]:
        """The values in stored bytes, some or all of which are compressed.

        Raises:
            Unreadable: a dictionary is missing, a frame is damaged, or its content is too long.
        """
        decompress = self._contexts.decompress
        parameters = self._zstd.get_frame_parameters
        values = []
        try:
            for data in stored:
                if data[:1] != COMPRESSED:
                    values.append(data)
                    continue
                frame = data[1:]
                found = parameters(frame)
                # content_size of a frame without a size is the largest integer.
                if found.content_size > DECOMPRESSED_LIMIT:
                    raise Unreadable("its zstd frame is too long, or has no size")
                name = found.dict_id
                if name not in decompress:
                    decompress[name] = self._decompressor(name)
                value = decompress[name](frame, 0, False, False)  # one frame, and nothing after it
                if len(value) != found.content_size:  # older releases of zstd skip some frames
                    raise Unreadable("its zstd frame is damaged")
                values.append(value)
        except self._zstd.ZstdError:
            raise Unreadable("its zstd frame is damaged") from None
        return values

    def _compressor(self) -> Any:
        first = next(iter(self._dictionaries.values()), None)
        return self._zstd.ZstdCompressor(
            level=self._level, dict_data=first, write_checksum=True
        ).compress

    def _decompressor(self, dictionary_id: int) -> Any:
        dictionary = self._dictionaries.get(dictionary_id)
        if dictionary_id and dictionary is None:
            raise Unreadable(
                f"it needs the zstd dictionary {dictionary_id}, which was not given (compression=, "
                "on the command line --dictionary)"
            )
        return self._zstd.ZstdDecompressor(dict_data=dictionary).decompress


def _unpickle(dictionaries: list[bytes], level: int, min_bytes: int, read_only: bool) -> Zstd:
    return Zstd(dictionaries=dictionaries, level=level, min_bytes=min_bytes, read_only=read_only)


def train_dictionary(samples: Sequence[bytes], size: int = DICTIONARY_SIZE) -> bytes:
    """A dictionary for values like the samples.

    Args:
        samples: encoded values. A hundred times as many bytes as `size` are good, a thousand times
            as many are enough.
        size: maximum size of the dictionary, in bytes.

    Raises:
        ImportError: the extra `zstd` is not installed.
        InvalidArgument: the samples are too few or too small.
    """
    zstd = _import_zstd()
    try:
        trained: bytes = zstd.train_dictionary(size, list(samples)).as_bytes()
    except zstd.ZstdError:
        raise InvalidArgument(
            f"{len(samples)} samples of {sum(map(len, samples))} bytes are too few to train a "
            f"dictionary of {size} bytes"
        ) from None
    return _MAGIC + _digest_id(trained).to_bytes(4, "little") + trained[8:]


def dictionary_id(dictionary: bytes) -> int:
    """The id of a dictionary, which frames name."""
    return int.from_bytes(dictionary[4:8], "little")


def _digest_id(dictionary: bytes) -> int:
    """The id that a dictionary should have: outside the ranges that zstd reserves."""
    digest = blake2b(dictionary[8:], digest_size=8).digest()
    return (1 << 15) + int.from_bytes(digest, "little") % ((1 << 31) - (1 << 15))


def _read_dictionary(dictionary: object, name: str) -> bytes:
    if isinstance(dictionary, bytes):
        content, what = dictionary, name
    elif isinstance(dictionary, (str, os.PathLike)):
        what = str(dictionary)
        try:
            with Path(dictionary).open("rb") as file:
                content = file.read(DICTIONARY_SIZE_LIMIT + 1)
        except OSError as error:
            raise InvalidArgument(f"{what}: {error.strerror}") from None
    else:
        kind = type(dictionary).__name__
        raise InvalidArgument(f"{name} must be bytes or the path of a file, not {kind}")
    is_whole = content[:4] == _MAGIC and dictionary_id(content) == _digest_id(content)
    if not is_whole or len(content) > DICTIONARY_SIZE_LIMIT:
        raise InvalidArgument(
            f"{what} is not a dictionary of `sessionstore train-dictionary`, or it is damaged"
        )
    return content


def _import_zstd() -> Any:
    try:
        import zstandard
    except ModuleNotFoundError as error:
        raise ImportError(_MISSING) from error
    return zstandard
