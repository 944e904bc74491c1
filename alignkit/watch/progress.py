"""How far a process has come."""

import os
import sys
import threading
import time
from types import FrameType
from typing import NamedTuple

# share of a core; below it a process does nothing but say that it is alive
BUSY = 0.02
# the most seconds that one look adds: a computer that slept did not hang
LONGEST_LOOK = 2.0
COLLECTIVES = os.path.join("torch", "distributed", "")


class State(NamedTuple):
    """How far a process is.

    Args:
        marks: steps forward so far.
        place: where it is.
        idle: seconds in which it got nothing done and computed nothing.
        waits: whether its main thread waits for the other processes.
    """

    marks: int = 0
    place: str = "before its first batch"
    idle: float = 0.0
    waits: bool = False


class Progress:
    """Counts what the main thread got done, and how long the process has done nothing at all.

    One that computes is not taken for one that hangs, so drawing, scoring or compiling may take any time.
    """

    def __init__(self) -> None:
        self._marks, self._place, self._idle = 0, State().place, 0.0
        self._seen, self._looked, self._used = 0, time.monotonic(), time.process_time()

    def mark(self, place: str) -> None:
        """Notes a step forward, and where the process is from here on."""
        self._marks, self._place = self._marks + 1, place

    def look(self) -> State:
        """Takes the time; to be called about once a second."""
        now, used, marks = time.monotonic(), time.process_time(), self._marks
        elapsed = max(now - self._looked, 1e-9)
        if marks != self._seen or (used - self._used) / elapsed > BUSY:
            self._idle = 0.0
        else:
            self._idle += min(elapsed, LONGEST_LOOK)
        self._seen, self._looked, self._used = marks, now, used
        return State(marks, self._place, self._idle, _waits())


def _waits() -> bool:
    """Whether the main thread is in a function of ``torch.distributed``."""
    frame: FrameType | None = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None:
        if COLLECTIVES in frame.f_code.co_filename:
            return True
        frame = frame.f_back
    return False
