"""What a reference bank changes: no weight, and the time that a sweep takes.

    python benchmarks/bank.py --out benchmarks/results

The bars: after 50 steps from the same cache, weights with and without a bank differ by at most 1e-6; and a
sweep of six betas takes at most 1/1.2 of the CPU time of six cached runs, what is made once included on both
sides. Everything is a process as users run it, start-up and evaluation included, on the embedded default;
runs and sweep take turns, forth and back.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from report import Promise, header, keep, write
from safetensors.torch import load_file
from timed import seconds_of_children

BETAS = ("250", "500", "1000", "2000", "4000", "8000")
STEPS = 50
WITHIN, BAR = 1e-6, 1.2
CONFIG = "diffusion_dpo.yaml"
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def alignkit(*arguments: str, folder: Path) -> None:
    """Runs a command."""
    with (folder / "log.txt").open("a") as log:
        command = [sys.executable, "-m", "alignkit.cli", *arguments]
        subprocess.run(command, cwd=folder, check=True, stdout=log, stderr=log)


def difference(folder: Path, options: Sequence[str]) -> float:
    """How far weights are apart with a bank and without one."""
    config = ["--config", CONFIG, *options]
    alignkit("cache", "--config", CONFIG, "--out", "cache", folder=folder)
    cached = [*config, "--data.cache=cache"]
    alignkit("cache", "--reference", *cached, "--out", "bank", folder=folder)
    alignkit("fit", *cached, "--run=plain", folder=folder)
    alignkit("fit", *cached, "--data.bank=bank", "--run=banked", folder=folder)
    plain, banked = (load_file(folder / run / WEIGHTS) for run in ("plain", "banked"))
    return max(float((plain[name] - banked[name]).abs().max()) for name in plain)


def one_by_one(folder: Path, options: Sequence[str]) -> None:
    """Six runs from one cache."""
    alignkit("cache", "--config", CONFIG, "--out", "cache", folder=folder)
    for beta in BETAS:
        told = ["--config", CONFIG, *options, "--data.cache=cache", f"--objective.beta={beta}"]
        alignkit("fit", *told, f"--run=beta-{beta}", folder=folder)


def swept(folder: Path, options: Sequence[str]) -> None:
    """The same by a sweep."""
    alignkit("sweep", CONFIG, f"--grid=objective.beta={','.join(BETAS)}", *options, folder=folder)


def main() -> None:
    """Compares, times and writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="folder for the table; it is only printed without it")
    parser.add_argument("--rounds", type=int, default=2, help="how often each is timed, at least 2 (2)")
    parser.add_argument("--steps", type=int, help="optimizer steps of each timed run; the config's own")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    few = [f"--trainer.max_steps={STEPS}", "--evaluation.max_prompts=0", "--samples.num_prompts=0"]
    with tempfile.TemporaryDirectory() as name:
        apart = difference(Path(name), few)
    timed = [] if options.steps is None else [f"--trainer.max_steps={options.steps}"]
    taken: dict[str, list[float]] = {"six cached runs": [], "alignkit sweep": []}
    ways = {"six cached runs": one_by_one, "alignkit sweep": swept}
    for number in range(options.rounds):
        for way in ways if number % 2 == 0 else reversed(ways):
            with tempfile.TemporaryDirectory() as name:
                folder, run = Path(name), ways[way]
                taken[way].append(seconds_of_children(lambda folder=folder, run=run: run(folder, timed)))
            print(f"{way}: {taken[way][-1]:.0f} s", flush=True)
    ratios = [a / b for a, b in zip(*taken.values(), strict=True)]
    lines = [
        *header("A reference bank", f"The embedded default, {CONFIG}; CPU seconds, all processes."),
        f"Largest difference of a weight after {STEPS} steps with and without a bank: {apart:.1e}.",
        "",
        f"Six betas, {' '.join(timed) or 'as many steps as the config has'}:",
        "",
        "| | CPU seconds | |",
        "|---|---|---|",
        *(f"| {way} | {', '.join(f'{s:.0f}' for s in seconds)} | |" for way, seconds in taken.items()),
        f"| times faster, bar {BAR} | {', '.join(f'{ratio:.2f}' for ratio in ratios)} "
        f"| median {statistics.median(ratios):.2f} |",
    ]
    print("\n".join(lines))
    if options.out:
        write(lines, options.out, "bank")
        same = f"largest difference of a weight after {STEPS} steps with and without a reference bank"
        faster = "a sweep of six betas with one bank, against six cached runs: times faster"
        found = [
            Promise(same, most=WITHIN, found=apart),
            Promise(faster, least=BAR, found=statistics.median(ratios)),
        ]
        keep(found, options.out, "bank")


if __name__ == "__main__":
    main()
