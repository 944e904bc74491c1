"""CPU seconds that commands take to answer.

    python benchmarks/start_up.py --out benchmarks/results

The bars: `--help` and `list` within 0.5 s, `fit --print_config` within 8 s. Tests assert the cause: no torch
is imported.
"""

import argparse
import os
import resource
import subprocess
import sys
from pathlib import Path

from report import header, write

COMMANDS = (
    (["--help"], 0.5),
    (["list"], 0.5),
    (["list", "--papers"], 0.5),
    (["fit", "--config", "dmpo.yaml", "--print_config"], 8.0),
)


def cpu_seconds(arguments: list[str]) -> float:
    """User and system time of one run."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "alignkit.cli", *arguments], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def main() -> None:
    """Measures each command five times and writes the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the table")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    lines = [
        *header("Start-up", "CPU seconds of five runs each."),
        "| command | least | most | bar |",
        "|---|---|---|---|",
    ]
    for arguments, bar in COMMANDS:
        times = [cpu_seconds(arguments) for _ in range(5)]
        lines.append(f"| `alignkit {' '.join(arguments)}` | {min(times):.2f} | {max(times):.2f} | {bar} |")
        print(lines[-1])
    write(lines, options.out, "start_up")


if __name__ == "__main__":
    main()
