"""Kills a run at random moments, goes on with it, and compares it with the one that nobody killed.

    python benchmarks/kill_points.py --points 30 --out benchmarks/results
    python benchmarks/kill_points.py --points 2

The run is three commands on a tiny random pipeline: ``cache`` encodes the pairs, ``fit`` plays two rounds
against itself, which generates, trains, validates and saves, and ``evaluate`` draws and judges. Each point is
a moment in one of these activities: it is drawn which time it happens, and where within it SIGKILL comes,
from outside. The killed command is called again as a user would, and all after it. Then the final weights,
the optimizer, the files of the cache and the figures of the evaluation must be those of the whole run, and
every batch must have held the same pairs, without a gap. One that differs makes this exit with 1.
"""

import argparse
import json
import os
import random
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from report import header
from safetensors.torch import load_file

from alignkit.checkpoints import LAST, CheckpointFiles, kept, read
from alignkit.cli import main as alignkit
from alignkit.data.cache.making import Making
from alignkit.module import AlignModule
from alignkit.rollout import Rollouts
from alignkit.testing.pipelines import tiny_stable_diffusion
from alignkit_diffusers.stable_diffusion import StableDiffusion

# 48 pairs without ties are 6 batches; a round ends after 4 steps, an epoch after 6
CONFIG = """
seed_everything: 3
objective: {name: DiffusionDPO, beta: 200.0}
sampler: {name: SelfPlay, rounds: 2, images_per_prompt: 2, num_steps: 2, batch_size: 2, chunk_size: 2}
backbone: {name: StableDiffusion, path: ../pipeline, caption_dropout: 0.2}
optimizer: {name: AdamW, lr: 1.0e-4}
model: {warmup_steps: 2}
data:
  train: {class_path: alignkit.testing.ToyPairs}
  validation: {class_path: alignkit.testing.ToyPairs, init_args: {count: 20}}
  cache: cache
  batch_size: 8
  resolution: 16
evaluation: {max_prompts: 2, images_per_prompt: 2, num_steps: 4, rewards: [MajorityTaste]}
samples: {num_prompts: 0}
trainer:
  accelerator: cpu
  devices: 1
  max_steps: 8
  check_val_every_n_epoch: null
  val_check_interval: 2
  log_every_n_steps: 1
  enable_progress_bar: false
  callbacks:
  - {class_path: alignkit.callbacks.EMA, init_args: {decay: 0.9}}
"""
COMMANDS = {
    "cache": ["cache", "--config", "tiny.yaml", "--file-rows", "16", "--batch-size", "8"],
    "fit": ["fit", "--config", "tiny.yaml", "--run", "run"],
    "evaluate": ["evaluate", "--run", "run", "--device", "cpu", "--batch-size", "1", "--out", "evaluation"],
}
# activities by the command that they are part of, and what is called for each
ACTIVITIES: dict[str, tuple[str, type, str]] = {
    "training": ("fit", AlignModule, "training_step"),  # and validating
    "saving": ("fit", CheckpointFiles, "save_checkpoint"),
    "generating": ("fit", Rollouts, "generate"),
    "caching": ("cache", Making, "predict_step"),
    "evaluating": ("evaluate", StableDiffusion, "generate"),
}
LOG = "pairs.jsonl"


class Point(NamedTuple):
    """When a run is killed.

    Args:
        activity: in which activity.
        time: which time it happens, from 1.
        share: where within it, of what it usually takes.
    """

    activity: str
    time: int
    share: float


class Usual(NamedTuple):
    """What a whole run does.

    Args:
        counts: how often each activity happens.
        seconds: how long it takes on average.
    """

    counts: dict[str, int]
    seconds: dict[str, float]


def main() -> int:
    """Makes the whole run, kills others, and writes the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--points", type=int, default=30, help="how many; they are spread over activities")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--out", type=Path, help="folder for the table; it is only printed without it")
    options = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # processes are forked, so that none imports torch anew
    torch.set_num_threads(1)
    draw, rows = random.Random(options.seed), []
    with tempfile.TemporaryDirectory(prefix="kill_points_") as name:
        folder = Path(name)
        forked(lambda: int(not tiny_stable_diffusion(folder / "pipeline").is_dir()), folder / "pipeline.txt")
        whole = folder / "whole"
        usual = made(whole)
        for number in range(options.points):
            activity = list(ACTIVITIES)[number % len(ACTIVITIES)]
            point = Point(activity, draw.randint(1, usual.counts[activity]), draw.random())
            killed = folder / f"killed-{number}"
            resumed = killed_and_resumed(killed, whole, point, usual)
            differences = compared(whole, killed)
            rows.append((point, resumed, differences))
            print(number + 1, point, resumed, differences or "identical", flush=True)
            if not differences:
                shutil.rmtree(killed)
    lines = table(rows, usual)
    print("\n".join(lines))
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "kill_points.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return int(any(differences for _, _, differences in rows))


def made(folder: Path) -> Usual:
    """The whole run, and what it does."""
    begin(folder)
    begun: dict[str, float] = {}
    taken = defaultdict(list)
    for command in COMMANDS:
        for at, line in called(folder, command):
            activity, what = line.split()
            if what == "begins":
                begun[activity] = at
            else:
                taken[activity].append(at - begun[activity])
    assert taken.keys() == ACTIVITIES.keys(), taken
    counts = {activity: len(each) for activity, each in taken.items()}
    return Usual(counts, {activity: sum(each) / len(each) for activity, each in taken.items()})


def begin(folder: Path) -> None:
    """A folder with nothing but a config."""
    folder.mkdir()
    (folder / "tiny.yaml").write_text(CONFIG, encoding="utf-8")


def killed_and_resumed(folder: Path, whole: Path, point: Point, usual: Usual) -> str:
    """Makes a run that is killed once, up to its end; what it went on from.

    What comes before the killed command is taken from the whole run.
    """
    begin(folder)
    killed, names = ACTIVITIES[point.activity][0], list(COMMANDS)
    for before, left in (("cache", "cache"), ("fit", "run")):
        if names.index(before) < names.index(killed):
            shutil.copytree(whole / left, folder / left, symlinks=True)
            if before == "fit":
                shutil.copy(whole / LOG, folder / LOG)
    called(folder, killed, point, usual.seconds[point.activity] * point.share)
    resumed = "what was kept"
    for command in names[names.index(killed) :]:
        more: list[str] = []
        if command == killed == "fit":
            if kept(folder / "run"):
                state = read((folder / "run" / LAST).resolve())
                resumed, more = f"step {state['global_step']}", ["--ckpt_path", "last"]
            else:  # there is nothing to go on from
                shutil.rmtree(folder / "run", ignore_errors=True)
                resumed = "the beginning"
        called(folder, command, more=more)
    return resumed


def called(
    folder: Path,
    command: str,
    point: Point | None = None,
    seconds: float = 0.0,
    more: list[str] | None = None,
) -> list[tuple[float, str]]:
    """Runs a command in a process of its own; when it said what.

    Args:
        folder: where.
        command: its name.
        point: when it is killed; not at all without.
        seconds: how long after the activity began.
        more: further arguments.

    Raises:
        RuntimeError: it failed, or came to its end before it could be killed.
    """
    hears, says = os.pipe()

    def work() -> int:
        os.close(hears)
        os.chdir(folder)
        watched(command, says)
        return alignkit([*COMMANDS[command], *(more or [])])

    child = forked(work, folder / f"{command}.txt", wait=False)
    os.close(says)
    heard, times = [], Counter[str]()
    with os.fdopen(hears, "rb", buffering=0) as lines:  # what is in a buffer is not seen by select
        while line := lines.readline().decode().strip():
            heard.append((time.monotonic(), line))
            times[line] += 1
            if point and line == f"{point.activity} begins" and times[line] == point.time:
                select.select([lines], [], [], seconds)  # an end that comes earlier is waited for no longer
                os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status != (-signal.SIGKILL if point else 0):
        raise RuntimeError(f"{command} ended with {status}: {(folder / f'{command}.txt').read_text()}")
    return heard


def watched(command: str, says: int) -> None:
    """Lets this process say when activities begin and end, and write down what it trains on."""

    def saying(activity: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def said(self: Any, *arguments: Any, **options: Any) -> Any:
            if activity == "training" and self.trainer.training:  # validation takes the same step
                note(self, arguments[0])
            os.write(says, f"{activity} begins\n".encode())
            result = function(self, *arguments, **options)
            os.write(says, f"{activity} ends\n".encode())
            return result

        return said

    for activity, (of, owner, name) in ACTIVITIES.items():
        if of == command:
            setattr(owner, name, saying(activity, getattr(owner, name)))


def note(module: AlignModule, batch: Any) -> None:
    """Appends a batch's number and pairs to the log."""
    step = module.trainer.fit_loop.epoch_loop.total_batch_idx
    line = json.dumps([step, batch.id_B.tolist(), batch.visit_B.tolist()])
    with Path(LOG).open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def forked(work: Callable[[], int], log: Path, *, wait: bool = True) -> int:
    """Runs a function in a copy of this process, whose output goes to a file; its process id."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        if wait and os.waitpid(child, 0)[1]:
            raise RuntimeError(log.read_text())
        return child
    code = 1
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        code = work()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def compared(whole: Path, killed: Path) -> list[str]:
    """In what two runs differ."""
    model = Path("run", "unet", "diffusion_pytorch_model.safetensors")
    states = [read((folder / "run" / LAST).resolve()) for folder in (whole, killed)]
    differences = {
        "final weights": not same(*(load_file(folder / model) for folder in (whole, killed))),
        **{part: not same(states[0][part], states[1][part]) for part in ("state_dict", "optimizer_states")},
        "callbacks": not same(states[0]["callbacks"], states[1]["callbacks"]),
        "pairs": not same_pairs(*(batches(folder / LOG) for folder in (whole, killed))),
        "cache": contents(whole / "cache") != contents(killed / "cache"),
        "evaluation": figures(whole) != figures(killed),
    }
    return [name for name, differ in differences.items() if differ]


def same(ours: Any, theirs: Any) -> bool:
    """Whether two values are equal, whole tensors bit for bit."""
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(same(value, theirs[name]) for name, value in ours.items())
    if isinstance(ours, list | tuple):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    if isinstance(ours, torch.Tensor):
        return ours.dtype == theirs.dtype and torch.equal(ours, theirs)
    return bool(ours == theirs) or isinstance(ours, str)  # texts are paths of the run's folder


def batches(path: Path) -> list[tuple[int, Any]]:
    """The log: numbers of batches, and what they held."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [(step, held) for step, *held in lines]


def same_pairs(whole: list[tuple[int, Any]], killed: list[tuple[int, Any]]) -> bool:
    """Whether every batch held the same pairs; those after the last checkpoint come twice, and alike."""
    return dict(whole) == dict(killed) and all(dict(whole)[step] == held for step, held in killed)


def contents(folder: Path) -> dict[str, bytes]:
    """What is in a folder's files."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def figures(folder: Path) -> dict[str, Any]:
    """What an evaluation found, but for times and hashes of files that say when they were written."""
    found: dict[str, Any] = json.loads((folder / "evaluation" / "report.json").read_text(encoding="utf-8"))
    del found["manifest"]["times"], found["manifest"]["command"]
    return found


def table(rows: list[tuple[Point, str, list[str]]], usual: Usual) -> list[str]:
    """The page."""
    same_ones = sum(not differences for _, _, differences in rows)
    lines = header(
        "A run that is killed",
        "cache, fit (self-play, 2 rounds of 4 steps) and evaluate on a tiny random pipeline; compared with",
        "the whole run: final weights, optimizer, average, pairs of every batch, files of the cache, and",
        "figures of the evaluation.",
    )
    lines += [f"**{same_ones} of {len(rows)} identical.**", ""]
    lines += ["| | killed while | time | at | went on from | differs in |", "|---|---|---|---|---|---|"]
    for number, (point, resumed, differences) in enumerate(rows, 1):
        count = usual.counts[point.activity]
        told = ", ".join(differences) or "nothing"
        when = f"{point.time} of {count} | {point.share:.0%}"
        lines.append(f"| {number} | {point.activity} | {when} | {resumed} | {told} |")
    return lines


if __name__ == "__main__":
    sys.exit(main())
