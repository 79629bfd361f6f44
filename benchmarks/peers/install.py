"""Makes the peers' venvs: `python -m benchmarks.peers.install [NAME ...]`.

They are made in benchmarks/.peers, or in the directory given by the environment variable
SESSIONSTORE_PEERS. An existing venv is kept. To make it again, delete it first.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import venv
from pathlib import Path

from .registry import DIRECTORY, REQUIREMENTS

_DONE = "installed"


def install(name: str, directory: Path) -> str:
    """Make one venv. Returns "", or the reason why it failed."""
    place = directory / name
    if (place / _DONE).exists():
        return ""
    venv.create(place, with_pip=True, clear=True)
    python = place / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    outcome = subprocess.run(
        [*command, *REQUIREMENTS[name]], capture_output=True, text=True, check=False
    )
    if outcome.returncode:
        return outcome.stderr.strip().splitlines()[-1] if outcome.stderr.strip() else "pip failed"
    (place / _DONE).touch()
    return ""


def main() -> int:
    """Make the named venvs, or all."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("names", nargs="*", metavar="NAME", help=", ".join(REQUIREMENTS))
    names = options.parse_args().names or list(REQUIREMENTS)
    unknown = [name for name in names if name not in REQUIREMENTS]
    if unknown:
        options.error(f"unknown peer: {', '.join(unknown)}")
    failed = 0
    for name in names:
        problem = install(name, DIRECTORY)
        failed += bool(problem)
        print(f"{name}: {problem or 'ready'}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
