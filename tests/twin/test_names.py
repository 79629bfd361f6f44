"""Each Lua file has one Python function of the same name in the twin."""

from __future__ import annotations

import inspect
import sys
from types import ModuleType

from sessionstore.scripts import SCRIPTS, lua_directory
from sessionstore.twin import fragments
from sessionstore.twin.scripts import TWINS

SERVER_TIME = {"server_time_us", "to_ms"}  # the keyspace has the time
HELPERS = {"decimal"}  # Lua converts numbers itself


def functions_of(module: ModuleType) -> dict[str, str | None]:
    """Public functions that a module defines, with their docstrings."""
    return {
        name: inspect.getdoc(value)
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__
    }


def test_every_fragment_has_a_twin() -> None:
    files = {path.stem for path in (lua_directory() / "lib").glob("*.lua")}
    twins = functions_of(fragments)
    assert set(twins) - HELPERS == files - SERVER_TIME
    for name in twins.keys() - HELPERS:
        assert twins[name] == f"lua/lib/{name}.lua"


def test_every_script_has_a_twin() -> None:
    # run_reads only takes the place of MULTI on a server that is out of memory.
    assert set(TWINS) == set(SCRIPTS) - {"run_reads"}
    found: dict[str, str | None] = {}
    for name in {script.__module__ for script in TWINS.values()}:
        found |= functions_of(sys.modules[name])
    assert found == {name: f"lua/{name}.lua" for name in TWINS}
