"""How a process ends because of another one."""

import multiprocessing
import os
import signal
import subprocess
import threading
import time

GRACE = 3.0
STDERR = 2
SHOW_CURSOR = b"\x1b[?25h"


class Ending:
    """Ends this process and those that it started, whatever its main thread waits for; the first call counts.

    Args:
        grace: seconds that they have to end by themselves.
    """

    def __init__(self, grace: float = GRACE) -> None:
        self.grace = grace
        self.launched: dict[int, subprocess.Popen[bytes]] = {}
        self._lock = threading.Lock()

    def __call__(self, message: str, code: int = 1) -> None:
        """Says why, if there is something to say, and exits with a code."""
        if not self._lock.acquire(blocking=False):
            return
        if os.isatty(STDERR):
            os.write(STDERR, SHOW_CURSOR)  # a progress bar hides it
        if message:
            os.write(STDERR, f"\nalignkit: error: {message}\n".encode())
        deadline = time.monotonic() + self.grace
        for process in self.launched.values():
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
        for worker in multiprocessing.active_children():
            worker.kill()
        # not sys.exit: the main thread may wait for those that are gone
        os._exit(code)


def ended(code: int) -> str:
    """How a process ended, by its exit code as ``subprocess`` gives it."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"
