"""CPU time of a training step: alignkit's, of published scripts' shape, and the floor.

    python benchmarks/step_time.py --out benchmarks/results
    python benchmarks/step_time.py --check         # that all train the same, nothing else

The bars: at least 1.35 times as many pairs a second as the loop of published scripts with cached latents,
1.75 with a reference bank; at most 1.03 times the floor; what comes around a step, Trainer, loader,
guards and progress bar, at most 3 % of it. Every contestant is a process of its own with one
thread, and one of them runs at a time, a step each in turn, forth and back. alignkit has the C library keep
freed memory. The scripts' loop and the floor run as they are, and again with that: alignkit's step is held
against the floor that has it. Before anything is timed, losses and weights of five steps are compared:
alignkit without a cache, the scripts' loop and the floor must agree.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import torch
from report import Promise, header, keep, write
from safetensors.torch import load_file

PEERS = Path(__file__).parent / "peers"
sys.path.insert(0, str(PEERS))
from bare import BETA, CLIP, EPS, LR  # noqa: E402
from stack import BATCH, RESOLUTION, Stack, write_stack  # noqa: E402
from turns import Contestant, Step  # noqa: E402

from alignkit.devices import ALL, LARGEST_BLOCK  # noqa: E402

STEPS_TO_COMPARE, WARM_UP = 5, 2
SCRIPTS, FLOOR = "published scripts' loop", "floor"
SCRIPTS_KEPT, FLOOR_KEPT = f"{SCRIPTS}, freed memory kept", f"{FLOOR}, freed memory kept"
# what alignkit.devices.keep_freed_memory says, before the process begins
KEPT = {"MALLOC_MMAP_THRESHOLD_": str(LARGEST_BLOCK), "MALLOC_TRIM_THRESHOLD_": str(ALL)}
READ, CACHED, BANKED = "alignkit, pictures read", "alignkit, cached", "alignkit, bank"
LOSS_WITHIN, WEIGHTS_WITHIN = 1e-5, 1e-6
# those that must agree, the first with each of the others; rounding of the cache sets the rest apart
EQUAL = (READ, SCRIPTS, SCRIPTS_KEPT, FLOOR, FLOOR_KEPT)


def config(stack: Stack, steps: int, resolution: int = RESOLUTION) -> str:
    """What alignkit is told."""
    return f"""
objective: {{name: DiffusionDPO, beta: {BETA}}}
sampler: SharedNoise
backbone: {{name: StableDiffusion, path: {stack.pipeline}, caption_dropout: 0.0}}
optimizer: {{name: AdamW, lr: {LR}, eps: {EPS}, fused: true}}
data:
  train: {{name: JSONLines, path: {stack.pairs}}}
  batch_size: {BATCH}
  resolution: {resolution}
samples: {{num_prompts: 0}}
trainer: {{accelerator: cpu, max_steps: {steps}, gradient_clip_val: {CLIP}}}
"""


def contestants(stack: Stack, folder: Path, steps: int) -> Mapping[str, Contestant]:
    """Starts all of them; caches and banks are made before."""
    path = folder / "config.yaml"
    path.write_text(config(stack, steps))
    told = ["--config", str(path)]
    cached = ["--data.cache", str(folder / "latents")]
    make = [sys.executable, "-m", "alignkit.cli", "cache", *told]
    subprocess.run([*make, "--out", str(folder / "latents")], check=True, stdout=subprocess.DEVNULL)
    banked = [*cached, "--data.bank", str(folder / "bank")]
    subprocess.run(
        [*make, *cached, "--reference", "--out", str(folder / "bank")], check=True, stdout=subprocess.DEVNULL
    )

    def ours(name: str, more: list[str]) -> Contestant:
        run = ["--run", str(folder / name)]
        return Contestant(PEERS / "ours.py", ["fit", *told, *more, *run], {})

    def bare(name: str, environment: Mapping[str, str] | None = None) -> Contestant:
        return Contestant(PEERS / "bare.py", [str(stack.pipeline.parent), name], environment or {})

    return {
        SCRIPTS: bare("peer"),
        SCRIPTS_KEPT: bare("peer", KEPT),
        READ: ours("read", []),
        CACHED: ours("cached", cached),
        BANKED: ours("bank", banked),
        FLOOR: bare("floor"),
        FLOOR_KEPT: bare("floor", KEPT),
    }


def check(running: Mapping[str, Contestant], folder: Path) -> None:
    """Compares the first steps.

    Raises:
        ValueError: some differ.
    """
    losses, weights = {}, {}
    for name, contestant in running.items():
        losses[name] = [contestant.step().loss for _ in range(STEPS_TO_COMPARE)]
        contestant.write_weights(folder / "weights.safetensors")
        weights[name] = load_file(folder / "weights.safetensors")
    first = EQUAL[0]
    for name in running:
        by_loss = max(abs(a - b) for a, b in zip(losses[first], losses[name], strict=True))
        by_weight = max(float((weights[first][k] - v).abs().max()) for k, v in weights[name].items())
        print(f"{name}: losses differ by {by_loss:.1e} from those of {first}, weights by {by_weight:.1e}")
        if name in EQUAL and (by_loss > LOSS_WITHIN or by_weight > WEIGHTS_WITHIN):
            raise ValueError(f"{name} does not train as {first} does: {losses[first]}, {losses[name]}")


class Taken(NamedTuple):
    """CPU seconds of steps, by round; and those of them that a loop without a Trainer would take."""

    seconds: list[float]
    inside: list[float]


def rounds(running: Mapping[str, Contestant], count: int) -> dict[str, Taken]:
    """What each one's steps take: two in each round, all in turn and back."""
    taken = {name: Taken([], []) for name in running}
    for number in range(WARM_UP + count):
        steps: dict[str, list[Step]] = {name: [] for name in running}
        for name in [*running, *reversed(running)]:
            steps[name].append(running[name].step())
        if number >= WARM_UP:
            for name, both in steps.items():
                taken[name].seconds.append(statistics.mean(step.seconds for step in both))
                taken[name].inside.append(statistics.mean(step.inside for step in both))
    return taken


class Ratios(NamedTuple):
    """Medians over the rounds.

    Args:
        faster: pairs a second against the scripts' loop.
        over: time against the floor that keeps freed memory, as alignkit does.
        around: what comes around a step, as a share of it.
    """

    faster: float
    over: float
    around: float


def ratios(taken: Mapping[str, Taken], name: str) -> Ratios:
    """Ratios of the same rounds."""
    peer, floor = taken[SCRIPTS].seconds, taken[FLOOR_KEPT].seconds
    seconds, inside = taken[name]
    return Ratios(
        statistics.median(a / b for a, b in zip(peer, seconds, strict=True)),
        statistics.median(b / a for a, b in zip(floor, seconds, strict=True)),
        statistics.median(a / b - 1 for a, b in zip(seconds, inside, strict=True)),
    )


def promises(taken: Mapping[str, Taken]) -> list[Promise]:
    """What is promised, and what was found."""
    cached, banked, kept = (ratios(taken, name) for name in (CACHED, BANKED, SCRIPTS_KEPT))
    told = [f"{ours.faster / kept.faster:.2f} if that keeps freed memory, too" for ours in (cached, banked)]
    return [
        Promise(
            "pairs/s from a cache, against the scripts' loop", least=1.35, found=cached.faster, told=told[0]
        ),
        Promise(
            "pairs/s with a reference bank, against the scripts' loop",
            least=1.75,
            found=banked.faster,
            told=told[1],
        ),
        Promise(
            "time of a step from a cache, against the floor, both keeping freed memory",
            most=1.03,
            found=cached.over,
        ),
        Promise("Trainer, loader, guards and logs, share of a step", most=0.03, found=cached.around),
    ]


def table(taken: Mapping[str, Taken]) -> list[str]:
    """Times, and ratios of the same rounds."""
    peer, floor = taken[SCRIPTS].seconds, taken[FLOOR_KEPT].seconds
    lines = [
        "| | ms a step, least | median | pairs/s against the scripts' loop | time against the floor "
        "| Trainer, loader and guards |",
        "|---|---|---|---|---|---|",
    ]
    for name, (seconds, _) in taken.items():
        faster, over, around = ratios(taken, name)
        least, middle = 1e3 * min(seconds), 1e3 * statistics.median(seconds)
        lines.append(
            f"| {name} | {least:.0f} | {middle:.0f} | {faster:.2f} ({min(peer) / min(seconds):.2f}) "
            f"| {over:.3f} ({min(seconds) / min(floor):.3f}) | {f'{around:.1%}' if around else ''} |"
        )
    return lines


def main() -> None:
    """Compares, times and writes the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="folder for the table; it is only printed without it")
    parser.add_argument("--rounds", type=int, default=9, help="how many rounds count (9)")
    parser.add_argument("--check", action="store_true", help="only compare losses and weights")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name, ExitStack() as running:
        folder = Path(name)
        started = contestants(write_stack(folder), folder, 2 * (WARM_UP + options.rounds) + 16)
        for contestant in started.values():
            running.enter_context(contestant)
        check(started, folder)
        if options.check:
            return
        taken = rounds(started, options.rounds)
    lines = [
        *header("Time of a step", "Medians of the ratios of each round; in brackets, of the least."),
        *table(taken),
    ]
    print("\n".join(lines))
    if options.out:
        write(lines, options.out, "step_time")
        keep(promises(taken), options.out, "step_time")


if __name__ == "__main__":
    main()
