"""What contestants and the one who times them say to each other: a step at a time, while all others wait."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import torch
from safetensors.torch import save_file

STEP, WEIGHTS = "step", "weights"
VARIABLE = "ALIGNKIT_BENCHMARK_TURNS"


class Step(NamedTuple):
    """CPU seconds of a step, those of it that a loop without a Trainer would take, and its loss."""

    seconds: float
    inside: float
    loss: float


class Turns:
    """A contestant's side: it asks for its turn before each step.

    Args:
        inside: says how much of the last step's time a loop without a Trainer would take; all without it.
    """

    def __init__(self, inside: Callable[[], float] | None = None) -> None:
        self._pipe: Any = Connection(int(os.environ[VARIABLE]))
        self._since: float | None = None
        self._inside = inside

    def next(self, loss: torch.Tensor | float, policy: torch.nn.Module | None) -> None:
        """Tells what the last step took, CPU seconds of this process, and its loss; waits for the next turn.

        Args:
            loss: of the last step.
            policy: whose weights may be asked for.
        """
        now = time.process_time()
        inside = self._inside() if self._inside else None
        if self._since is not None:
            took = now - self._since
            value = float(torch.as_tensor(loss).detach())
            self._pipe.send(Step(took, took if inside is None else inside, value))
        while True:
            try:
                said, *rest = self._pipe.recv()
            except EOFError:
                os._exit(0)
            if said == STEP:
                break
            assert policy is not None
            save_file({name: p.detach().contiguous() for name, p in policy.state_dict().items()}, rest[0])
            self._pipe.send("written")
        self._since = time.process_time()


class Contestant:
    """A process that trains, a step whenever it is told to.

    Args:
        script: what it runs.
        arguments: what that is told.
        environment: variables beside those of this process.
    """

    def __init__(self, script: Path, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
        self._pipe, theirs = Pipe()
        told = {**os.environ, **environment, VARIABLE: str(theirs.fileno()), "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, str(script), *arguments],
            env=told,
            pass_fds=[theirs.fileno()],
            stdout=subprocess.DEVNULL,
        )
        theirs.close()

    def step(self) -> Step:
        """Lets it do a step."""
        self._pipe.send((STEP,))
        step: Step = self._pipe.recv()
        return step

    def status(self) -> str:
        """What Linux says of its process: ``/proc/PID/status``."""
        return Path(f"/proc/{self._process.pid}/status").read_text()

    def write_weights(self, path: Path) -> None:
        """Has it write its weights."""
        self._pipe.send((WEIGHTS, str(path)))
        self._pipe.recv()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pipe.close()
        self._process.wait(timeout=60)
