"""A checkpoint, whether it is a file or, of a sharded run, a folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_utilities.core.apply_func import apply_to_collection
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from alignkit.checkpoints import file, shards


def write(path: Path, checkpoint: Mapping[str, Any]) -> None:
    """Saves a checkpoint: as a folder where it holds shares of tensors, to be called by every process then.

    Raises:
        UnsavedError: it cannot be; what had the name stays as it was.
    """
    shares: list[DTensor] = []
    apply_to_collection(checkpoint, DTensor, shares.append)
    if shares:
        shards.write(path, checkpoint)
    elif path.is_dir():
        with shards.put_aside(path):
            file.write(path, checkpoint)
    else:
        file.write(path, checkpoint)


def read(path: Path, mesh: DeviceMesh | None = None) -> dict[str, Any]:
    """Reads and verifies a checkpoint.

    Args:
        path: the file or folder; tensors are views of a file, which must stay as it is.
        mesh: processes, all of which ask: what a folder holds in shares comes back in theirs.

    Raises:
        ValueError: there is none, or it is damaged.
    """
    return shards.read(path, mesh) if path.is_dir() else file.read(path)


def step(path: Path) -> int:
    """After how many optimizer steps it says that it was saved, unverified; -1 if it says nothing."""
    found = told(path, "global_step")
    return found if isinstance(found, int) else -1


def told(path: Path, name: str) -> Any:
    """What it says under a name, unverified and without tensors; None if it says nothing."""
    return shards.told(path, name) if path.is_dir() else file.told(path, name)


def is_there(path: Path) -> bool:
    """Whether a path is a checkpoint, as far as names tell."""
    return path.is_file() or (path / shards.MANIFEST).is_file()


def remove(path: Path) -> None:
    """Removes it, or a link to it, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shards.remove(path)
    else:
        path.unlink(missing_ok=True)
