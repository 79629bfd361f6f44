"""Runs every bench and writes one report: `python -m benchmarks [--small] [--only NAME]`.

Each bench runs in a process of its own. The report holds the tables of all, the pictures, and at
the end everything that has to be reached, with yes or no.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import msgspec

from .harness import parser
from .results import Result, target_table

BENCHES = (
    "bench_overview",
    "bench_append",
    "bench_read",
    "bench_list",
    "bench_fleet_turn",
    "bench_history",
    "bench_memory",
    "bench_scripts",
    "bench_in_memory",
    "bench_many_agents",
    "bench_routing",
    "bench_adapters",
    "bench_peers",
)


def run_bench(name: str, arguments: argparse.Namespace) -> Result | None:
    """Run one bench; None if it fails."""
    command = [sys.executable, "-m", f"benchmarks.{name}", "--output", str(arguments.output)]
    command += ["--small"] if arguments.small else []
    command += ["--server", arguments.server] if arguments.server else []
    command += ["--rounds", str(arguments.rounds)] if arguments.rounds else []
    command += ["--patience", str(arguments.patience)]
    print(f"{name} ...", file=sys.stderr, flush=True)
    root = Path(__file__).resolve().parent.parent
    outcome = subprocess.run(command, cwd=root, stdout=subprocess.PIPE, text=True, check=False)
    if outcome.returncode:
        return None
    return msgspec.json.decode((arguments.output / f"{name}.json").read_bytes(), type=Result)


def report(results: list[Result], output: Path) -> str:
    """The report as Markdown."""
    parts = ["# Benchmarks", "Read the ratios: absolute times are those of one machine."]
    for result in results:
        parts.append(result.as_markdown().strip())
        if (output / f"{result.bench}.svg").exists():
            parts.append(f"![{result.question}]({result.bench}.svg)")
    targets = [target for result in results for target in result.targets]
    reached = sum(target.is_reached for target in targets)
    parts += [f"## Must reach: {reached} of {len(targets)}", target_table(targets)]
    return "\n\n".join(parts) + "\n"


def main() -> int:
    """Run what is asked for; 1 if a bench failed. Targets that are not reached are no failure."""
    options = parser(__doc__)
    options.add_argument("--only", action="append", metavar="NAME", choices=BENCHES)
    arguments = options.parse_args()
    arguments.output = arguments.output.resolve()
    chosen = [name for name in BENCHES if name in (arguments.only or BENCHES)]
    results, failed = [], []
    for name in chosen:
        result = run_bench(name, arguments)
        if result is None:
            failed.append(name)
        else:
            results.append(result)
    text = report(results, arguments.output)
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "report.md").write_text(text, "utf-8")
    everything = b"[" + b",".join(result.as_json() for result in results) + b"]"
    (arguments.output / "report.json").write_bytes(msgspec.json.format(everything) + b"\n")
    print(text)
    for name in failed:
        print(f"{name} failed", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
