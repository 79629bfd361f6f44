"""The assembled scripts pass luacheck: no undefined, unused or shadowed names, 100 columns."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from sessionstore.scripts import SCRIPTS

OPTIONS = [
    *("--std", "lua51"),
    *("--read-globals", "redis", "KEYS", "ARGV"),
    *("--max-line-length", "100"),
    "--no-unused-secondaries",
    # A script may include fragments below its own locals, whose names their parameters then repeat.
    *("--ignore", "431"),
    "--no-color",
]

luacheck = shutil.which("luacheck")
pytestmark = pytest.mark.skipif(
    luacheck is None, reason="luacheck is not on PATH (Debian package lua-check)"
)


def lint(folder: Path, text: bytes) -> subprocess.CompletedProcess[str]:
    file = folder / "script.lua"
    file.write_bytes(text.replace(b"#!lua", b"--!lua", 1))
    assert luacheck is not None
    return subprocess.run(
        [luacheck, str(file), *OPTIONS], capture_output=True, text=True, check=False, timeout=60
    )


@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_script(name: str, tmp_path: Path) -> None:
    result = lint(tmp_path, SCRIPTS[name].text)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("local a = undefined_name", "undefined_name"),
        ("some_global = 1", "some_global"),
        ("local never_used = 1", "never_used"),
        ("redis = 1", "redis"),
        ("local x = '" + "x" * 100 + "'", "too long"),
        ("if then", "expected"),
    ],
)
def test_a_planted_defect_fails(line: str, problem: str, tmp_path: Path) -> None:
    text = b"#!lua\n" + line.encode() + b"\nreturn {'OK'}\n"
    result = lint(tmp_path, text)
    assert result.returncode != 0
    assert problem in result.stdout
