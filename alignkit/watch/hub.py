"""What the first process does: it hears of all others whether they live and how far they are, and judges."""

import selectors
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from alignkit.watch.ending import ended
from alignkit.watch.line import Line, Peer, Verdict
from alignkit.watch.progress import LONGEST_LOOK, Progress, State
from alignkit.watch.spoke import BEAT

# seconds that remain for the exit code to be known, once a connection broke
UNEXPLAINED = 2.0
# seconds that those who are told good-bye have to close
CLOSING = 1.0
# exit codes of processes that were told to end, and said good-bye
TOLD_TO_END = (0, 130, 143)


class Heard:
    """What is known of another process.

    Args:
        line: connection to it.
    """

    def __init__(self, line: Line) -> None:
        self.line = line
        self.state = State()
        self.silence = 0.0
        self.lost: float | None = None
        self.left = False


class Hub(threading.Thread):
    """Listens to the other processes, and says to all what happened to one.

    Args:
        lines: connections to the others, by rank.
        peers: all processes, by rank.
        progress: of this process.
        silent_after: seconds without a sign of life until a process counts as dead.
        stalled_after: seconds without any work until the process that is farthest behind counts as hanging.
        judged: is told the verdict.
    """

    def __init__(
        self,
        lines: Mapping[int, Line],
        peers: Sequence[Peer],
        progress: Progress,
        *,
        silent_after: float,
        stalled_after: float,
        judged: Callable[[Verdict], None],
    ) -> None:
        super().__init__(name="watch", daemon=True)
        self._peers, self._progress, self._state = peers, progress, State()
        self._silent_after, self._stalled_after, self._judged = silent_after, stalled_after, judged
        self._heard = {rank: Heard(line) for rank, line in lines.items()}
        self._codes: dict[int, int] = {}
        self._told: list[Verdict] = []
        self._left = threading.Event()
        self._selector = selectors.DefaultSelector()
        for rank, line in lines.items():
            self._selector.register(line.connection, selectors.EVENT_READ, rank)

    def run(self) -> None:
        looked, beat = time.monotonic(), 0.0
        while not self._left.is_set():
            self._read(BEAT / 2)
            now = time.monotonic()
            elapsed, looked = min(now - looked, LONGEST_LOOK), now
            if now - beat >= BEAT:
                beat = now
                self._state = self._progress.look()
                self._say(beat=True)
            if verdict := self._verdict(elapsed, now):
                self._say(verdict=verdict)
                self._judged(verdict)
                return
        self._say(bye=True)
        deadline = time.monotonic() + CLOSING
        # not before they have read it: what is not read when a socket closes takes along what was sent
        while any(heard.lost is None for heard in self._heard.values()) and time.monotonic() < deadline:
            self._read(0.05)
        for heard in self._heard.values():
            heard.line.close()

    def tell(self, verdict: Verdict) -> None:
        """Tells all what happened here."""
        self._told.append(verdict)

    def ended(self, rank: int, code: int) -> None:
        """Notes the exit code of a process, which its parent knows."""
        self._codes.setdefault(rank, code)

    def leave(self) -> None:
        """Says good-bye: from here on nobody watches anybody."""
        self._left.set()
        self.join(2 * CLOSING)

    def _read(self, timeout: float) -> None:
        for key, _ in self._selector.select(timeout):
            heard = self._heard[key.data]
            messages = heard.line.received()
            if messages is None:
                self._selector.unregister(heard.line.connection)
                heard.line.close()
                heard.lost = time.monotonic()
            for message in messages or ():
                self._note(heard, message)

    def _note(self, heard: Heard, message: dict[str, Any]) -> None:
        heard.silence = 0.0
        if "verdict" in message:
            self._told.append(Verdict(*message["verdict"]))
        elif "bye" in message:
            heard.left = True
        else:
            heard.state = State(*message["state"])

    def _say(self, **message: Any) -> None:
        for heard in self._heard.values():
            if heard.lost is None:
                heard.line.send(**message)

    def _verdict(self, elapsed: float, now: float) -> Verdict | None:
        """What happened, the surest first."""
        if self._told:
            return self._told[0]
        for rank, code in self._codes.items():
            if not (self._heard[rank].left and code in TOLD_TO_END):
                return Verdict(rank, f"{self._peers[rank]} {ended(code)}")
        for rank, heard in self._heard.items():
            if heard.left:
                continue
            if heard.lost is not None and now - heard.lost > UNEXPLAINED:
                return Verdict(rank, f"{self._peers[rank]} is gone: it was killed, or crashed")
            heard.silence += elapsed
            if heard.lost is None and heard.silence > self._silent_after:
                return Verdict(rank, self._silent(rank, heard.silence), silent=True)
        return self._stalled()

    def _silent(self, rank: int, seconds: float) -> str:
        return (
            f"{self._peers[rank]} has given no sign of life for {seconds:.0f} s: it is frozen, deadlocked or "
            "cut off"
        )

    def _stalled(self) -> Verdict | None:
        """The process that is farthest behind, if it does nothing: the others wait for it."""
        states = {0: self._state}
        states |= {rank: heard.state for rank, heard in self._heard.items() if not heard.left}
        least = min(state.marks for state in states.values())
        behind = {rank: state for rank, state in states.items() if state.marks == least}
        if any(state.idle < self._stalled_after for state in behind.values()):
            return None
        behind = {rank: state for rank, state in behind.items() if not state.waits} or behind
        named = "; ".join(
            f"{self._peers[rank]} has done nothing for {state.idle:.0f} s, {state.place}"
            for rank, state in behind.items()
        )
        waiting = ", while the others wait for it" if len(behind) < len(states) else ""
        return Verdict(min(behind), f"{named}{waiting} (watch.stalled_after)")
