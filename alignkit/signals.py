"""What a process does when it is told to end: by SIGTERM, by Ctrl-C, by a cluster. Imports no torch.

The first signal ends the work where it stands, by ``Stopped``; or, where that would tear something apart,
whoever works waits, sees that it was told, and ends at the next good place. A second one ends the process at
once.
"""

import multiprocessing
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from types import FrameType
from typing import Any

HANDLED = (signal.SIGTERM, signal.SIGINT)
# seconds within which signals are one: a launcher passes on what a terminal or a cluster sends to all
SAME = 0.3
KEPT = "what was done is kept; call this again to go on"
# seconds that processes have to end on their own, where all of them know that they must
PATIENCE = 20


class Stopped(SystemExit):
    """The process was told to end.

    Args:
        number: the signal; the exit code is 128 more, as shells have it.
        notes: what the user is told of it.
    """

    def __init__(self, number: int, notes: Sequence[str] = ()) -> None:
        super().__init__(128 + number)
        for note in notes:
            self.add_note(note)


class Handler:
    """Handles signals: see the module. One of a process at a time, see ``handled``."""

    def __init__(self) -> None:
        self.number: int | None = None
        # whether who works asks by itself, and what is said of it when a signal comes
        self.is_waiting, self.promise = False, "ending as soon as possible"
        self.is_quiet = False
        # seconds that other processes of the work have to end on their own
        self.patience = 0.0
        # processes that were started to work on the same, and must not outlive this one
        self.others: Callable[[], Sequence[subprocess.Popen[Any]]] = list
        self._before: dict[int, Any] = {}
        self._process = os.getpid()

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a fork of it: who forked it ends it
            return
        if self.number is None:
            self.told(number)
            if not self.is_waiting:
                raise Stopped(number)

    def told(self, number: int) -> None:
        """Notes a signal, which may have come to another process, and says what comes of it."""
        if self.number is not None:
            return
        self.number = number
        if self.is_waiting and not self.is_quiet:
            name = signal.Signals(number).name
            # not print: the signal may have come in the midst of one
            os.write(2, f"{name}: {self.promise}; once more to stop at once\n".encode())

    def handle(self, number: int) -> None:
        """Handles one more signal, where signals can be handled."""
        if threading.current_thread() is threading.main_thread() and number not in self._before:
            self._before[number] = signal.signal(number, self)

    def restore(self) -> None:
        """Gives every signal back to who had it."""
        for number, handler in self._before.items():
            signal.signal(number, handler or signal.SIG_DFL)
        self._before = {}

    def end_at_second(self, arrivals: int) -> None:
        """Ends the process when a second signal arrives, whatever its main thread waits for.

        Args:
            arrivals: a file that gets a byte for each signal, before the main thread learns of it.
        """
        first, since = 0, 0.0
        while arrived := os.read(arrivals, 1):
            if arrived[0] not in self._before:
                continue
            if not first:
                first, since = arrived[0], time.monotonic()
            elif time.monotonic() - since > SAME:
                self.patience = 0.0
                self.end_others()
                os._exit(128 + first)
        os.close(arrivals)

    def end_others(self) -> None:
        """Waits for the processes that work on the same, and ends those that are left."""
        for process in self.others():
            with suppress(subprocess.TimeoutExpired):
                process.wait(self.patience)
            process.kill()
        for worker in multiprocessing.active_children():
            worker.kill()


def current() -> Handler | None:
    """Who handles this process's signals, if it was forked from none that did."""
    handler = signal.getsignal(signal.SIGTERM)
    return handler if isinstance(handler, Handler) else None


def is_told() -> bool:
    """Whether this process was told to end, and goes on to where it can."""
    handler = current()
    return handler is not None and handler.number is not None


@contextmanager
def handled() -> Iterator[Handler]:
    """Handles signals within a ``with`` block, in the main thread; what is ignored stays so."""
    handler = Handler()
    if threading.current_thread() is not threading.main_thread():
        yield handler
        return
    for number in HANDLED:
        if signal.getsignal(number) != signal.SIG_IGN:
            handler.handle(number)
    arrivals, arriving = os.pipe()
    os.set_blocking(arriving, False)
    _leave_forks_alone()
    before = signal.set_wakeup_fd(arriving, warn_on_full_buffer=False)
    threading.Thread(target=handler.end_at_second, args=(arrivals,), daemon=True, name="signals").start()
    try:
        yield handler
    finally:
        handler.restore()
        signal.set_wakeup_fd(before)
        os.close(arriving)


@cache
def _leave_forks_alone() -> None:
    """Keeps what is signalled to a fork of this process from being taken for its own."""
    os.register_at_fork(after_in_child=_forget)


def _forget() -> None:
    if current() is not None:
        signal.set_wakeup_fd(-1)


@contextmanager
def cut_short() -> Iterator[None]:
    """A ``with`` block that a signal ends at once, and only it: for work of which nothing depends."""
    handler = current()
    if handler is None or not handler.is_waiting:
        yield
        return
    handler.is_waiting = False
    with suppress(Stopped):
        try:
            yield
        finally:
            handler.is_waiting = True


@contextmanager
def resumable() -> Iterator[None]:
    """Says of a command that ends within a ``with`` block that it goes on when called again."""
    try:
        yield
    except Stopped as stopped:
        stopped.add_note(KEPT)
        raise


def left_to_parent(worker: int) -> None:
    """Lets a loader's worker leave signals to its parent, which ends it: for ``worker_init_fn``."""
    for number in (*HANDLED, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
