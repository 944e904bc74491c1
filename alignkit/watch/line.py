"""What two processes tell each other: lines of JSON over a socket."""

import json
import socket
import threading
from typing import Any, NamedTuple

LONGEST_SEND = 3.0
CHUNK = 65536


class Peer(NamedTuple):
    """A process of the run."""

    rank: int
    host: str
    pid: int

    def __str__(self) -> str:
        return f"rank {self.rank} ({self.host}, pid {self.pid})"


class Verdict(NamedTuple):
    """Why all end.

    Args:
        rank: whose fault it is.
        text: what happened.
        raised: whether that process raised an error, of which it tells the user itself.
        silent: whether it is there still, but frozen.
    """

    rank: int
    text: str
    raised: bool = False
    silent: bool = False


class Line:
    """A connection that may be written to by any thread, and is read by one.

    Args:
        connection: the socket.
    """

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(LONGEST_SEND)
        self.connection = connection
        self._lock, self._rest = threading.Lock(), b""

    def send(self, **message: Any) -> None:
        """Sends a message; one that cannot be sent is lost, and its reader will miss it."""
        try:
            with self._lock:
                self.connection.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            return

    def received(self) -> list[dict[str, Any]] | None:
        """Messages that have come, of a socket that can be read; None where there will be no more."""
        try:
            data = self.connection.recv(CHUNK)
        except OSError:
            return None
        if not data:
            return None
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [json.loads(line) for line in lines]

    def close(self) -> None:
        """Ends the connection."""
        self.connection.close()
