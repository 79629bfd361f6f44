"""The file that --output names."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO

from .store import CannotStart


@contextmanager
def output_file(path: Path, mode: int = 0o666) -> Iterator[BinaryIO]:
    """A file that gets its name when the context ends without an error.

    Until then the file that had the name is as it was; it leaves its mode to the new one. A device
    or a pipe is written directly.

    Raises:
        CannotStart: it cannot be written.
    """
    try:
        if path.exists() and not path.is_file():
            with path.open("wb") as file:
                yield file
            return
        target = path.resolve()  # a link stays a link
        part = target.with_name(f"{target.name}.part")
        try:
            with open(part, "wb", opener=partial(os.open, mode=mode)) as file:
                if target.exists():
                    shutil.copymode(target, part)
                yield file
            part.replace(target)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise CannotStart(f"{path}: {error.strerror or error}") from error
