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
        tested: the versions that the adapter is tested with, `>=LOW,<HIGH`, as the extra in
            pyproject.toml says it.

    Raises:
        ImportError: the framework is not installed, or the installed version lacks what the
            adapter needs; names the versions and the pip command.

    Warns:
        UserWarning: everything could be imported, but from a version that was not tested.
    """
    command = f"pip install 'sessionstore[{extra}]'"
    try:
        yield
    except ImportError as error:
        found = _version(package)
        if found is None:
            message = f"{package} is not installed: {command}"
        elif _is_tested(found, tested):
            message = f"{package} {found} does not import ({error}): {command}"
        else:
            message = (
                f"{package} {found} is installed, which this adapter does not know "
                f"({error}); it is tested with {tested}: {command}"
            )
        raise ImportError(message, name=error.name, path=error.path) from error
    found = _version(package)
    if found is not None and not _is_tested(found, tested):
        warnings.warn(
            f"{package} {found} is installed; its sessionstore adapter is tested with {tested}",
            stacklevel=3,
        )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _is_tested(found: str, tested: str) -> bool:
    low, high = re.fullmatch(r">=([\d.]+),<([\d.]+)", tested).groups()  # type: ignore[union-attr]  # our own literals
    return _numbers(low) <= _numbers(found) < _numbers(high)


def _numbers(text: str) -> tuple[int, ...]:
    """The release part of a version: "1.10.0rc1" -> (1, 10)."""
    release = re.match(r"\d+(\.\d+)*", text)
    numbers = [int(part) for part in release[0].split(".")] if release else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)
