"""A safetensors file, written tensor by tensor: nothing of it is in memory twice."""

import hashlib
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from alignkit.checkpoints.values import DTYPES

METADATA = "__metadata__"
LENGTH = 8  # bytes that say how long the header is


def header(told: Mapping[str, str], tensors: Mapping[str, Tensor]) -> bytes:
    """The file up to its data.

    Args:
        told: its metadata.
        tensors: in the order in which they follow; the widest first, so that each begins at a multiple of its
            width.
    """
    entries, end = {}, 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        entries[name] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    head = json.dumps({METADATA: told, **entries}, separators=(",", ":")).encode()
    head += b" " * (-len(head) % LENGTH)
    return len(head).to_bytes(LENGTH, "little") + head


def widest_first(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same in the order that ``header`` wants."""
    return dict(sorted(tensors.items(), key=lambda item: -item[1].element_size()))


def stream(path: Path, head: bytes, tensors: Mapping[str, Tensor], stated_at: int | None = None) -> str:
    """Writes the file to its disk; returns the sha256 of what it was given.

    Args:
        path: the file.
        head: its ``header``.
        tensors: what follows.
        stated_at: from which byte on the file states that digest itself; it does not without it.
    """
    digest = hashlib.sha256(head)
    with path.open("wb") as file:
        file.write(head)
        for tensor in tensors.values():
            _append(file, digest, tensor)
        if stated_at is not None:
            file.seek(stated_at)
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
