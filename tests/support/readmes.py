"""The READMEs of the project: their Python blocks, and how to run one."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
NAMED_SERVER = "redis://localhost:6379"
"""The address that a block uses. A test replaces it with the address of its own server."""

_fence = re.compile(r"^( *)```python\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
_framework = re.compile(r'\bframework\(\s*"([^"]+)"')
_expected = re.compile(r"^ *print\(.*\)  # (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """One Python block of a README."""

    readme: Path
    line: int
    code: str

    @property
    def name(self) -> str:
        """Where it is, as `README.md:12`."""
        return f"{self.readme.relative_to(ROOT)}:{self.line}"

    @property
    def missing_modules(self) -> list[str]:
        """The modules that it imports and that are not installed."""
        names: list[str] = []
        for node in ast.walk(ast.parse(self.code)):
            if isinstance(node, ast.Import):
                names += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.append(node.module)
        return [name for name in names if not _is_installed(name)]

    @property
    def expected_lines(self) -> list[str]:
        """The output that its comments promise: `print(x)  # one line, then another line`."""
        return [line for text in _expected.findall(self.code) for line in text.split(", then ")]


def readmes() -> list[Path]:
    """Every README.md of the project, and GUIDE.md."""
    found: list[Path] = []
    for folder, names, files in os.walk(ROOT):
        names[:] = [name for name in names if name[0] != "." and name not in ("build", "dist")]
        found += [Path(folder, name) for name in ("README.md", "GUIDE.md") if name in files]
    return sorted(found)


def blocks(readme: Path) -> Iterator[Block]:
    """The Python blocks of a README, in order."""
    text = readme.read_text("utf-8")
    for found in _fence.finditer(text):
        line = text.count("\n", 0, found.start()) + 1
        yield Block(readme, line, textwrap.dedent(found[2]))


def run(block: Block, url: str, folder: Path) -> str:
    """Run a block in a process of its own, and return what it wrote to stderr.

    Args:
        block: the block.
        url: a server, which takes the place of NAMED_SERVER.
        folder: the working directory.
    """
    path = folder / "block.py"
    path.write_text(block.code.replace(NAMED_SERVER, url), "utf-8")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests")))}
    process = subprocess.run(
        [sys.executable, str(path)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    printed = process.stdout.splitlines()
    assert [line for line in block.expected_lines if line not in printed] == [], printed
    return process.stderr


def _is_installed(module: str) -> bool:
    try:
        found = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        return False
    if found is None:
        return False
    if not module.startswith("sessionstore.adapters.") or found.origin is None:
        return True
    source = Path(found.origin).read_text("utf-8")
    packages = _framework.findall(source)
    assert packages, module
    return all(_is_distribution(package) for package in packages)


def _is_distribution(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
