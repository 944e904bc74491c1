"""How the processes of a run connect to each other, once they can speak."""

import os
import secrets
import socket
import time
from collections.abc import Callable, Sequence

import lightning.pytorch as pl

from alignkit.distributed import gathered_objects
from alignkit.watch.hub import Hub
from alignkit.watch.line import Line, Peer, Verdict
from alignkit.watch.progress import Progress
from alignkit.watch.spoke import Spoke

CONNECTING = 10.0


def joined(
    trainer: pl.Trainer,
    peers: Sequence[Peer],
    progress: Progress,
    *,
    silent_after: float,
    stalled_after: float,
    judged: Callable[[Verdict], None],
) -> Hub | Spoke | None:
    """This process's part in the watch; None, in all processes, where one cannot reach the first.

    Args:
        trainer: whose processes they are.
        peers: all of them, by rank.
        progress: of this one.
        silent_after: as of ``Watch``.
        stalled_after: as of ``Watch``.
        judged: is told what happened.
    """
    member: Hub | Spoke | None = None
    if trainer.is_global_zero:
        with _listener() as listener:
            token = secrets.token_hex()
            trainer.strategy.broadcast((os.environ["MASTER_ADDR"], listener.getsockname()[1], token))
            lines = _accepted(listener, token, len(peers) - 1)
        if len(lines) == len(peers) - 1:
            member = Hub(
                lines,
                peers,
                progress,
                silent_after=silent_after,
                stalled_after=stalled_after,
                judged=judged,
            )
    else:
        address: tuple[str, int, str] = trainer.strategy.broadcast(("", 0, ""))
        line = _connected(*address, rank=trainer.global_rank)
        if line is not None:
            member = Spoke(line, peers[0], progress, silent_after=silent_after, judged=judged)
    return member if all(gathered_objects(member is not None)) else None


def _listener() -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", 0))


def _accepted(listener: socket.socket, token: str, count: int) -> dict[int, Line]:
    """Connections of the others, by rank; fewer where some do not come."""
    lines: dict[int, Line] = {}
    deadline = time.monotonic() + CONNECTING
    while len(lines) < count and (left := deadline - time.monotonic()) > 0:
        listener.settimeout(left)
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            break
        line = Line(connection)
        for message in line.received() or ():
            if message.get("token") == token:
                lines[message["rank"]] = line
    return lines


def _connected(host: str, port: int, token: str, *, rank: int) -> Line | None:
    try:
        line = Line(socket.create_connection((host, port), CONNECTING))
    except OSError:
        return None
    line.send(rank=rank, token=token)
    return line
