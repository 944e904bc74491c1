"""A run's folder of checkpoints: finding one, and going back to the last good one."""

import difflib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch.utilities import rank_zero_warn
from torch.distributed.device_mesh import DeviceMesh

from alignkit.checkpoints import shards
from alignkit.checkpoints.file import UnsavedError
from alignkit.checkpoints.forms import is_there, read, remove, step
from alignkit.files import durable
from alignkit.mistakes import listed

FOLDER, SUFFIX = "checkpoints", ".ckpt"
NEWEST = "last"
LAST = Path(FOLDER, f"{NEWEST}{SUFFIX}")


class Loaded(NamedTuple):
    """A checkpoint that was read.

    Args:
        path: the file or folder, and not a link to it.
        state: what it holds.
    """

    path: Path
    state: dict[str, Any]


def loaded(path: Path, named: str, mesh: DeviceMesh | None = None) -> Loaded:
    """Reads a checkpoint; of a damaged "last", the newest good one beside it, and says so.

    Args:
        path: the file or folder.
        named: what messages call it.
        mesh: processes that each get their share of what was saved in shares; all of them ask.

    Raises:
        ValueError: there is no such file, or it is damaged.
    """
    check_present(path, named)
    try:
        return Loaded(path.resolve(), read(path, mesh))
    except ValueError as error:
        if path.stem != NEWEST:
            raise ValueError(f"{named}: {error}") from error
        reason = error
    for other in _newest_first(path.parent):
        try:
            state = read(other, mesh)
        except ValueError:
            continue
        rank_zero_warn(
            f"{named}: {reason}. GOING BACK to the newest good checkpoint beside it, {other.name}, which was "
            f"saved after step {step(other)}"
        )
        return Loaded(other, state)
    raise ValueError(f"{named}: {reason}; and no good checkpoint stands beside it") from reason


def check_present(path: Path, named: str) -> None:
    """Refuses a name of no file; "last" may be missing where others are there.

    Raises:
        ValueError: there is no such file.
    """
    if is_there(path) or (path.stem == NEWEST and in_folder(path.parent)):
        return
    beside = [other.name for other in in_folder(path.parent)]
    near = difflib.get_close_matches(path.name, beside, 3, 0.3) or beside
    there = f"; there are {listed(near)} beside it" if near else ""
    raise ValueError(
        f"{named}: there is no {str(path)!r}{there}; a run's own stand in RUN/{FOLDER}/, and {LAST.name} is "
        "the latest of them"
    )


def in_folder(folder: Path) -> list[Path]:
    """The checkpoints of a folder, each once, whatever links there are to it."""
    return sorted({path.resolve() for path in folder.glob(f"*{SUFFIX}") if is_there(path)})


def find(run: Path, name: str) -> Path:
    """The checkpoint of a run that a name means: "last", a file's name, or a path."""
    for path in (run / FOLDER / f"{name}{SUFFIX}", run / FOLDER / name):
        if is_there(path):
            return path
    return run / LAST if name == NEWEST else Path(name)


def kept(run: Path) -> list[Path]:
    """A run's checkpoints, each once, whatever links there are to it."""
    return in_folder(run / FOLDER)


def tidy(folder: Path) -> None:
    """Removes what a killed process left half-written, and puts back what it was about to replace."""
    shards.tidy(folder, SUFFIX)


def link(path: Path, target: Path) -> None:
    """Makes a name stand for a checkpoint of its folder; there is no moment without the name.

    Raises:
        UnsavedError: it cannot be made.
    """
    try:
        with durable(path) as partial:
            remove(partial)
            try:
                partial.symlink_to(os.path.relpath(target, path.parent))
            except OSError:  # a file system without links
                if target.is_dir():
                    shutil.copytree(target, partial)
                    remove(path)
                else:
                    shutil.copyfile(target, partial)
    except OSError as error:
        raise UnsavedError(f"cannot make {path} a link to {target}: {error.strerror or error}") from error


def _newest_first(folder: Path) -> Iterator[Path]:
    yield from sorted(in_folder(folder), key=lambda path: (step(path), path.stat().st_mtime), reverse=True)
