"""What every process but the first does: it tells the first one that it lives, and hears what happened."""

import select
import threading
import time
from collections.abc import Callable

from alignkit.watch.line import Line, Peer, Verdict
from alignkit.watch.progress import LONGEST_LOOK, Progress

BEAT = 1.0


class Spoke(threading.Thread):
    """Beats once a second, and notices when the first process does not.

    Args:
        line: connection to the first process.
        first: who that is.
        progress: of this process.
        silent_after: seconds without a beat of the first process until it counts as dead.
        judged: is told the verdict.
    """

    def __init__(
        self,
        line: Line,
        first: Peer,
        progress: Progress,
        *,
        silent_after: float,
        judged: Callable[[Verdict], None],
    ) -> None:
        super().__init__(name="watch", daemon=True)
        self._line, self._first, self._progress = line, first, progress
        self._silent_after, self._judged = silent_after, judged
        self._left = threading.Event()

    def run(self) -> None:
        silence, looked, beat = 0.0, time.monotonic(), 0.0
        while not self._left.is_set():
            readable, _, _ = select.select([self._line.connection], [], [], BEAT / 2)
            now = time.monotonic()
            # in time that this process was awake: a computer that slept did not hang
            silence, looked = silence + min(now - looked, LONGEST_LOOK), now
            if now - beat >= BEAT:
                beat = now
                self._line.send(state=self._progress.look())
            if readable:
                silence = 0.0
                if self._heard():
                    return
            if silence > self._silent_after:
                gone = f"{self._first} has given no sign of life for {silence:.0f} s: it is frozen or cut off"
                self._judged(Verdict(self._first.rank, gone, silent=True))
                return

    def _heard(self) -> bool:
        """Takes what came; whether there is nothing more to hear."""
        messages = self._line.received()
        if messages is None:
            if not self._left.is_set():
                self._judged(Verdict(self._first.rank, f"{self._first} is gone: it was killed, or crashed"))
            return True
        for message in messages:
            if "verdict" in message:
                self._judged(Verdict(*message["verdict"]))
                return True
            if "bye" in message:
                self._line.close()
                return True
        return False

    def tell(self, verdict: Verdict) -> None:
        """Tells the first process what happened here; it tells all."""
        self._line.send(verdict=verdict)

    def leave(self) -> None:
        """Is watched no longer, and watches no longer."""
        self._left.set()
        self._line.send(bye=True)
