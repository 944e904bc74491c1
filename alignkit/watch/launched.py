"""The processes that Lightning starts, and the one that they are started by, from before they have joined."""

import os
import threading
from collections.abc import Callable

import lightning.pytorch as pl
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

from alignkit.watch.ending import Ending

LOOK = 0.5
# the process that started this one, for this one
PARENT_VARIABLE = "ALIGNKIT_LAUNCHER"


class Children(threading.Thread):
    """Watches the processes that this one starts, in place of Lightning, which kills all without a word.

    Args:
        trainer: who starts them.
        ending: gets them, to end them.
        died: is told the rank and exit code of one that failed.
    """

    def __init__(self, trainer: pl.Trainer, ending: Ending, died: Callable[[int, int], None]) -> None:
        super().__init__(name="watch-children", daemon=True)
        self._trainer, self._ending, self._died = trainer, ending, died
        self._left = threading.Event()
        os.environ[PARENT_VARIABLE] = str(os.getpid())

    def run(self) -> None:
        while not self._ending.launched:
            if self._left.wait(LOOK):
                return
            self._take_over()
        while not self._left.wait(LOOK):
            for rank, process in self._ending.launched.items():
                if code := process.poll():
                    self._died(rank, code)
                    return

    def leave(self) -> None:
        """Watches no longer."""
        self._left.set()

    def _take_over(self) -> None:
        launcher = self._trainer.strategy.launcher
        assert isinstance(launcher, _SubprocessScriptLauncher)
        if len(launcher.procs) < launcher.num_processes - 1:
            return
        # a look later, Lightning's own thread has the list and sleeps: one that is empty by then ends it
        if self._left.wait(LOOK):
            return
        processes, launcher.procs = launcher.procs, [*launcher.procs]
        processes.clear()
        self._ending.launched = dict(enumerate(launcher.procs, self._trainer.global_rank + 1))


class Parent(threading.Thread):
    """Ends this process when the one that started it is gone, which it would wait for.

    Args:
        ending: ends it.
    """

    def __init__(self, ending: Ending) -> None:
        super().__init__(name="watch-parent", daemon=True)
        self._ending, self._parent = ending, os.getppid()
        self._left = threading.Event()

    def run(self) -> None:
        while not self._left.wait(LOOK):
            if os.getppid() != self._parent:
                self._ending(
                    f"rank 0 (pid {self._parent}) is gone before all have joined: it was killed, or failed"
                )

    def leave(self) -> None:
        """Watches no longer."""
        self._left.set()


def launched_by_lightning() -> bool:
    """Whether this process was started by its parent as one of a run's."""
    return os.environ.get(PARENT_VARIABLE) == str(os.getppid())


def launches(trainer: pl.Trainer) -> bool:
    """Whether this process will start others of its run."""
    launcher = trainer.strategy.launcher
    return (
        isinstance(launcher, _SubprocessScriptLauncher)
        and launcher.num_processes > 1
        and not launcher.cluster_environment.creates_processes_externally
    )
