"""Loads the Lua files, replaces their `--@include name` lines by fragments, and hashes them.

Fragments are in lua/lib and may include others. Each appears in a script once, before its first
use.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType

import msgspec

_include = re.compile(r"--@include (\S+)\s*").fullmatch


class Script(msgspec.Struct, frozen=True):
    """One assembled Lua script.

    Attributes:
        name: the file's name without `.lua`.
        text: the argument of EVAL.
        sha: the argument of EVALSHA: the SHA-1 of the text in hexadecimal digits.
        writes: False if the script declares `flags=no-writes`.
    """

    name: str
    text: bytes
    sha: bytes
    writes: bool


class AssemblyError(Exception):
    """An `--@include` line is not valid. The message names file and line."""


def lua_directory() -> Path:
    """The folder of the Lua files: in the installed package, or next to it in a checkout."""
    package = Path(__file__).resolve().parent
    for folder in (package / "lua", package.parent / "lua"):
        if folder.is_dir():
            return folder
    raise AssemblyError(f"found no Lua files in {package / 'lua'} or {package.parent / 'lua'}")


def assemble(name: str, text: str, read_fragment: Callable[[str], str]) -> str:
    """A script with its includes replaced by fragments, depth first, each once.

    Args:
        name: the script's name, for error messages.
        text: the content of its file.
        read_fragment: returns the text of a fragment; raises KeyError for an unknown name.

    Raises:
        AssemblyError: a fragment is unknown or includes itself.
    """
    done: set[str] = set()

    def expand(file: str, body: str, above: tuple[str, ...]) -> list[str]:
        lines: list[str] = []
        for number, line in enumerate(body.splitlines(), 1):
            found = _include(line)
            if not found:
                lines.append(line)
                continue
            fragment = found[1]
            if fragment in above:
                cycle = " -> ".join((*above, fragment))
                raise AssemblyError(f"{file}.lua:{number}: include cycle {cycle}")
            if fragment in done:
                continue
            done.add(fragment)
            try:
                inner = read_fragment(fragment)
            except KeyError:
                raise AssemblyError(f"{file}.lua:{number}: no fragment {fragment!r}") from None
            lines += expand(f"lib/{fragment}", inner, (*above, fragment))
        return lines

    return "\n".join(expand(name, text, ())) + "\n"


def load_scripts(folder: Path) -> dict[str, Script]:
    """All scripts of a folder, by name."""
    fragments = {path.stem: path.read_text("utf-8") for path in (folder / "lib").glob("*.lua")}
    scripts = {}
    for path in sorted(folder.glob("*.lua")):
        text = assemble(path.stem, path.read_text("utf-8"), fragments.__getitem__).encode()
        scripts[path.stem] = Script(
            name=path.stem,
            text=text,
            # Redis identifies scripts by SHA-1. It is not used for security.
            sha=hashlib.sha1(text, usedforsecurity=False).hexdigest().encode(),
            writes=b"no-writes" not in text.split(b"\n", 1)[0],
        )
    return scripts


SCRIPTS = MappingProxyType(load_scripts(lua_directory()))
"""All scripts, by name. Loaded once, at import."""
