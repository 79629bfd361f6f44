"""Imports point downward only, only the transport imports redis-py, and layers share topics."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import sessionstore
from sessionstore import SessionService, flows
from sessionstore.ops import Ops
from sessionstore.twin.scripts import TWINS

PACKAGE = Path(sessionstore.__file__).parent

# From the bottom up. A module imports only from lower lines. Modules of a package also import
# each other.
LAYERS: list[set[str]] = [
    {"app_copies", "errors", "times", "scripts", "tier_refreshes", "transform"},
    {"compression", "encryption", "model"},
    {"keys", "codec", "calls", "instances", "summaries"},
    {"data_keys", "drive"},
    {"tiers", "options"},
    {"replies", "windows"},
    {"ops"},
    {"flows"},
    {"transport", "twin", "watchers"},
    {"run_context", "service", "turn_queues"},
    {"concurrency"},
    {"compactor"},
    {"runner", "sync"},
    {"embedded", "observe"},
    {"sessionstore"},  # the package's own __init__
    {"adapters", "telemetry"},
    {"cli"},
]
RANKS = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}

# An adapter may import any library, because every adapter has an extra.
LIBRARIES = {
    "redis": {"transport"},
    "hiredis": {"transport"},
    "zstandard": {"compression"},
    "msgspec": set(RANKS) - {"errors", "times", "transform", "compression", "embedded"},
    "click": {"cli"},
    "opentelemetry": {"telemetry"},
    "rich": {"cli"},
    "cryptography": {"encryption"},
    "jinja2": {"cli"},
    "starlette": {"cli"},
    "uvicorn": {"cli"},
}


def modules() -> Iterator[tuple[str, Path]]:
    """Every module, with its name in LAYERS."""
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        yield ("sessionstore" if parts == ("__init__",) else parts[0]), path


def imports(text: str, depth: int = 1) -> Iterator[tuple[str | None, str | None]]:
    """Every import, including nested ones: (our module, None) or (None, library).

    Args:
        text: a module.
        depth: how many packages deep it is; 1 = directly in `sessionstore`.
    """
    for node in ast.walk(ast.parse(text)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module or ""]
        elif isinstance(node, ast.ImportFrom) and node.level == depth:
            if node.module:
                yield node.module.partition(".")[0], None
                continue
            for alias in node.names:
                yield (alias.name if alias.name in RANKS else "sessionstore"), None
        for name in names:
            top, _, rest = name.partition(".")
            if top == "sessionstore":
                yield (rest.partition(".")[0] or "sessionstore"), None
            else:
                yield None, top


def imports_of(path: Path) -> Iterator[tuple[str | None, str | None]]:
    return imports(path.read_text("utf-8"), len(path.relative_to(PACKAGE).parts))


def test_every_module_has_a_layer() -> None:
    assert {name for name, _ in modules()} <= set(RANKS)


def test_imports_point_downward_only() -> None:
    upward = [
        f"{path.relative_to(PACKAGE)} imports {target}"
        for name, path in modules()
        for target, _ in imports_of(path)
        if target is not None and target != name and RANKS[target] >= RANKS[name]
    ]
    assert upward == []


def test_libraries_are_imported_only_where_they_belong() -> None:
    misplaced = [
        f"{path.relative_to(PACKAGE)} imports {library}"
        for name, path in modules()
        for _, library in imports_of(path)
        if library is not None
        and library not in sys.stdlib_module_names
        and name != "adapters"
        and name not in LIBRARIES.get(library, set())
    ]
    assert misplaced == []


@pytest.mark.parametrize("name", sorted({*flows.__all__, *TWINS}))
def test_an_operation_has_the_same_topic_in_every_layer(name: str) -> None:
    layers = (SessionService, flows, Ops)
    found = [*(getattr(layer, name, None) for layer in layers), TWINS.get(name)]
    modules = {each.__module__ for each in found if each is not None}
    assert len({module.rpartition(".")[2] for module in modules} - {"base"}) == 1, modules


@pytest.mark.parametrize(
    ("text", "depth", "found"),
    [
        ("from .service import SessionService", 1, ("service", None)),
        ("from . import flows", 1, ("flows", None)),
        ("from . import Event", 1, ("sessionstore", None)),
        ("from ..service import SessionService", 2, ("service", None)),
        ("from .. import RedisSessionService", 2, ("sessionstore", None)),
        ("import sessionstore", 1, ("sessionstore", None)),
        ("import sessionstore.sync", 1, ("sync", None)),
        ("from sessionstore.cli.run import x", 1, ("cli", None)),
        ("import redis.asyncio", 1, (None, "redis")),
        ("from redis import Redis", 2, (None, "redis")),
        ("def f():\n    import redis", 1, (None, "redis")),
        ("if True:\n    from .ops import Ops", 1, ("ops", None)),
    ],
)
def test_imports_of_every_kind_are_found(
    text: str, depth: int, found: tuple[str | None, str | None]
) -> None:
    assert list(imports(text, depth)) == [found]


def test_a_sibling_of_the_same_package_is_no_import_from_a_layer() -> None:
    assert list(imports("from .wire import pack", depth=2)) == []
