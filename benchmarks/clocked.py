"""A run of `alignkit fit` in processes of its own, which tell after each micro-step what they took so far.

clocked.py fit --config dmpo.yaml ...   # what ``clocked`` starts
"""

import json
import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

FOLDER = "ALIGNKIT_CLOCKED"


class Held(NamedTuple):
    """MB of a process.

    Args:
        peak: at the peak.
        own: that it holds, mapped pages of files left out, which the system takes back when it needs them.
    """

    peak: float
    own: float


def held(status: str) -> Held:
    """What ``/proc/PID/status`` says: unlike ``ru_maxrss``, nothing of the process that started it."""
    told = dict(re.findall(r"^(VmHWM|RssAnon):\s+(\d+) kB$", status, flags=re.MULTILINE))
    return Held(int(told["VmHWM"]) / 1000, int(told["RssAnon"]) / 1000)


class Moment(NamedTuple):
    """What a process took until the end of a micro-step, imports included.

    Args:
        wall: seconds of clock.
        cpu: seconds of processor.
        peak: MB at the peak: see ``Held``.
        own: MB that it holds.
    """

    wall: float
    cpu: float
    peak: float
    own: float


def clocked(arguments: Sequence[str], folder: Path | None = None) -> list[list[Moment]]:
    """Runs a command of alignkit; returns the ends of micro-steps, by process.

    Args:
        arguments: of the command.
        folder: where it is run.

    Raises:
        RuntimeError: it failed.
    """
    with TemporaryDirectory() as told:
        done = subprocess.run(
            [sys.executable, str(Path(__file__).resolve()), *arguments],
            cwd=folder,
            env={**os.environ, FOLDER: told},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(f"alignkit {' '.join(arguments)} failed: {done.stderr[-2000:]}")
        files = sorted(Path(told).iterdir(), key=lambda path: int(path.name))
        return [[Moment(*json.loads(line)) for line in file.read_text().splitlines()] for file in files]


def _now() -> Moment:
    started = int(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19])
    since = time.clock_gettime(time.CLOCK_BOOTTIME) - started / os.sysconf("SC_CLK_TCK")
    used = resource.getrusage(resource.RUSAGE_SELF)
    memory = held(Path("/proc/self/status").read_text())
    return Moment(since, used.ru_utime + used.ru_stime, memory.peak, memory.own)


if __name__ == "__main__":
    from alignkit import callbacks
    from alignkit.cli import main

    def ended(self: Any, trainer: Any, *_: Any) -> None:
        """Notes a micro-step."""
        with (Path(os.environ[FOLDER]) / str(trainer.global_rank)).open("a") as file:
            file.write(f"{json.dumps(_now())}\n")

    callbacks.Throughput.on_train_batch_end = ended  # type: ignore[method-assign]
    sys.exit(main(sys.argv[1:]))
