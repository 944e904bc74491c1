"""Rows of tensors that are spread over safetensors files, read without mapping and without loading.

A mapped file counts as memory of whoever looks at it; read into a buffer, it does not: reading a hundred
thousand rows takes as little memory as reading ten.
"""

import json
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alignkit.files import write_tensors

DTYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "U8": torch.uint8,
}
# files that are open at once: below what systems allow a process
MAX_OPEN = 256
METADATA = "alignkit"


class Entry(NamedTuple):
    """Where a tensor is in a file: its type, its shape, and its first byte."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int

    @property
    def row_bytes(self) -> int:
        """Size of one row."""
        return prod(self.shape[1:]) * self.dtype.itemsize

    @property
    def end(self) -> int:
        """The first byte behind it."""
        return self.begin + prod(self.shape) * self.dtype.itemsize


class Header(NamedTuple):
    """What a file says of itself.

    Args:
        entries: its tensors by name.
        told: what was written beside them, by name; empty where nothing was.
    """

    entries: Mapping[str, Entry]
    told: Mapping[str, Any]


def header_of(path: Path) -> Header:
    """Reads the header of a safetensors file (https://github.com/huggingface/safetensors, "Format").

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no whole safetensors file.
    """
    with path.open("rb") as file:
        try:
            length = int.from_bytes(file.read(8), "little")
            size = os.fstat(file.fileno()).st_size
            if not 0 < length < size:
                raise ValueError(f"its header is {length} bytes long, the file {size}")
            content = dict(json.loads(file.read(length)))
            told = dict(json.loads((content.pop("__metadata__", None) or {}).get(METADATA, "{}")))
            entries = {name: _entry(said, 8 + length) for name, said in content.items()}
            end = max((entry.end for entry in entries.values()), default=0)
            if end != size:
                raise ValueError(f"it is {size} bytes long and should be {end}")
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{path} is no whole safetensors file: {error}") from error
    return Header(entries, told)


def _entry(said: Mapping[str, Any], start: int) -> Entry:
    """Where a tensor is, by what the header says of it.

    Raises:
        ValueError: it cannot be so.
    """
    begin, end = said["data_offsets"]
    entry = Entry(DTYPES[said["dtype"]], tuple(said["shape"]), start + begin)
    if any(type(number) is not int or number < 0 for number in (*entry.shape, begin, end)):
        raise ValueError(f"{said} is no place of a tensor")
    if entry.end != start + end:
        raise ValueError(f"{said} has another size than its shape")
    return entry


def mapped(path: Path) -> dict[str, NDArray[Any]]:
    """The tensors of a file as arrays that are read where they are looked at.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no whole safetensors file of int64 and uint8.
    """
    types = {torch.int64: np.int64, torch.uint8: np.uint8}
    found: dict[str, NDArray[Any]] = {}
    for name, entry in header_of(path).entries.items():
        kind = types.get(entry.dtype)
        if kind is None:
            raise ValueError(f"{path} holds {name} as {entry.dtype}, which is mapped by nobody")
        # no byte of an empty tensor can be mapped
        found[name] = (
            np.memmap(path, kind, "r", entry.begin, entry.shape)
            if prod(entry.shape)
            else np.empty(entry.shape, kind)
        )
    return found


class Shards:
    """The files ``KIND-00000.safetensors`` of a folder; each holds the same tensors of so many rows.

    Can be handed to other processes.

    Args:
        folder: where the files are.
        kind: start of their names.
        size: rows per file; the last one may have fewer.
        count: rows of all files together.
        identity: what every file must say of itself, so that none of another cache is read.
    """

    def __init__(self, folder: Path, kind: str, *, size: int, count: int, identity: str) -> None:
        self.folder, self.kind, self.size, self.count, self.identity = folder, kind, size, count, identity
        self._entries: dict[int, Mapping[str, Entry]] = {}
        self._opened: OrderedDict[int, int] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_opened": OrderedDict()}

    def path(self, number: int) -> Path:
        """The file of that number."""
        return self.folder / f"{self.kind}-{number:05d}.safetensors"

    def rows(self) -> list[range]:
        """The rows of every file."""
        return [range(start, min(start + self.size, self.count)) for start in range(0, self.count, self.size)]

    def missing(self) -> list[tuple[int, range]]:
        """Those files that are not there as a whole: their numbers and their rows."""
        return [(number, rows) for number, rows in enumerate(self.rows()) if self.fault(number)]

    def write(self, number: int, tensors: Mapping[str, Tensor]) -> None:
        """Writes a file."""
        write_tensors(self.path(number), tensors, {METADATA: json.dumps({"cache": self.identity})})

    def fault(self, number: int) -> str:
        """What is wrong with a file; empty if nothing is."""
        try:
            self.entries(number)
        except FileNotFoundError:
            return f"{self.path(number)} is missing"
        except ValueError as error:
            return str(error)
        return ""

    def entries(self, number: int) -> Mapping[str, Entry]:
        """The tensors of a file.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is not whole, or another cache's.
        """
        if number not in self._entries:
            header = header_of(self.path(number))
            if header.told.get("cache") != self.identity:
                raise ValueError(f"{self.path(number)} is of another cache")
            self._entries[number] = header.entries
        return self._entries[number]

    def read(self, name: str, rows: Sequence[int]) -> Tensor:
        """Reads rows of a tensor, in the order asked for, as they are stored.

        Raises:
            ValueError: a file is not whole.
        """
        entry = self.entries(rows[0] // self.size)[name]
        read_RX = torch.empty((len(rows), *entry.shape[1:]), dtype=entry.dtype)
        count = entry.row_bytes
        buffer = read_RX.view(-1).view(torch.uint8).numpy().data
        for place, row in enumerate(rows):
            number, within = divmod(row, self.size)
            part = buffer[place * count : (place + 1) * count]
            begin = self.entries(number)[name].begin + within * count
            if os.preadv(self._descriptor(number), [part], begin) != count:
                raise ValueError(f"{self.path(number)} ends before row {within} of {name!r}")
        return read_RX

    def _descriptor(self, number: int) -> int:
        if number in self._opened:
            self._opened.move_to_end(number)
        else:
            self._opened[number] = os.open(self.path(number), os.O_RDONLY)
            if len(self._opened) > MAX_OPEN:
                os.close(self._opened.popitem(last=False)[1])
        return self._opened[number]
