"""Where the members of tar files are: read from there, nothing is ever unpacked."""

import os
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

# first bytes of what gzip, xz, bzip2 and zstd make
_COMPRESSED = (b"\x1f\x8b", b"\xfd7zXZ", b"BZh", b"\x28\xb5\x2f\xfd")


class Member(NamedTuple):
    """A file of a tar file.

    Args:
        name: its path there.
        start: its first byte.
        size: its length, bytes.
        fault: why it must not be used; empty if it may.
    """

    name: str
    start: int
    size: int
    fault: str = ""


def members(path: Path, owner: str) -> Iterator[Member]:
    """The files of a tar file, in its order.

    Members that are no plain files, or whose names lead elsewhere, are there with a fault. Folders are left
    out.

    Raises:
        ValueError: it is no tar file, is compressed, or is damaged.
    """
    with path.open("rb") as raw:
        if raw.read(8).startswith(_COMPRESSED):
            raise ValueError(
                f"{owner}: {str(path)!r} is compressed, so that single pairs cannot be read; uncompress it"
            )
    length, end = path.stat().st_size, -1
    try:
        with tarfile.open(path, "r:") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined] # it would keep them all
                if member.size < 0 or tar.offset <= end:
                    raise tarfile.ReadError("a size is wrong")
                end = tar.offset
                if not member.isdir():
                    yield Member(member.name, member.offset_data, member.size, _fault(member, length))
    except Exception as error:  # tarfile raises anything on damaged headers, IndexError among it
        raise ValueError(f"{owner}: {str(path)!r} is no tar file, or is damaged: {error}") from error


def read_member(path: str, start: int, size: int, owner: str) -> bytes:
    """Reads what a member holds.

    Raises:
        ValueError: the file is gone, or shorter than it was.
    """
    try:
        with open(path, "rb") as file:
            file.seek(start)
            data = file.read(size)
    except OSError as error:
        raise ValueError(f"{owner}: {path!r} cannot be read: {error.strerror}") from error
    if len(data) < size:
        raise ValueError(f"{owner}: {path!r} ends within it")
    return data


def _fault(member: tarfile.TarInfo, length: int) -> str:
    if member.issym() or member.islnk():
        return f"is a link to {member.linkname!r}"
    if not member.isreg() or member.issparse():
        return "is no plain file"
    if PurePosixPath(member.name).is_absolute() or ".." in PurePosixPath(member.name).parts:
        return "leads out of the tar file"
    if "\0" in member.name or (os.sep != "/" and os.sep in member.name):
        return "has no proper name"
    if member.offset_data + member.size > length:
        return "is cut off"
    if member.size >= 1 << 31:
        return "has 2 GiB or more"
    return ""
