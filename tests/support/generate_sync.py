"""Writes sessionstore/sync/ from the modules for asyncio.

    python tests/support/generate_sync.py            write the files
    python tests/support/generate_sync.py --check    print what is out of date and exit with 1

A test runs it with `--check`. The parts that cannot be generated are written by hand for each side:
sessionstore/concurrency.py and sessionstore/sync/concurrency.py.
"""

from __future__ import annotations

import argparse
import difflib
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "sessionstore"
SOURCES = (
    PACKAGE / "compactor.py",
    PACKAGE / "runner.py",
    *sorted((PACKAGE / "service").glob("*.py")),
)
# Modules and packages that exist in sessionstore/sync/ too.
SIBLINGS = "service|compactor|runner|concurrency|watchers"

# Regular expressions and what replaces them, in this order.
SUBSTITUTIONS = (
    # Syntax.
    (r"\basync (def|for|with)\b", r"\1"),
    (r"\bawait ", ""),
    (r"\ba(next|iter)\(", r"\1("),
    (r"\bStopAsyncIteration\b", "StopIteration"),
    (r"\b__a(enter|exit|iter|next)__\b", r"__\1__"),
    # Types of the standard library.
    (r"\bAsyncGenerator\[(\w+), None\]", r"Generator[\1, None, None]"),
    (r"\bAsync(ExitStack|Generator|Iterable|Iterator)\b", r"\1"),
    (r"\benter_async_context\b", "enter_context"),
    (r"\bAwaitable\[(\w+)\]", r"\1"),
    # Names of this project.
    (r"\baclose\b", "close"),
    (r"\bAsyncExecutor\b", "SyncExecutor"),
    (r"\bAsyncKeyedExecutor\b", "KeyedExecutor"),
    (r"\bdrive_async\b", "drive"),
    (r"\bconnect_async\b", "connect_sync"),
    (r"\bAsyncMemoryExecutor\(memory\)", "memory"),
    (r"\bAsyncMemoryExecutor, ", ""),
    # Prose.
    (r"\bredis\.asyncio\.Redis\b", "redis.Redis"),
    (r"\btasks\b", "threads"),
    (r"\ban async function\b", "a function"),
    (r"\basyncio\b", "threads"),
)


def generate(source: Path) -> str:
    """The text of the module for threads."""
    text = source.read_text("utf-8")
    for pattern, replacement in SUBSTITUTIONS:
        text = re.sub(pattern, replacement, text)
    # Imports from sessionstore/: one package up, except of what sync/ has too.
    dots = r"\." * len(source.relative_to(PACKAGE).parts)
    text = re.sub(rf"(?m)^from ({dots})(?!(?:{SIBLINGS}) )", r"from .\1", text)
    name = source.relative_to(ROOT).as_posix()
    text = f"# Generated from {name} by {script_name()}. Do not edit.\n{text}"
    text = run_ruff(text, "check", "--fix", "--quiet", "--select", "F401,I")
    return run_ruff(text, "format")


def script_name() -> str:
    return Path(__file__).relative_to(ROOT).as_posix()


def run_ruff(text: str, *command: str) -> str:
    """The output of a ruff command for a text."""
    result = subprocess.run(
        [sys.executable, "-m", "ruff", *command, "-"],
        cwd=ROOT,
        input=text,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return result.stdout


def main() -> int:
    parser = argparse.ArgumentParser(description="Write the services and the Runner for threads.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if they differ")
    is_check = parser.parse_args().check
    changed = ""
    for source in SOURCES:
        path = PACKAGE / "sync" / source.relative_to(PACKAGE)
        old = path.read_text("utf-8") if path.exists() else ""
        new = generate(source)
        if not is_check:
            path.write_text(new, "utf-8")
        lines = old.splitlines(keepends=True), new.splitlines(keepends=True)
        changed += "".join(difflib.unified_diff(*lines, str(path), "generated"))
    if is_check and changed:
        print(f"{changed}\nRun `python {script_name()}`.")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
