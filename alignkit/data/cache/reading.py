"""Reads the pictures of sources for a cache: once to tell them apart, once to encode them.

Shape suffixes: P pairs; D bytes of a hash; N pictures; C H W.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from alignkit.components import PairSource
from alignkit.data.cache.store import PROMPTS, as_it_is
from alignkit.data.cache.table import DIGEST, Table, digest_of
from alignkit.data.pictures import decode
from alignkit.signals import left_to_parent
from alignkit.types import PairRecord

# pairs whose pictures are hashed at a time
HASHED = 256
# a split, a row of it, and why its pair cannot be read
Fault = tuple[str, int, str]


class Hashed(NamedTuple):
    """Hashes of the pictures of some pairs: of both sides, zeros where there is none."""

    split: str
    first: int
    digest_P2D: NDArray[np.uint8]
    faults: tuple[Fault, ...]


class Part(NamedTuple):
    """What is encoded at once: rows of a file.

    Args:
        kind: pictures or prompts.
        number: of the file.
        rows: numbers of the pictures or prompts.
        last: whether the file is complete with them.
    """

    kind: str
    number: int
    rows: tuple[int, ...]
    last: bool


class Decoded(NamedTuple):
    """What was read of a part.

    Args:
        part: which part.
        names: the prompts; of pictures, what messages call them.
        image_NCHW: pictures in [-1, 1], zeros of one that cannot be read; None in a part of prompts.
        frame_N4: as ``Batch.frame_KB4``; zeros of a picture that cannot be read.
        faults: what cannot be read.
    """

    part: Part
    names: tuple[str, ...]
    image_NCHW: Tensor | None = None
    frame_N4: Tensor | None = None
    faults: tuple[Fault, ...] = ()


class Hashes(Dataset[Hashed]):
    """Hashes of the pictures of ranges of pairs; asked for ``(split, range)``.

    Args:
        sources: the pairs, by split.
    """

    def __init__(self, sources: Mapping[str, PairSource]) -> None:
        self.sources = sources

    def __getitem__(self, place: tuple[str, range]) -> Hashed:
        split, rows = place
        digests, faults = [], []
        for row in rows:
            images: tuple[bytes | None, ...] = (None, None)
            try:
                record = self.sources[split][row]
                images = (record.image_0, record.image_1)
            except (OSError, ValueError) as error:
                faults.append((split, row, str(error)))
            digests += [digest_of(image) for image in images]
        digest_P2D = np.frombuffer(b"".join(digests), np.uint8).reshape(len(rows), 2, DIGEST)
        return Hashed(split, rows.start, digest_P2D, tuple(faults))


def hashes(
    sources: Mapping[str, PairSource], rank: int, world_size: int, *, num_workers: int
) -> Iterator[Hashed]:
    """Hashes of one process's share of the pictures; the first process shows how far it is."""
    places = [
        (split, range(start, min(start + HASHED, len(source))))
        for split, source in sources.items()
        for start in range(0, len(source), HASHED)
    ][rank::world_size]
    loader = DataLoader(
        Hashes(sources),
        batch_size=None,
        sampler=places,
        num_workers=num_workers,
        collate_fn=as_it_is,
        worker_init_fn=left_to_parent,
    )
    yield from track(loader, "telling pictures apart", total=len(places), disable=rank != 0, transient=True)


class Pictures(Dataset[Decoded]):
    """What is to be encoded; asked for a ``Part``.

    Args:
        sources: the pairs, by split.
        table: where each picture is.
        resolution: side of the squares, pixels.
        max_pixels: pictures of more are not decoded.
    """

    def __init__(
        self, sources: Mapping[str, PairSource], table: Table, resolution: int, max_pixels: int
    ) -> None:
        self.sources, self.table, self.resolution, self.max_pixels = sources, table, resolution, max_pixels
        self._last: tuple[tuple[str, int], PairRecord] | None = None

    def __getitem__(self, part: Part) -> Decoded:
        """Reads a part.

        Raises:
            ValueError: a picture is another one than when the cache was begun.
        """
        if part.kind == PROMPTS:
            return Decoded(part, tuple(self.table.prompt(row) for row in part.rows))
        blank = torch.zeros(3, self.resolution, self.resolution), torch.zeros(4, dtype=torch.int64)
        read, names, faults = [], [], []
        for row in part.rows:
            place = self.table.place(row)
            record = self._record(place.split, place.row)
            image, name = (record.image_0, record.image_1)[place.side], f"pair {record.id}"
            if image is None or digest_of(image) != self.table.digest(row):
                raise ValueError(
                    f"{name}: its picture is another one than when this cache was begun; remove the folder "
                    "and begin again"
                )
            try:
                picture = decode(image, (self.resolution, self.resolution), name, max_pixels=self.max_pixels)
                read.append((picture.image_CHW, picture.frame_4))
            except ValueError as error:
                faults.append((place.split, place.row, str(error)))
                read.append(blank)
            names.append(f"{name}, image {place.side}")
        image_NCHW, frame_N4 = (torch.stack(side) for side in zip(*read, strict=True))
        return Decoded(part, tuple(names), image_NCHW, frame_N4, tuple(faults))

    def _record(self, split: str, row: int) -> PairRecord:
        if self._last is None or self._last[0] != (split, row):
            self._last = (split, row), self.sources[split][row]
        return self._last[1]


def faulty(faults: Mapping[tuple[str, int], str], split: str) -> Callable[[int], str]:
    """Tells of a row of a split why its pair cannot be read."""
    return lambda row: faults[split, row]
