"""CPU seconds that commands take to answer, and the demo to its first step.

    python benchmarks/start_up.py --out benchmarks/results

The bars: `--help` and `list` within 0.5 s (1 s is promised), `fit --print_config` within 8 s, and the run of
`make demo` to the end of its first step within 6 s. Tests assert the cause: no torch is imported.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from clocked import clocked
from report import Promise, header, keep, write
from timed import seconds_of_children

ROUNDS = 7
HELP = ["--help"]
COMMANDS: tuple[tuple[list[str], float], ...] = (
    (HELP, 0.5),
    (["list"], 0.5),
    (["list", "--papers"], 0.5),
    (["fit", "--config", "dmpo.yaml", "--print_config"], 8.0),
)
DEMO = ["fit", "--config", "dmpo.yaml"]
HELP_WITHIN, DEMO_WITHIN = 1.0, 6.0


def run(arguments: list[str]) -> None:
    """Runs a command."""
    subprocess.run([sys.executable, "-m", "alignkit.cli", *arguments], check=True, stdout=subprocess.DEVNULL)


def to_first_step() -> float:
    """User and system time of the demo until its first step is done."""
    with tempfile.TemporaryDirectory() as name:
        told = ["--trainer.max_steps=1", "--evaluation.max_prompts=0", f"--run={name}/run"]
        ((first, *_),) = clocked([*DEMO, *told])
    return first.cpu


def row(what: str, times: Sequence[float], bar: float) -> str:
    """A line of the table."""
    return f"| {what} | {min(times):.2f} | {statistics.median(times):.2f} | {max(times):.2f} | {bar} |"


def main() -> None:
    """Measures each command and writes the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="folder for the table; it is only printed without it")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    lines = [
        *header("Start-up", f"CPU seconds of {ROUNDS} runs each."),
        "| command | least | median | most | bar |",
        "|---|---|---|---|---|",
    ]
    found: dict[str, float] = {}
    for arguments, bar in COMMANDS:
        times = [seconds_of_children(lambda told=arguments: run(told)) for _ in range(ROUNDS)]
        command = f"`alignkit {' '.join(arguments)}`"
        found[command] = statistics.median(times)
        lines.append(row(command, times, bar))
        print(lines[-1])
    times = [to_first_step() for _ in range(ROUNDS)]
    lines.append(row(f"`alignkit {' '.join(DEMO)}`, first step", times, DEMO_WITHIN))
    print(lines[-1])
    if options.out:
        write(lines, options.out, "start_up")
        helped = found[f"`alignkit {' '.join(HELP)}`"]
        first = "CPU seconds of the demo until its first step is done"
        promises = [
            Promise("CPU seconds of alignkit --help", most=HELP_WITHIN, found=helped),
            Promise(first, most=DEMO_WITHIN, found=statistics.median(times)),
        ]
        keep(promises, options.out, "start_up")


if __name__ == "__main__":
    main()
