"""What one pass over a source leaves of its pairs: hashes and sizes, no pictures."""

import hashlib
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from alignkit.components import PairSource
from alignkit.data.pictures import MAX_PIXELS, TooManyPixelsError, picture_size, whole_picture
from alignkit.signals import left_to_parent
from alignkit.types import PairRecord

# why a picture cannot be used; one that is absent is the loser of a winner without any
READABLE, ABSENT, UNREADABLE, TOO_LARGE = range(4)
FACTS = np.dtype(
    [
        ("id", np.int64),
        ("label", np.float64),
        ("user", np.uint64),
        ("prompt", np.uint64),
        ("normalised", np.uint64),
        ("caption_length", np.int64),  # as the caption's measure counts; 0 is an empty one
        ("file", np.uint64, 2),
        ("pixels", np.uint64, 2),  # 0 where nothing was decoded
        ("size", np.int64, (2, 2)),  # width and height of both pictures, pixels
        ("fault", np.uint8, 2),
    ]
)
Facts = NDArray[Any]  # rows of FACTS
NOBODY = np.uint64(0)  # the user of pairs that do not say who judged
BATCH_SIZE = 64
# pictures that are remembered, so that one that stands in many pairs is decoded once
MAX_REMEMBERED = 1 << 16


class Picture(NamedTuple):
    """What is kept of one picture.

    Args:
        file: hash of its bytes.
        pixels: hash of its size and RGB values; 0 if it was not decoded.
        size: width and height.
        fault: ``READABLE``, ``ABSENT``, ``UNREADABLE`` or ``TOO_LARGE``.
        reason: what its decoder said.
    """

    file: int
    pixels: int = 0
    size: tuple[int, int] = (0, 0)
    fault: int = READABLE
    reason: str = ""


class Survey(NamedTuple):
    """What is kept of a source.

    Args:
        facts: a row of ``FACTS`` for every pair.
        users: names by hash.
        reasons: what was said of a pair that cannot be read, by id; of the first ones.
    """

    facts: Facts
    users: dict[int, str]
    reasons: dict[int, str]


class _Part(NamedTuple):
    """Facts of a few pairs, without those of their texts, and the texts."""

    facts: Facts
    prompts: list[str]
    users: list[str]
    reasons: dict[int, str]


def survey(
    source: PairSource,
    measure: Callable[[str], int],
    *,
    count: int,
    is_quick: bool = False,
    max_pixels: int = MAX_PIXELS,
    num_workers: int = 0,
    shown: Callable[[Iterable[Any], int], Iterable[Any]] | None = None,
) -> Survey:
    """Reads the first pairs of a source, once and one after the other.

    Args:
        source: where they are.
        measure: the length of a caption.
        count: how many pairs are read.
        is_quick: reads the headers of pictures only.
        max_pixels: pictures of more are not decoded.
        num_workers: processes that read and decode; 0 does it in this one.
        shown: wraps what is gone through, given how long it is, to show progress.
    """
    loader: Iterable[_Part] = DataLoader(
        _Inspected(source, is_quick, max_pixels),
        BATCH_SIZE,
        sampler=range(count),
        num_workers=num_workers,
        collate_fn=_collated,
        worker_init_fn=left_to_parent,
    )
    if shown is not None:
        loader = shown(loader, -(-count // BATCH_SIZE))
    length = lru_cache(MAX_REMEMBERED)(measure)
    parts, users, reasons = [np.empty(0, FACTS)], dict[int, str](), dict[int, str]()
    for part in loader:
        facts = part.facts
        facts["prompt"] = [hashed(prompt.encode()) for prompt in part.prompts]
        facts["normalised"] = [hashed(normalised(prompt).encode()) for prompt in part.prompts]
        facts["caption_length"] = [length(prompt) if prompt.strip() else 0 for prompt in part.prompts]
        facts["user"] = [hashed(user.encode()) if user else NOBODY for user in part.users]
        users |= {int(number): user for number, user in zip(facts["user"], part.users, strict=True) if user}
        if len(reasons) < BATCH_SIZE:
            reasons |= part.reasons
        parts.append(facts)
    return Survey(np.concatenate(parts), users, reasons)


def hashed(data: bytes) -> int:
    """A hash of 64 bits, never 0."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little") or 1


def normalised(prompt: str) -> str:
    """A prompt without what makes no other prompt of it: case, spaces and punctuation.

    Example:
        >>> normalised(" A red-apple,  please!")
        'a red apple please'
        >>> normalised("!?")  # there is nothing else in it
        '!?'
    """
    folded = unicodedata.normalize("NFKC", prompt).casefold().strip()
    return re.sub(r"[\W_]+", " ", folded).strip() or folded


def inspected(data: bytes, *, is_quick: bool = False, max_pixels: int = MAX_PIXELS) -> Picture:
    """Looks at a picture: at its header, and unless in haste at its pixels, as training reads them."""
    file = hashed(data)
    try:
        if is_quick:
            height, width = picture_size(data, "", max_pixels)
            return Picture(file, size=(width, height))
        whole = whole_picture(data, "", max_pixels)
    except ValueError as error:
        fault = TOO_LARGE if isinstance(error, TooManyPixelsError) else UNREADABLE
        # an address in memory differs every time
        reason = re.sub(r" <.* at 0x\w+>", "", str(error).partition("\n")[0]).removeprefix(": ")
        return Picture(file, fault=fault, reason=reason)
    return Picture(file, hashed(repr(whole.size).encode() + whole.tobytes()), whole.size)


class _Inspected(Dataset[Any]):
    """The pairs of a source, as facts."""

    def __init__(self, source: PairSource, is_quick: bool, max_pixels: int) -> None:
        self._source, self._is_quick, self._max_pixels = source, is_quick, max_pixels
        self._remembered: dict[bytes, Picture] = {}

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> tuple[PairRecord, tuple[Picture, Picture]]:
        try:
            record = self._source[index]
        except (ValueError, OSError) as error:
            bad = Picture(0, fault=UNREADABLE, reason=str(error).partition("\n")[0])
            return self._told(index), (bad, bad)
        pictures = self._picture(record.image_0), self._picture(record.image_1)
        return record._replace(image_0=b"", image_1=b""), pictures

    def _picture(self, data: bytes | None) -> Picture:
        if data is None:
            return Picture(0, fault=ABSENT)
        digest = hashlib.blake2b(data, digest_size=16).digest()
        if digest not in self._remembered:
            if len(self._remembered) >= MAX_REMEMBERED:
                self._remembered.clear()
            self._remembered[digest] = inspected(data, is_quick=self._is_quick, max_pixels=self._max_pixels)
        return self._remembered[digest]

    def _told(self, index: int) -> PairRecord:
        """A pair that cannot be read, by what can be told of it without its pictures."""
        ids, prompts, labels, users = self._texts
        return PairRecord(ids[index], prompts[index], b"", b"", labels[index], users[index])

    @cached_property
    def _texts(self) -> tuple[Sequence[int], Sequence[str], Sequence[float], Sequence[str]]:
        source = self._source
        return source.ids(), source.prompts(), source.labels(), source.users()


def _collated(examples: list[tuple[PairRecord, tuple[Picture, Picture]]]) -> _Part:
    facts, reasons = np.zeros(len(examples), FACTS), dict[int, str]()
    for row, (record, pictures) in zip(facts, examples, strict=True):
        row["id"], row["label"] = record.id, record.label_0
        for name in ("file", "pixels", "size", "fault"):
            row[name] = [getattr(picture, name) for picture in pictures]
        if told := "; ".join(dict.fromkeys(picture.reason for picture in pictures if picture.reason)):
            reasons[record.id] = told
    prompts = [record.prompt for record, _ in examples]
    return _Part(facts, prompts, [record.user for record, _ in examples], reasons)
