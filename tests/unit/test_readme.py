"""The READMEs match the code: links, names, defaults and types."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from support.readmes import ROOT, blocks, readmes
from support.services import make_ops

import sessionstore
from sessionstore import (
    Event,
    InMemorySessionService,
    RedisSessionService,
    SessionKey,
    SessionService,
    flows,
)

README = ROOT / "README.md"
GUIDE = ROOT / "sessionstore" / "GUIDE.md"
TEXT = README.read_text("utf-8")

_link = re.compile(r"\]\(([^)\s]+)\)")
_heading = re.compile(r"^#+ (.+)$", re.MULTILINE)


def section(title: str) -> str:
    """The text below a heading of the root README."""
    return TEXT.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def anchors(readme: Path) -> set[str]:
    """The anchors that GitHub makes of a README's headings."""
    titles = _heading.findall(readme.read_text("utf-8"))
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("readme", readmes(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(readme: Path) -> None:
    broken = []
    for link in _link.findall(readme.read_text("utf-8")):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = (readme.parent / name).resolve() if name else readme
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("readme", readmes(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_readme_has_marks_of_a_merge(readme: Path) -> None:
    marks = re.compile(r"^(?:<{7}|={7}|>{7})(?: .*)?$", re.MULTILINE)
    assert marks.findall(readme.read_text("utf-8")) == []


@pytest.mark.parametrize("end", ["sessionstore fleet", "/pytest"])
def test_the_set_up_commands_are_one_line_each(end: str) -> None:
    pattern = re.compile(rf"^python3 -m venv .*{re.escape(end)}$", re.MULTILINE)
    assert len(pattern.findall(TEXT)) == 1


@pytest.mark.timeout(300)
def test_the_blocks_pass_mypy_strict(tmp_path: Path) -> None:
    paths = []
    for block in [*blocks(README), *blocks(GUIDE)]:
        path = tmp_path / f"{block.readme.stem.lower()}_{block.line}.py"
        path.write_text(block.code, "utf-8")
        paths.append(str(path))
    process = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path), *paths],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stdout + process.stderr


def options(service: type[SessionService]) -> dict[str, Any]:
    """The options of a service, and their defaults."""
    parameters = inspect.signature(service).parameters
    return {name: parameter.default for name, parameter in parameters.items()}


def test_the_table_of_options_is_complete() -> None:
    rows = re.findall(r"^\| (`[^|]+`) \| ([^|]*?) ?\|", section("Options"), re.MULTILINE)
    said = {name: default for names, default in rows for name in re.findall(r"`(\w+)`", names)}
    defaults = options(RedisSessionService)
    assert set(said) == set(defaults)
    special = {
        "url": "",
        "session_event_limit": "1000 for new sessions",
        "event_size_limit": "8 MiB",
        "value_size_limit": "8 MiB",
        "summary_size_limit": "16 KiB",
    }
    for name, default in defaults.items():
        shown = f'`"{default}"`' if isinstance(default, str) else str(default)
        assert said[name] == special.get(name, shown), name


def test_the_options_in_memory_are_those_that_it_names() -> None:
    names = list(options(RedisSessionService))
    shared = names[names.index("session_event_limit") : names.index("summary_size_limit") + 1]
    assert set(options(InMemorySessionService)) == {*shared, "clock", "cleanup_interval"}


def test_every_operation_is_listed() -> None:
    listed = set(re.findall(r"`(\w+)`", section("Operations").partition("\n\n")[0]))
    listed |= {f"{verb}_app_state" for verb in ("get", "update", "increment", "delete")}
    methods = {name for name in dir(SessionService) if name[0] != "_"}
    assert listed - {"app_state"} == methods - {"aclose"}


def test_the_tree_of_errors_is_the_classes() -> None:
    above: list[type] = [sessionstore.SessionStoreError]
    for line in re.findall(r"^    ( +[A-Z].+)$", section("Errors and logging"), re.MULTILINE):
        depth = (len(line) - len(line.lstrip())) // 2
        for name in re.findall(r"[A-Z]\w+", line.strip().partition("  ")[0].partition(" (")[0]):
            kind = getattr(sessionstore, name)
            assert kind.__bases__[0] is above[depth - 1], name
            above[depth:] = [kind]
    exceptions = {name for name in sessionstore.__all__ if name in vars(sessionstore.errors)}
    assert all(name in section("Errors and logging") for name in exceptions)


def test_every_adapter_is_in_the_table() -> None:
    extras = re.findall(r"^\| [\w -]+ \| `([\w-]+)` \|", section("Adapters"), re.MULTILINE)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    [frameworks] = [
        line.partition("[")[2].partition("]")[0].split(",")
        for line in project["optional-dependencies"]["frameworks"]
        if line.startswith("sessionstore[")
    ]
    assert sorted(extras) == sorted(frameworks)


def test_every_module_is_in_the_table_of_layers() -> None:
    text = (ROOT / "sessionstore" / "README.md").read_text("utf-8")
    layers = text.partition("## Layers\n")[2].partition("\n## ")[0]
    package = ROOT / "sessionstore"
    modules = {path.stem for path in package.glob("[!_]*.py")}
    packages = {path.parent.name for path in package.glob("*/__init__.py")}
    modules |= {path.stem for name in ("flows", "ops") for path in package.glob(f"{name}/[!_]*.py")}
    assert modules | packages <= set(re.findall(r"`(\w+)/?`", layers))


def test_the_targets_in_the_readme_of_the_benchmarks_are_those_of_the_report() -> None:
    readme = (ROOT / "benchmarks" / "README.md").read_text("utf-8")
    report = (ROOT / "benchmarks" / "measured" / "report.md").read_text("utf-8")
    table = report.partition("## Targets")[2].partition("\n\n")[2].strip()
    assert table.count("\n") > 20
    assert table in readme


def test_the_tail_in_the_readme_of_the_scripts_is_what_append_event_sends() -> None:
    text = (ROOT / "lua" / "README.md").read_text("utf-8").partition("### The tail\n")[2]
    event = re.search(r"`(Event\(.+?\))`", text, re.DOTALL)
    assert event is not None
    table = text.partition("```text\n")[2].partition("```")[0]
    shown = [word for line in table.splitlines() for word in line[:18].split()]
    key = SessionKey("shop", "ann", "today")
    call: Any = next(flows.append_event(make_ops(), key, eval(event[1], {"Event": Event}), None))
    sent = [part.decode() if isinstance(part, bytes) else str(part) for part in call.args[6:]]
    assert shown == sent
    assert f"ARGV[{len(call.args)}]" in text
