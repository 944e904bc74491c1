"""One checkpoint: a safetensors file that states its own sha256, written as a stream and read back.

It is a safetensors file of the checkpoint's tensors; its metadata holds all else, as JSON, in "state". The
sha256 is that of the whole file with 64 zeros in the place where it stands itself, so that no byte can change
unnoticed. Tensors come back on the CPU and contiguous; nothing of a file is ever run.
"""

import errno
import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from alignkit.checkpoints.stream import LENGTH, METADATA, header, stream, widest_first
from alignkit.checkpoints.values import put_together, taken_apart
from alignkit.files import durable
from alignkit.mistakes import UsageError

STATE = "state"
ZEROS = b"0" * 64
START = f'{{"{METADATA}":{{"sha256":"'.encode()
DIGEST_AT = LENGTH + len(START)
BLOCK = 2**22
# what reading another header than ours, or another state, ends in
UNREADABLE = (SafetensorError, LookupError, TypeError, AttributeError, OverflowError, RecursionError)
# the first bytes of a zip archive and of a bare pickle
PICKLES = (b"PK\x03\x04", b"\x80")


class UnsavedError(UsageError):
    """A checkpoint could not be saved; those before it are as they were."""


def write(path: Path, checkpoint: Mapping[str, Any]) -> None:
    """Saves a checkpoint, and reads it back before it gets its name; copies one tensor at a time, if any.

    Raises:
        UnsavedError: it cannot be; what had the name stays as it was.
    """
    try:
        tree, named = taken_apart(checkpoint, METADATA)
    except ValueError as error:
        raise UnsavedError(f"cannot save {path}: {error}") from error
    tensors = widest_first(named)
    head = _header(tree, tensors)
    needed = len(head) + sum(tensor.nbytes for tensor in tensors.values())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        check_room(path.parent, needed)
        with durable(path) as partial:
            _check_written(partial, _stream(partial, head, tensors))
    except OSError as error:
        raise UnsavedError(
            f"cannot save {path}, {needed:,} bytes: {error.strerror or error}\n"
            "What was saved before is as it was"
        ) from error


def read(path: Path) -> dict[str, Any]:
    """Reads and verifies a checkpoint; its tensors are views of the file, which must stay as it is.

    Raises:
        ValueError: there is none, or it is damaged.
    """
    try:
        _verify(path)
        with safe_open(path, "pt") as file:
            state = put_together(_tree(file), file.get_tensor)
        if not isinstance(state, dict):
            raise ValueError("is no checkpoint of alignkit: it holds no names")
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise ValueError(f"{path} {error}") from error
    except UNREADABLE as error:
        raise ValueError(f"{path} is no checkpoint of alignkit: {error}") from error
    return state


def told(path: Path, name: str) -> Any:
    """What a file says under a name, unverified and without tensors; None if it says nothing."""
    try:
        with safe_open(path, "pt") as file:
            return put_together(dict(_tree(file)["dict"])[name], lambda name: None)
    except (OSError, ValueError, *UNREADABLE):
        return None


def _tree(file: Any) -> Any:
    return json.loads(file.metadata()[STATE])


def _header(tree: Any, tensors: Mapping[str, Tensor]) -> bytes:
    """The file up to its data, with zeros for the digest."""
    return header({"sha256": ZEROS.decode(), STATE: json.dumps(tree)}, tensors)


def _stream(path: Path, head: bytes, tensors: Mapping[str, Tensor]) -> str:
    """Writes the file to its disk; returns its digest."""
    return stream(path, head, tensors, DIGEST_AT)


def _verify(path: Path) -> str:
    """Reads all of a file; returns its digest.

    Raises:
        ValueError: it is none that was written here, or not as it was written.
    """
    digest, block = hashlib.sha256(), bytearray(BLOCK)
    with path.open("rb") as file:
        start = bytearray(file.read(DIGEST_AT + len(ZEROS)))
        if start[LENGTH:DIGEST_AT] != START and start.startswith(PICKLES):
            raise ValueError(
                "is a pickle, as torch.save and earlier versions wrote it; it could run code and is not read"
            )
        if start[LENGTH:DIGEST_AT] != START:
            raise ValueError("is no checkpoint of alignkit, or its beginning is damaged")
        stated, start[DIGEST_AT:] = bytes(start[DIGEST_AT:]), ZEROS
        digest.update(start)
        while count := file.readinto(block):
            digest.update(memoryview(block)[:count])
    if digest.hexdigest().encode() != stated:
        raise ValueError("is damaged or cut off: it has not the sha256 that it states")
    return digest.hexdigest()


def _check_written(path: Path, digest: str) -> None:
    """Reads back what was written.

    Raises:
        OSError: it is something else.
    """
    try:
        if _verify(path) == digest:
            with safe_open(path, "pt") as file:
                _tree(file)
            return
    except (ValueError, SafetensorError) as error:
        raise OSError(f"what was written {error}; check the disk") from error
    raise OSError("what was written reads otherwise; check the disk")


def check_room(folder: Path, needed: int) -> None:
    """Refuses to begin what cannot end.

    Raises:
        OSError: there are fewer bytes free than are needed.
    """
    room = shutil.disk_usage(folder)
    # some network file systems say that they have no bytes at all
    if room.total and room.free < needed:
        raise OSError(errno.ENOSPC, f"only {room.free:,} bytes are free there")
