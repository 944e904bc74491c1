"""Memory of a training step: alignkit's, of published scripts' shape, and the floor.

    python benchmarks/memory.py --out benchmarks/results

Contestants are those of step_time.py, each a process of its own. "held" is what a process holds between
steps, mapped pages of files left out; "peak" is the most that it has held since it started, files included;
"libraries" has imported what the others import, and does nothing.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import torch
from clocked import Held, held
from report import header, write
from step_time import PEERS, SCRIPTS, contestants

sys.path.insert(0, str(PEERS))
from stack import write_stack

STEPS = 8
LIBRARIES = "libraries"
# what contestants import, and then what was held
IMPORTS = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[1:]
import bare, ours
print(Path("/proc/self/status").read_text())
"""


def libraries() -> Held:
    """Of a process that only imports."""
    command = [sys.executable, "-c", IMPORTS, str(PEERS)]
    return held(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measured() -> dict[str, Held]:
    """Of every contestant, the median of what it holds after each step."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as running:
        folder = Path(name)
        started = contestants(write_stack(folder), folder, 2 * STEPS)
        for contestant in started.values():
            running.enter_context(contestant)
        told: dict[str, Held] = {LIBRARIES: libraries()}
        for which, contestant in started.items():
            seen = []
            for _ in range(STEPS):
                contestant.step()
                seen.append(held(contestant.status()))
            told[which] = Held(seen[-1].peak, statistics.median(one.own for one in seen))
        return told


def table(found: dict[str, Held]) -> list[str]:
    """A line for each, and what it holds besides libraries against the scripts' loop."""
    base, scripts = found[LIBRARIES], found[SCRIPTS]
    lines = [
        "| | held, MB | besides libraries | share of the scripts' loop | peak, MB |",
        "|---|---|---|---|---|",
    ]
    for name, one in found.items():
        besides = one.own - base.own
        share = besides / (scripts.own - base.own)
        lines.append(f"| {name} | {one.own:.0f} | {besides:.0f} | {share:.2f} | {one.peak:.0f} |")
    return lines


def main() -> None:
    """Measures and writes the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="folder for the table; it is only printed without it")
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = [*header("Memory of a step", f"Of {STEPS} steps."), *table(measured())]
    print("\n".join(lines))
    if options.out:
        write(lines, options.out, "memory")


if __name__ == "__main__":
    main()
