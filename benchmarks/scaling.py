"""How a step's CPU time grows: with batch, resolution, pairs, processes and points of a path.

    python benchmarks/scaling.py --out benchmarks/results   # needs pip install -e '.[bench]', for the plot

Each curve is `alignkit fit` from a cache on the small stack of step_time.py, and says the exponent of a
power law that is fitted to it beside the one that is expected: 1 where work is added, 0 where it must not be,
and for the resolution that of the forward's operations, as torch's FlopCounterMode counts them. Time has a
part that does not grow, optimizer, loader and Trainer, so that exponents of whole curves are lower than those
of their last step. Points of a curve are processes with one thread that step in turn, forth and back.
"""

import argparse
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from clocked import clocked
from diffusers import UNet2DConditionModel
from many_pairs import measured as first_steps
from report import header, write
from step_time import PEERS, config, rounds
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(PEERS))
from stack import PICTURE, RESOLUTION, TOKENS, WIDTH, Stack, stack_in, write_pairs, write_stack
from turns import Contestant

BATCHES = (1, 2, 4, 8, 16)
RESOLUTIONS = (64, 128, 256, 512)
POINTS = (1, 2, 4, 8)
PATH_STEPS = 16
COUNTS = (1_000, 10_000, 100_000)
RANKS = (1, 2, 4)
# of pairs that are few enough for their paths to be inverted, and large pictures to be encoded, at once
FEW = 8
# micro-steps of a process between which ranks are timed
FROM, TO = 4, 28
FACTOR, CHANNELS = 8, 4


class Curve(NamedTuple):
    """A measured curve.

    Args:
        title: what grows over what.
        unit: of ``x``.
        seconds: CPU seconds at each ``x``, by round.
        work: that is expected at each ``x``, in any unit.
        why: it is.
    """

    title: str
    unit: str
    seconds: Mapping[float, Sequence[float]]
    work: Sequence[float]
    why: str

    @property
    def medians(self) -> list[float]:
        """Of the rounds."""
        return [statistics.median(times) for times in self.seconds.values()]

    @property
    def exponents(self) -> list[float]:
        """Of the power law that is fitted to each round."""
        places = list(self.seconds)
        return [exponent(places, times) for times in zip(*self.seconds.values(), strict=True)]

    @property
    def last(self) -> float:
        """Exponent between the last two points."""
        return exponent(list(self.seconds)[-2:], self.medians[-2:])

    @property
    def expected(self) -> tuple[float, float]:
        """Exponents of the work: of the whole curve, and between the last two points."""
        places = list(self.seconds)
        return exponent(places, self.work), exponent(places[-2:], self.work[-2:])


def exponent(x: Sequence[float], y: Sequence[float]) -> float:
    """Of the power law that fits best, by least squares of logarithms.

    Example:
        >>> round(exponent([1, 2, 4], [3, 12, 48]), 6)
        2.0
    """
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def stepping(runs: Mapping[float, Sequence[str]], count: int) -> dict[float, list[float]]:
    """CPU seconds of a step of each run, by round.

    Args:
        runs: arguments of ``alignkit fit``.
        count: of rounds.
    """
    with ExitStack() as running:
        started = {
            str(x): running.enter_context(Contestant(PEERS / "ours.py", ["fit", *told], {}))
            for x, told in runs.items()
        }
        taken = rounds(started, count)
    return {x: taken[str(x)].seconds for x in runs}


def told(folder: Path, name: str, stack: Stack, *options: str, resolution: int = RESOLUTION) -> list[str]:
    """Arguments of ``alignkit fit`` on a stack."""
    path = folder / f"{name}.yaml"
    path.write_text(config(stack, 10_000, resolution))
    return ["--config", str(path), *options, "--run", str(folder / name)]


def cached(folder: Path, stack: Stack, resolution: int = RESOLUTION) -> str:
    """Makes a cache of latents, once; returns the option that names it."""
    name = f"cache-{stack.pairs.stem}-{resolution}"
    out = folder / name
    if not out.exists():
        _, path, *_ = told(folder, name, stack, resolution=resolution)
        make = [sys.executable, "-m", "alignkit.cli", "cache", "--config", path, "--out", str(out)]
        subprocess.run(make, check=True, stdout=subprocess.DEVNULL)
    return f"--data.cache={out}"


def over_batch(folder: Path, count: int) -> Curve:
    """A step over its pairs."""
    stack = stack_in(folder)
    cache = cached(folder, stack)
    runs = {n: told(folder, f"batch{n}", stack, cache, f"--data.batch_size={n}") for n in BATCHES}
    return Curve("a step", "pairs in a batch", stepping(runs, count), BATCHES, "every pair is as much work")


def over_resolution(folder: Path, count: int) -> Curve:
    """A step of one pair over the side of its latents."""
    stack, runs = few(folder), {}
    for side in RESOLUTIONS:
        options = [cached(folder, stack, side), "--data.batch_size=1"]
        runs[side // FACTOR] = told(folder, f"side{side}", stack, *options, resolution=side)
    flops = [forward_flops(stack, side) for side in runs]
    why = "operations of a forward; the softmax of attention is not among them"
    return Curve("a step of one pair", "side of the latents", stepping(runs, count), flops, why)


def over_points(folder: Path, count: int) -> Curve:
    """A step over the points that it takes of kept paths."""
    stack = few(folder)
    cache = cached(folder, stack)
    sampler = ["--sampler=DDIMInversion", f"--sampler.num_steps={PATH_STEPS}"]
    runs = {
        n: told(
            folder,
            f"points{n}",
            stack,
            cache,
            *sampler,
            f"--sampler.points={n}",
            f"--sampler.cache={folder / 'paths'}{n}",
        )
        for n in POINTS
    }
    why = "every point is a forward of policy and reference"
    return Curve("a step of Inversion-DPO", "points of a kept path", stepping(runs, count), POINTS, why)


def over_pairs(folder: Path, count: int) -> Curve:
    """From start to first step over the pairs of the data set."""
    found = {n: [dict(first_steps(n, 1))["cached"].cpu for _ in range(count)] for n in COUNTS}
    return Curve(
        "start to first step", "pairs of the data set", found, [1.0] * len(COUNTS), "most pairs are not read"
    )


def over_ranks(folder: Path, count: int) -> Curve:
    """A pair over the processes that train together."""
    stack = stack_in(folder)
    cache = cached(folder, stack)
    found: dict[float, list[float]] = {n: [] for n in RANKS}
    for number in range(count):
        for n in RANKS if number % 2 == 0 else reversed(RANKS):
            options = [cache, f"--trainer.devices={n}", "--trainer.strategy=ddp", f"--trainer.max_steps={TO}"]
            processes = clocked(["fit", *told(folder, f"ranks{n}-{number}", stack, *options)])
            spent = [moments[TO - 1].cpu - moments[FROM - 1].cpu for moments in processes]
            found[n].append(statistics.mean(spent) / (TO - FROM))
    same = [1.0] * len(RANKS)
    return Curve("a step of each process", "processes", found, same, "each has as many pairs, however many")


CURVES: dict[str, Callable[[Path, int], Curve]] = {
    "batch": over_batch,
    "resolution": over_resolution,
    "pairs": over_pairs,
    "ranks": over_ranks,
    "points": over_points,
}


def few(folder: Path) -> Stack:
    """The stack with few pairs."""
    stack = stack_in(folder)._replace(pairs=folder / "few" / "few.jsonl")
    if not stack.pairs.exists():
        stack.pairs.parent.mkdir()
        write_pairs(stack.pairs, pairs=FEW, pictures=2 * FEW, side=PICTURE)
    return stack


def forward_flops(stack: Stack, side: float) -> float:
    """Operations of a forward of the UNet for one picture."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(stack.pipeline / "unet"))
        x_NCHW = torch.empty(1, CHANNELS, int(side), int(side))
        unet(x_NCHW, torch.empty(1, dtype=torch.int64), torch.empty(1, TOKENS, WIDTH))
    return counter.get_total_flops()


def table(curves: Sequence[Curve]) -> list[str]:
    """A line for each curve, and its points."""
    lines = [
        "| CPU time of | over | exponent (least to most of the rounds) | expected | of the last step "
        "| expected | because |",
        "|---|---|---|---|---|---|---|",
    ]
    for curve in curves:
        found, (whole, last) = curve.exponents, curve.expected
        lines.append(
            f"| {curve.title} | {curve.unit} | {statistics.median(found):.2f} ({min(found):.2f} to "
            f"{max(found):.2f}) | {whole:.2f} | {curve.last:.2f} | {last:.2f} | {curve.why} |"
        )
    lines += ["", "| | CPU seconds, median of the rounds |", "|---|---|"]
    for curve in curves:
        points = ", ".join(
            f"{x:,g}: {seconds:.3g}" for x, seconds in zip(curve.seconds, curve.medians, strict=True)
        )
        lines.append(f"| {curve.title}, over {curve.unit} | {points} |")
    return lines


def plot(curves: Sequence[Curve], path: Path) -> None:
    """Draws the curves, and what is expected through their last point."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(curves), figsize=(3.2 * len(curves), 3.2), squeeze=False)
    for curve, axis in zip(curves, axes[0], strict=True):
        x, y = list(curve.seconds), curve.medians
        axis.loglog(x, y, "o-", label="measured")
        axis.loglog(x, [y[-1] * work / curve.work[-1] for work in curve.work], "--", label="expected")
        axis.set_title(curve.title, fontsize=10)
        axis.set_xlabel(curve.unit)
        axis.set_xticks(x, [f"{place:,g}" for place in x], minor=False)
        axis.set_xticks([], minor=True)
        axis.set_ylim(min(y) / 2, max(y) * 2)
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("CPU seconds")
    axes[0][0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="folder for table and plot; it is only printed without it")
    parser.add_argument("--rounds", type=int, default=7, help="how many rounds count; 3 for processes (7)")
    parser.add_argument("--only", choices=CURVES, nargs="+", default=list(CURVES), help="these curves")
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    curves = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_stack(folder)
        for which in options.only:
            whole = which in ("pairs", "ranks")
            curves.append(CURVES[which](folder, math.ceil(options.rounds / 2) if whole else options.rounds))
            print("\n".join(table(curves[-1:])), flush=True)
    lines = [*header("How a step grows"), *table(curves)]
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        plot(curves, options.out / "scaling.png")
        lines += ["", "![curves](scaling.png)"]
        write(lines, options.out, "scaling")


if __name__ == "__main__":
    main()
