"""sessionstore.sync is generated from the modules for asyncio; both follow the conventions."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import sessionstore
import sessionstore.sync

ROOT = Path(__file__).parents[2]
SERVICES = [
    kind
    for module in (sessionstore, sessionstore.sync)
    for kind in (
        module.SessionService,
        module.RedisSessionService,
        module.InMemorySessionService,
    )
]
LIFE = {"aclose", "close", "ping"}


def public_methods(kind: type) -> dict[str, Any]:
    return {name: member for name, member in inspect.getmembers(kind) if not name.startswith("_")}


def test_the_generated_modules_are_up_to_date() -> None:
    command = [sys.executable, "tests/support/generate_sync.py", "--check"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_module_of_the_services_for_threads_has_a_source() -> None:
    package = ROOT / "sessionstore"
    names = [
        sorted(path.name for path in folder.glob("*.py"))
        for folder in (package / "service", package / "sync" / "service")
    ]
    assert names[0] == names[1]


def test_nothing_in_sync_is_asynchronous() -> None:
    kinds = (ast.AsyncFunctionDef, ast.Await, ast.AsyncFor, ast.AsyncWith)
    for path in (ROOT / "sessionstore" / "sync").rglob("*.py"):
        tree = ast.parse(path.read_text("utf-8"))
        found = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, kinds)]
        assert found == [], path.name


@pytest.mark.parametrize("kind", SERVICES)
def test_every_public_name_has_a_docstring(kind: type) -> None:
    assert kind.__doc__
    for name, member in public_methods(kind).items():
        assert member.__doc__, name


def test_every_public_method_is_named_after_what_it_does() -> None:
    verbs = {"append", "clear", "count", "create", "delete", "get", "list", "pop", "update"}
    verbs |= {"acquire", "free", "increment", "release", "renew", "repair"}
    verbs |= {"compact", "fork", "replace", "restore", "rewind", "watch"}
    methods = public_methods(sessionstore.SessionService)
    assert len(methods) > 15
    for name in methods:
        assert name in LIFE or re.fullmatch(rf"({'|'.join(verbs)})_\w+", name), name


def test_arguments_have_no_abbreviated_names() -> None:
    for member in public_methods(sessionstore.SessionService).values():
        for name in inspect.signature(member).parameters:
            assert name not in {"app", "user", "sid", "ttl", "num"}


def test_both_services_take_the_same_options() -> None:
    only_redis = {"url", "instance_name", "call_timeout", "extra_options", "client"}
    only_redis |= {"wait_replicas", "read_from"}
    only_memory = {"cleanup_interval", "clock"}
    redis_options = dict(inspect.signature(sessionstore.RedisSessionService).parameters)
    memory_options = dict(inspect.signature(sessionstore.InMemorySessionService).parameters)
    assert set(redis_options) - only_redis == set(memory_options) - only_memory
    for name in set(redis_options) & set(memory_options):
        assert redis_options[name] == memory_options[name]


@pytest.mark.parametrize("module", [sessionstore, sessionstore.sync])
def test_a_package_offers_everything_that_it_names(module: Any) -> None:
    assert sorted(module.__all__) == module.__all__
    for name in module.__all__:
        assert getattr(module, name).__doc__
