"""Faults of a process of a run, injected where its training has come to a step."""

import os
import signal
import time
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl

from alignkit.testing import ToyPairs
from alignkit.types import PairRecord

How = Literal["exit", "kill", "stop", "raise", "hang", "none"]


class Fault(pl.Callback):
    """Writes down who all are, and does to one process what it is told.

    Args:
        how: what.
        rank: to which; -1 is all of them.
        step: when.
    """

    def __init__(self, how: How = "none", rank: int = 1, step: int = 2) -> None:
        super().__init__()
        self.how, self.rank, self.step = how, rank, step

    def on_fit_start(self, trainer: pl.Trainer, *_: Any) -> None:
        Path(f"pid-{trainer.global_rank}").write_text(str(os.getpid()))

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if (
            trainer.global_step != self.step
            or self.rank not in (trainer.global_rank, -1)
            or self.how == "none"
        ):
            return
        Path("injected").write_text(str(time.time()))
        if self.how == "exit":
            os._exit(7)
        if self.how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.how == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        if self.how == "hang":
            time.sleep(1000)
        raise RuntimeError("a fault of this process alone")


class PairsWithABrokenOne(ToyPairs):
    """Toy pairs; of the first the picture is none."""

    def __getitem__(self, index: int) -> PairRecord:
        record = super().__getitem__(index)
        if index:
            return record
        Path("injected").write_text(str(time.time()))
        return record._replace(image_0=b"no picture", image_1=b"no picture")


class PairsThatEndTheSecondProcess(ToyPairs):
    """Toy pairs that the second process does not live to see."""

    def __init__(self) -> None:
        super().__init__()
        if os.environ.get("LOCAL_RANK") == "1":
            Path("injected").write_text(str(time.time()))
            os._exit(7)
