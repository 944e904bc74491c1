"""Files that are there as a whole, or not at all, and hashes of those that are too large to be read."""

import errno
import fcntl
import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

# of every STRIDE bytes of a large file so many are read
BLOCK, STRIDE = 4096, 2**20
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
PARTIAL = ".partial"
# what file systems say that cannot be told to write down a folder's names
UNSYNCED = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Another name for a file, to be written within a ``with`` block; it gets its own when that ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}{PARTIAL}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def durable(path: Path) -> Iterator[Path]:
    """As ``whole``; it gets its name only once it is on the disk, and keeps it if the machine fails then."""
    with whole(path) as partial:
        yield partial
        sync(partial)
    sync_names(path.parent)


def sync_names(folder: Path) -> None:
    """Waits until the names in a folder are on the disk, where its file system can be told to."""
    try:
        sync(folder)
    except OSError as error:
        if error.errno not in UNSYNCED:
            raise


def sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


@contextmanager
def written_to(folder: Path, option: str = "--out") -> Iterator[None]:
    """Says in words that a folder cannot be written to.

    Args:
        folder: where the ``with`` block writes.
        option: by which it was named.

    Raises:
        ValueError: it cannot, or the disk is full.
    """
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            kept = "What was drawn and judged is kept; make room and call this again"
            raise ValueError(f"no space left: {error}\n{kept}") from error
        if str(folder) in str(error):
            raise ValueError(
                f"{option} {folder}: cannot be written to; give another folder\n{error}"
            ) from error
        raise


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Keeps other processes out of a folder within a ``with`` block; it goes if nothing came into it.

    Raises:
        ValueError: another one is at work in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    opened = os.open(folder, os.O_RDONLY)
    try:
        hold(opened, folder)
        yield
    finally:
        os.close(opened)
        with suppress(OSError):
            folder.rmdir()


def hold(opened: int, folder: Path) -> None:
    """Locks an open file until it is closed or this process is dead.

    Args:
        opened: the file.
        folder: which it keeps others out of.

    Raises:
        ValueError: another process has locked it.
    """
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        told = "another process is at work in it; wait for it, or give another folder"
        raise ValueError(f"--out {folder}: {told}") from error
    except OSError:  # a file system without locks
        pass


def write_tensors(path: Path, tensors: Mapping[str, Tensor], told: dict[str, str]) -> None:
    """Writes a safetensors file and its metadata, under another name until it is on the disk."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with durable(path) as partial:
        save_file(contiguous, partial, metadata=told)


def write_text(path: Path, text: str) -> None:
    """Writes a text file under another name first."""
    with whole(path) as partial:
        partial.write_text(text, encoding="utf-8")


def sha256(path: Path) -> str:
    """A hash of all of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def quick_hash(files: Mapping[str, Path]) -> str:
    """A hash of files by name: of their names, sizes, and contents.

    Of a file of more than a mebibyte it reads the first 4 KiB of every mebibyte and the last 4 KiB, so that
    gigabytes of weights take a moment. Other weights differ there; one byte changed elsewhere goes unseen.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, path in sorted(files.items()):
        size = path.stat().st_size
        digest.update(f"{name}\n{size}\n".encode())
        with path.open("rb") as file:
            if size <= STRIDE:
                digest.update(file.read())
                continue
            for start in (*range(0, size, STRIDE), size - BLOCK):
                file.seek(start)
                digest.update(file.read(BLOCK))
    return digest.hexdigest()
