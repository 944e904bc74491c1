"""Other commands of alignkit, one at a time, each in a process that does not outlive this one."""

import ctypes
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alignkit import signals, slurm, trust
from alignkit.catalog import Catalog
from alignkit.training import RUN_VARIABLE

LOOK = 0.1
PR_SET_PDEATHSIG = 1
# lines of a log that say why a process failed, and letters of them
LINES, LENGTH = 3, 500


def command(catalog: Catalog, name: str, arguments: Sequence[str]) -> list[str]:
    """A command of alignkit, as it may be typed, with what this one trusts and leaves out."""
    blocked = [word for plugin in catalog.blocked for word in ("-p", f"no:{plugin}")]
    return ["alignkit", *blocked, *trust.options(), name, *arguments]


@contextmanager
def patient() -> Iterator[None]:
    """A ``with`` block in which a signal is passed on to the process at work, and waited for."""
    handler = signals.current()
    if handler is None:
        yield
        return
    handler.is_waiting, handler.promise = True, "ending as soon as what is at work has saved"
    if slurm.job():  # which asks a job in this way to save and begin anew
        handler.handle(signal.SIGUSR1)
    try:
        yield
    finally:
        handler.is_waiting = False


def end_if_told() -> None:
    """Ends this process if it was told to.

    Raises:
        Stopped: it was.
    """
    handler = signals.current()
    if handler is not None and handler.number is not None:
        raise signals.Stopped(handler.number)


def run(
    line: Sequence[str], log: Path, *, lock: int | None = None, is_enough: Callable[[], bool] = lambda: False
) -> int:
    """Runs a command until it ends; returns its exit code, negative if a signal ended it.

    Args:
        line: as ``command`` gives it.
        log: what it says is added to.
        lock: a file that it, too, keeps open.
        is_enough: asked again and again; once it says so, the command is told to end.

    Raises:
        Stopped: this process was told to end; the command has ended then.
    """
    end_if_told()
    environment = {name: value for name, value in os.environ.items() if name != RUN_VARIABLE}
    prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as told:
        process = subprocess.Popen(
            [sys.executable, "-m", "alignkit.cli", *line[1:]],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=told,
            stderr=told,
            pass_fds=() if lock is None else (lock,),
            process_group=0,  # a terminal's signals come to it through this process alone
            preexec_fn=prctl and (lambda: prctl(PR_SET_PDEATHSIG, signal.SIGTERM)),
        )
    with process:
        _watch(process, is_enough)
    end_if_told()
    return process.returncode


def _watch(process: subprocess.Popen[Any], is_enough: Callable[[], bool]) -> None:
    handler, is_ending = signals.current(), False
    if handler is not None:
        handler.others = lambda: [process]
    while process.poll() is None:
        time.sleep(LOOK)
        number = handler.number if handler is not None else None
        if not is_ending and (number is not None or is_enough()):
            is_ending = True
            process.send_signal(number or signal.SIGTERM)


def reason(log: Path, code: int) -> str:
    """Why a process failed, from the end of its log."""
    lines = [line.rstrip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    lines = [line for line in lines if line]
    marked = [place for place, line in enumerate(lines) if line.startswith("alignkit: error: ")]
    told = lines[marked[-1] :][:LINES] if marked else lines[-1:]
    ended = f"ended by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    words = " ".join(told).removeprefix("alignkit: error: ")[:LENGTH]
    return words if marked else f"{ended}: {words}" if words else ended


def locked(path: Path) -> int | None:
    """Opens and locks a file until it is closed, here and in processes that keep it open.

    None if another process has locked it, or nobody can tell: the file system has no locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    opened = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(opened)
        return None
    return opened


def own(path: Path, told: Mapping[str, Any]) -> None:
    """Writes into a file that this process has locked whose it is."""
    path.write_text(json.dumps({"host": socket.gethostname(), "pid": os.getpid(), **told}), encoding="utf-8")


def owned(path: Path) -> dict[str, Any]:
    """What such a file says; nothing while it is written, or if it never was."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def is_orphan(path: Path) -> bool:
    """Whether who locked a file is known to be dead, so that only what it had started may keep the lock."""
    told = owned(path)
    if told.get("host") != socket.gethostname():
        return False
    try:
        os.kill(told["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # somebody else's, and alive
        pass
    return False


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """A ``with`` block that one process at a time enters; where files cannot be locked, all do."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        while not _is_ours(file.fileno()):
            end_if_told()
            time.sleep(LOOK)
        yield


def _is_ours(opened: int) -> bool:
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        pass
    return True
