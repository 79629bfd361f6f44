"""Scripts are put together from their fragments: depth first, each once, or not at all."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest

from sessionstore.scripts import (
    SCRIPTS,
    AssemblyError,
    assemble,
    load_scripts,
    lua_directory,
)


def assembled(text: str, **fragments: str) -> list[str]:
    return assemble("main", text, fragments.__getitem__).splitlines()


def test_a_script_without_includes_stays_as_it_is() -> None:
    assert assembled("#!lua\nreturn 1\n") == ["#!lua", "return 1"]


def test_a_fragment_takes_the_place_of_its_line() -> None:
    text = "#!lua\n-- header\n--@include a\nreturn 1"
    assert assembled(text, a="A1\nA2\n") == ["#!lua", "-- header", "A1", "A2", "return 1"]


def test_fragments_come_depth_first() -> None:
    fragments = {"a": "--@include b\nA", "b": "--@include c\nB", "c": "C"}
    assert assembled("--@include a\nmain", **fragments) == ["C", "B", "A", "main"]


def test_each_fragment_comes_once() -> None:
    fragments = {"a": "--@include c\nA", "b": "--@include c\nB", "c": "C"}
    text = "--@include a\n--@include b\n--@include c\n--@include a\nmain"
    assert assembled(text, **fragments) == ["C", "A", "B", "main"]


@pytest.mark.parametrize(
    "line", ["-- @include a", " --@include a", "--@include", "--@includes a", "x --@include a"]
)
def test_only_a_whole_line_includes(line: str) -> None:
    assert assembled(line, a="A") == [line]


def test_an_unknown_fragment_is_told_with_file_and_line() -> None:
    with pytest.raises(AssemblyError, match=re.escape("main.lua:3: no fragment 'none'")):
        assembled("#!lua\n\n--@include none")


def test_an_unknown_fragment_of_a_fragment_is_told_with_file_and_line() -> None:
    with pytest.raises(AssemblyError, match=re.escape("lib/a.lua:2: no fragment 'none'")):
        assembled("--@include a", a="A\n--@include none")


def test_a_cycle_is_told_with_file_and_line() -> None:
    fragments = {"a": "A\n--@include b", "b": "B\nB\n--@include a"}
    message = re.escape("lib/b.lua:3: include cycle a -> b -> a")
    with pytest.raises(AssemblyError, match=message):
        assembled("--@include a", **fragments)


def test_a_fragment_that_includes_itself_is_told_with_file_and_line() -> None:
    with pytest.raises(AssemblyError, match=re.escape("lib/a.lua:1: include cycle a -> a")):
        assembled("--@include a", a="--@include a")


def test_a_folder_is_loaded_whole(tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/part.lua").write_text("local function part() return 1 end\n", "utf-8")
    (tmp_path / "one.lua").write_text("#!lua\n--@include part\nreturn part()\n", "utf-8")
    (tmp_path / "two.lua").write_text("#!lua flags=no-writes\nreturn 'é'\n", "utf-8")
    scripts = load_scripts(tmp_path)
    assert set(scripts) == {"one", "two"}
    one, two = scripts["one"], scripts["two"]
    assert one.text == b"#!lua\nlocal function part() return 1 end\nreturn part()\n"
    assert (one.name, two.name) == ("one", "two")
    assert two.text == "#!lua flags=no-writes\nreturn 'é'\n".encode()
    assert one.sha == hashlib.sha1(one.text, usedforsecurity=False).hexdigest().encode()


def test_a_folder_with_an_unknown_fragment_is_refused(tmp_path: Path) -> None:
    (tmp_path / "one.lua").write_text("#!lua\n--@include none\n", "utf-8")
    with pytest.raises(AssemblyError, match=re.escape("one.lua:2")):
        load_scripts(tmp_path)


def test_the_scripts_of_the_project_are_loaded() -> None:
    files = {path.stem for path in lua_directory().glob("*.lua")}
    assert set(SCRIPTS) == files
    assert files
    for script in SCRIPTS.values():
        assert b"--@include" not in script.text
        assert len(script.sha) == 40
    assert len({script.sha for script in SCRIPTS.values()}) == len(SCRIPTS)
