"""Adapters: one module per agent framework, one extra each.

    from sessionstore.adapters.openai_agents import StoredSession       # [openai-agents]

Every adapter imports its framework within `framework`, which says what to install when that fails.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version

__all__ = ["framework"]


@contextmanager
def framework(package: str, extra: str, tested: str) -> Iterator[None]:
    """Imports of a framework stand within this; a failing one says what to install.

        with framework("langchain-core", extra="langchain", tested=">=1.0,<2"):
            from langchain_core.messages import BaseMessage

    Args:
        package: the distribution's name on PyPI.
        extra: the extra of sessionstore that installs it.
        tested: the versions that the adapter is tested with, `>=LOW,<HIGH`, as in pyproject.toml.

    Raises:
        ImportError: the framework is not installed, or the installed version lacks what the
            adapter needs; names the versions and the pip command.

    Warns:
        UserWarning: everything could be imported, but from a version that was not tested.
    """
    try:
        found = version(package)
    except PackageNotFoundError:
        found = ""
    low, high = (_numbers(limit) for limit in tested.split(","))
    is_tested = low <= _numbers(found) < high
    try:
        yield
    except ImportError as error:
        reason = f"{package} {found} does not import ({error})"
        if not found:
            reason = f"{package} is not installed"
        elif not is_tested:
            reason = (
                f"{package} {found} is installed, which this adapter does not know ({error}); "
                f"it is tested with {tested}"
            )
        message = f"{reason}: pip install 'sessionstore[{extra}]'"
        raise ImportError(message, name=error.name, path=error.path) from error
    if found and not is_tested:
        warnings.warn(
            f"{package} {found} is installed; its sessionstore adapter is tested with {tested}",
            stacklevel=3,
        )


def _numbers(text: str) -> list[int]:
    """The release part of a version: ">=1.10.0rc1" -> [1, 10]."""
    release = re.match(r"\D{0,2}(\d+(?:\.\d+)*)", text)
    numbers = [int(part) for part in release[1].split(".")] if release else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return numbers
