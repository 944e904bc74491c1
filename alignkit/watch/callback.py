"""The watch as a callback of the Trainer."""

import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import distributed

from alignkit.distributed import gathered_objects, is_joined
from alignkit.signals import Stopped
from alignkit.watch.ending import Ending, ended
from alignkit.watch.hub import Hub
from alignkit.watch.joining import joined
from alignkit.watch.launched import Children, Parent, launched_by_lightning, launches
from alignkit.watch.line import Peer, Verdict
from alignkit.watch.progress import Progress
from alignkit.watch.spoke import Spoke

# seconds that a process that raised has to say so and end
ENDING = 20.0
# exit code of a process that refused what the user wants, and said so
MISTAKE = 2
_LOST = re.compile(r"gloo|nccl|connection (closed|reset|refused)|broken pipe|socket", re.IGNORECASE)


class Watch(pl.Callback):
    """Ends all processes of a run when one of them dies or hangs, and says which one it was.

    Each beats once a second, from a thread of its own, so that a training step neither waits nor speaks.
    Nothing is watched in a single process.

    Args:
        silent_after: seconds without a beat until a process counts as dead: killed, frozen or deadlocked.
            Raise it where writing a file to a slow disk stops everything else in a process for longer.
        stalled_after: seconds in which a process that the others wait for neither got anything done nor
            computed.
    """

    def __init__(self, silent_after: float = 15.0, stalled_after: float = 600.0) -> None:
        super().__init__()
        for name, value in (("silent_after", silent_after), ("stalled_after", stalled_after)):
            if not value >= 3:
                raise ValueError(f"Watch: {name} must be at least 3 seconds, got {value}")
        self.silent_after, self.stalled_after = silent_after, stalled_after
        self._progress = Progress()
        self._member: Hub | Spoke | None = None
        self._family: Children | Parent | None = None
        self._peers: list[Peer] = []
        self._rank = 0

    def begin(self, trainer: pl.Trainer) -> None:
        """Watches the processes that are about to be started, or that started this one."""
        if trainer.world_size == 1 or self._family is not None:
            return
        self._ending, self._own_word = Ending(), threading.Event()
        if launches(trainer):
            self._family = Children(trainer, self._ending, self._died)
        elif launched_by_lightning():
            self._family = Parent(self._ending)
        if self._family is not None:
            self._family.start()

    def leave(self) -> None:
        """Watches no longer, and is watched no longer."""
        for thread in (self._family, self._member):
            if thread is not None:
                thread.leave()
        self._family = self._member = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Joins the others. From here on each knows when one is gone."""
        if self._member is not None or not is_joined() or trainer.world_size == 1:
            return
        self.begin(trainer)
        self._rank = trainer.global_rank
        self._peers = gathered_objects(Peer(self._rank, socket.gethostname(), os.getpid()))
        self._member = joined(
            trainer,
            self._peers,
            self._progress,
            silent_after=self.silent_after,
            stalled_after=self.stalled_after,
            judged=self._judged,
        )
        if self._member is None:
            rank_zero_warn("processes cannot connect to the first one: none notices when another one dies")
            return
        self._member.start()
        if isinstance(self._family, Parent):
            self._family.leave()  # the connection breaks as soon

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Says what happened to the others, or lets them say what happened to this one.

        To be called before callbacks that would wait for others.
        """
        if trainer.world_size == 1:
            return
        if isinstance(exception, Stopped | SIGTERMException | KeyboardInterrupt):  # all are told so
            self.leave()
            return
        if _is_of_a_lost_connection(exception):
            # whoever watches knows more of it, and ends this process
            time.sleep(self.silent_after + ENDING)
            raise exception
        if (bar := trainer.progress_bar_callback) is not None:
            bar.on_exception(trainer, pl_module, exception)
        if self._member is not None:
            text = f"{self._peers[self._rank]} raised {type(exception).__name__}: {exception}"
            self._member.tell(Verdict(self._rank, text, raised=True))
            # unless another one raised before: then that one tells the user, and this process ends
            self._own_word.wait(ENDING)
        raise exception  # past the callbacks that follow

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self._progress.mark(f"in training batch {trainer.fit_loop.total_batch_idx + 1}")

    def on_before_backward(self, trainer: pl.Trainer, *_: Any) -> None:
        # there it waits for the others, who may not have come so far
        self._progress.mark(f"in the backward pass of training batch {trainer.fit_loop.total_batch_idx + 1}")

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self._progress.mark(f"after training batch {trainer.fit_loop.total_batch_idx + 1}")

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        self._progress.mark(f"in validation batch {batch_idx + 1}")

    def on_validation_end(self, *_: Any) -> None:
        self._progress.mark("after validation")

    def on_predict_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        self._progress.mark(f"in batch {batch_idx + 1}")

    def _died(self, rank: int, code: int) -> None:
        """Hears of a process that this one started, and that failed."""
        if isinstance(self._member, Hub):
            self._member.ended(rank, code)
        elif self._member is not None:  # the first process is on another computer
            self._member.tell(Verdict(rank, f"{self._peers[rank]} {ended(code)}"))
        else:
            pid = self._ending.launched[rank].pid
            self._end(
                f"rank {rank} (pid {pid}) {ended(code)} before all had joined", code if code == 2 else 1
            )

    def _judged(self, verdict: Verdict) -> None:
        """Ends this process, unless it is the one that raised: that one ends by itself."""
        if not verdict.raised:
            first = self._peers[0].pid
            if verdict.silent and verdict.rank == 0 != self._rank and os.getppid() == first:  # it would stay
                os.kill(first, signal.SIGKILL)
            self._end(verdict.text)
        elif verdict.rank == self._rank:
            if self._family is not None:
                self._family.leave()
            self._own_word.set()
        else:
            told = self._peers[verdict.rank].host == self._peers[self._rank].host
            self._end("" if told else verdict.text, self._code_of(verdict.rank))

    def _code_of(self, rank: int) -> int:
        """Exit code of a process that raised: its own, if this one is its parent and can know it."""
        if (process := self._ending.launched.get(rank)) is None:
            return 1
        try:
            return process.wait(ENDING) or 1
        except subprocess.TimeoutExpired:
            return 1

    def _end(self, text: str, code: int = 1) -> None:
        self._ending(text and f"{text}; rank {self._rank} ends, too", code)


@contextmanager
def watched(trainer: pl.Trainer) -> Iterator[None]:
    """Watches the processes of what a trainer does within a ``with`` block.

    Its callback ``Watch`` does, the first of its callbacks; one of our own where it has none.
    """
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    watch = next((callback for callback in callbacks if isinstance(callback, Watch)), None) or Watch()
    # the first to hear of an exception
    trainer.callbacks = [watch, *(callback for callback in callbacks if callback is not watch)]  # type: ignore[attr-defined]
    watch.begin(trainer)
    yield
    watch.leave()


def _is_of_a_lost_connection(exception: BaseException) -> bool:
    """Whether an exception tells of nothing but that another process is gone."""
    return isinstance(exception, RuntimeError) and (
        isinstance(exception, distributed.DistError) or _LOST.search(str(exception)) is not None
    )
