"""Runs every bench and writes one report: `python -m benchmarks [--small] [--only NAME]`.

Each bench runs in its own process. The report contains their tables and pictures, and ends with all
targets. `--publish` copies the report to benchmarks/measured and the targets to
benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import shutil
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
    "bench_compression",
    "bench_encryption",
    "bench_scripts",
    "bench_bytes",
    "bench_in_memory",
    "bench_many_agents",
    "bench_routing",
    "bench_processes",
    "bench_watching",
    "bench_command_line",
    "bench_telemetry",
    "bench_adapters",
    "bench_peers",
)


TARGETS = "## Targets"
MEASURED = Path(__file__).parent / "measured"
README = Path(__file__).parent / "README.md"


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
    parts = ["# Benchmarks", "Compare the ratios: absolute times depend on the machine."]
    for result in results:
        parts.append(result.as_markdown().strip())
        if (output / f"{result.bench}.svg").exists():
            parts.append(f"![{result.question}]({result.bench}.svg)")
    targets = [target for result in results for target in result.targets]
    reached = sum(target.is_reached for target in targets)
    parts += [f"{TARGETS}: {reached} of {len(targets)} reached", target_table(targets)]
    return "\n\n".join(parts) + "\n"


def publish(output: Path) -> None:
    """Copy report and pictures to benchmarks/measured, and the targets to benchmarks/README.md."""
    MEASURED.mkdir(exist_ok=True)
    for old in MEASURED.iterdir():
        old.unlink()
    for name in ("report.md", *sorted(path.name for path in output.glob("*.svg"))):
        shutil.copy(output / name, MEASURED)
    table = (output / "report.md").read_text("utf-8").partition(TARGETS)[2].partition("\n\n")[2]
    before, begin, rest = README.read_text("utf-8").partition("<!-- targets -->\n")
    _, end, after = rest.partition("<!-- end -->\n")
    README.write_text(f"{before}{begin}{table}{end}{after}", "utf-8")


def main() -> int:
    """Run the benches; 1 if one failed. A target that is not reached is not a failure."""
    options = parser(__doc__)
    options.add_argument("--only", action="append", metavar="NAME", choices=BENCHES)
    options.add_argument(
        "--publish", action="store_true", help="publish the report that is there, and run nothing"
    )
    arguments = options.parse_args()
    if arguments.publish:
        publish(arguments.output)
        return 0
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
