"""A process of a run that dies or hangs: all end soon, none is left, and the message says which it was."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.runs import environment

pytestmark = pytest.mark.slow

SOON = 30
CONFIG = """
seed_everything: 3
objective: {name: DiffusionDPO, beta: 200.0}
sampler: SharedNoise
backbone: {class_path: alignkit.testing.toys.ToyBackbone}
optimizer: {name: AdamW, lr: 1.0e-3}
data:
  train: {class_path: alignkit.testing.toys.ToyPairs}
  batch_size: 4
  resolution: 16
evaluation: {max_prompts: 0}
samples: {num_prompts: 0}
trainer:
  accelerator: cpu
  devices: 2
  strategy: ddp
  max_steps: 6
  log_every_n_steps: 1
  enable_progress_bar: false
  callbacks: [{class_path: tests.faults.injected.Fault}]
"""


class Ended(NamedTuple):
    """What became of a run.

    Args:
        code: exit code of the command.
        err: what it wrote to stderr.
        seconds: from the fault to the end of the last process.
    """

    code: int
    err: str
    seconds: float


def alive(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def run(folder: Path, *options: str) -> Ended:
    """Runs the command; asserts that nothing of it is left."""
    (folder / "toy.yaml").write_text(CONFIG)
    program = [sys.executable, "-m", "alignkit.cli", "--trust", "tests"]
    command = [*program, "fit", "--config=toy.yaml", "--run=run", *options]
    with (folder / "err.txt").open("w") as err:
        process = subprocess.Popen(
            command, cwd=folder, env=environment(), stdout=err, stderr=err, start_new_session=True
        )
        try:
            code = process.wait(timeout=120)
            while any(map(alive, members(process.pid))) and time.time() < injected(folder) + SOON:
                time.sleep(0.1)
            seconds = time.time() - injected(folder)
            left = [pid for pid in members(process.pid) if alive(pid)]
        finally:
            for pid in members(process.pid):
                os.kill(pid, signal.SIGKILL)
            process.wait()
    text = (folder / "err.txt").read_text()
    assert not left, text
    return Ended(code, text, seconds)


def injected(folder: Path) -> float:
    path = folder / "injected"
    return float(path.read_text()) if path.exists() else time.time()


def members(session: int) -> Iterator[int]:
    """Processes of a session, of those that are there."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session:
            yield int(path.parent.name)


def pid_of(folder: Path, rank: int) -> str:
    return (folder / f"pid-{rank}").read_text()


@pytest.mark.parametrize(
    ("how", "rank", "said", "code"),
    [
        ("exit", 1, r"ended with exit code 7", 1),
        ("kill", 0, r"is gone: it was killed, or crashed", -9),
        ("stop", 1, r"has given no sign of life for \d+ s: it is frozen, deadlocked or cut off", 1),
        ("stop", 0, r"has given no sign of life for \d+ s: it is frozen or cut off", -9),
        ("hang", 1, r"has done nothing for \d+ s, in training batch 3, while the others wait for it", 1),
    ],
)
def test_a_process_that_is_gone_ends_all_and_is_named(
    how: str, rank: int, said: str, code: int, tmp_path: Path
) -> None:
    fault = (f"--trainer.callbacks.how={how}", f"--trainer.callbacks.rank={rank}")
    ended = run(tmp_path, *fault, *(["--watch.stalled_after=5"] if how == "hang" else []))
    assert ended.seconds < SOON
    assert ended.code == code, ended.err
    named = (
        rf"alignkit: error: rank {rank} \(\S+, pid {pid_of(tmp_path, rank)}\) {said}.*; rank {1 - rank} ends"
    )
    assert re.search(named, ended.err), ended.err
    assert "Traceback" not in ended.err
    assert "closed by peer" not in ended.err


def test_an_exception_of_all_processes_is_told_once(tmp_path: Path) -> None:
    ended = run(tmp_path, "--trainer.callbacks.how=raise", "--trainer.callbacks.rank=-1")
    assert ended.seconds < SOON
    assert ended.code == 1
    assert ended.err.count("RuntimeError: a fault of this process alone") == 1
    assert ended.err.count("Traceback") == 1
    assert "closed by peer" not in ended.err


def test_a_mistake_that_one_process_finds_is_told_once_and_keeps_its_exit_code(tmp_path: Path) -> None:
    ended = run(tmp_path, "--data.train=tests.faults.injected.PairsWithABrokenOne", "--data.max_unreadable=0")
    assert ended.seconds < SOON
    assert ended.code == 2
    assert ended.err.count("alignkit: error: ") == 1
    assert "pair 1000" in ended.err
    assert "Traceback" not in ended.err
    assert "closed by peer" not in ended.err


def test_a_process_that_ends_before_it_joined_ends_all(tmp_path: Path) -> None:
    """The other one waits for it where PyTorch would let it wait for half an hour."""
    ended = run(tmp_path, "--data.train=tests.faults.injected.PairsThatEndTheSecondProcess")
    assert ended.seconds < SOON
    assert ended.code == 1
    said = r"alignkit: error: rank 1 \(pid \d+\) ended with exit code 7 before all had joined; rank 0 ends"
    assert re.search(said, ended.err), ended.err
    assert "Traceback" not in ended.err


def test_a_run_without_faults_leaves_no_word_and_no_process(tmp_path: Path) -> None:
    ended = run(tmp_path)
    assert ended.code == 0, ended.err
    assert "error" not in ended.err
    written = {path.name for path in tmp_path.iterdir()} - {"err.txt", "toy.yaml", "pid-0", "pid-1"}
    assert written == {"run"}
