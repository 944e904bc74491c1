"""One checkpoint: a safetensors file that states its own sha256, written as a stream and read back.

It is a safetensors file of the checkpoint's tensors; its metadata holds all else, as JSON, in "state". The
sha256 is that of the whole file with 64 zeros in the place where it stands itself, so that no byte can change
unnoticed. Tensors come back on the CPU and contiguous; nothing of a file is ever run.
"""

import errno
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from alignkit.checkpoints.values import DTYPES, put_together, taken_apart
from alignkit.files import durable
from alignkit.mistakes import UsageError

METADATA, STATE = "__metadata__", "state"
ZEROS = b"0" * 64
LENGTH = 8  # bytes that say how long the header is
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
    # the widest first, so that each begins at a multiple of its width
    tensors = dict(sorted(named.items(), key=lambda item: -item[1].element_size()))
    header = _header(tree, tensors)
    needed = len(header) + sum(tensor.nbytes for tensor in tensors.values())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _check_room(path.parent, needed)
        with durable(path) as partial:
            _check_written(partial, _stream(partial, header, tensors))
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


def step(path: Path) -> int:
    """After how many optimizer steps a file says it was saved, unverified; -1 if it says nothing."""
    found = told(path, "global_step")
    return found if isinstance(found, int) else -1


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
    entries, end = {}, 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        entries[name] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    told = {METADATA: {"sha256": ZEROS.decode(), STATE: json.dumps(tree)}, **entries}
    header = json.dumps(told, separators=(",", ":")).encode()
    header += b" " * (-len(header) % LENGTH)
    return len(header).to_bytes(LENGTH, "little") + header


def _stream(path: Path, header: bytes, tensors: Mapping[str, Tensor]) -> str:
    """Writes the file to its disk; returns its digest."""
    digest = hashlib.sha256(header)
    with path.open("wb") as file:
        file.write(header)
        for tensor in tensors.values():
            _append(file, digest, tensor)
        file.seek(DIGEST_AT)
        file.write(digest.hexdigest().encode())
        file.flush()
        os.fsync(file.fileno())
        if sys.platform == "linux":  # what is read back comes from the disk, not from memory
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return digest.hexdigest()


def _append(file: BinaryIO, digest: "hashlib._Hash", tensor: Tensor) -> None:
    # a function of its own, so that its copy is gone before the next tensor's is made
    flat = tensor.detach().cpu().contiguous().view(-1)
    piece = flat.view(torch.uint8).numpy().data
    file.write(piece)
    digest.update(piece)


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


def _check_room(folder: Path, needed: int) -> None:
    """Refuses to begin what cannot end.

    Raises:
        OSError: there are fewer bytes free than are needed.
    """
    room = shutil.disk_usage(folder)
    # some network file systems say that they have no bytes at all
    if room.total and room.free < needed:
        raise OSError(errno.ENOSPC, f"only {room.free:,} bytes are free there")
