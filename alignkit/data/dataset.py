"""The pairs of a source. Shape suffixes: K candidates of a prompt, best first; B prompts; C H W."""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from alignkit.components import PairSource
from alignkit.data.buckets import Buckets
from alignkit.data.framing import Framing
from alignkit.data.ordering import TIE, Ordering, Ties
from alignkit.data.pictures import MAX_PIXELS, decode
from alignkit.data.unreadable import Unreadable
from alignkit.types import Batch, PairRecord, Reads

CENTRED = Framing()


class Example(NamedTuple):
    """What was read of one pair, decoded."""

    image_KCHW: Tensor
    prompt: str
    id: int
    visit: int
    user: str
    label: float | None
    frame_K4: Tensor


class PairDataset(Dataset[Any]):
    """The pairs of a source, decoded and ordered; asked for ``(index, visit)``.

    Args:
        source: where they come from.
        resolution: side of their pictures, pixels.
        reads: what is read of each.
        ties: what becomes of those without a winner.
        seed: seed of coins.
        framing: which part of their pictures is read.
        max_pixels: pictures of more are not decoded.
        max_unreadable: the most pairs that may be unreadable, as a share of them.
    """

    def __init__(
        self,
        source: PairSource,
        resolution: int,
        reads: Reads = "pair",
        ties: Ties = "drop",
        seed: int = 0,
        *,
        framing: Framing = CENTRED,
        max_pixels: int = MAX_PIXELS,
        max_unreadable: float = 0.0,
    ) -> None:
        self.source, self.resolution, self.ordering = source, resolution, Ordering(reads, ties, seed)
        self.framing, self.max_pixels = framing, max_pixels
        check_reads("train", source, reads)
        labels = np.asarray(source.labels(), np.float64)
        self.rows, self.num_ties = self.ordering.rows(labels), int((labels == TIE).sum())
        self.unreadable = Unreadable(len(self.rows), max_unreadable)
        self.buckets: Buckets | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: tuple[int, int]) -> Example:
        """Reads a pair at a visit, or the next one that can be read.

        Raises:
            ValueError: too many cannot be read.
        """
        index, visit = place
        while True:
            if index not in self.unreadable:
                try:
                    return self._example(index, visit)
                except (OSError, ValueError) as error:
                    self.note(index, error)
            index = (index + 1) % len(self) if self.buckets is None else self.buckets.following(index)

    def best(self, index: int) -> tuple[bytes, str]:
        """The best picture that is read of a pair, as it is, and what messages call the pair.

        Raises:
            ValueError: there is none.
        """
        record = self.source[int(self.rows[index])]
        side = self.ordering.chosen([record.id], [record.label_0]).side_KB[0, 0]
        return _image(record, side), f"pair {record.id}"

    def name(self, index: int) -> str:
        """What messages call a pair."""
        return f"pair {self.source.ids()[int(self.rows[index])]}"

    def note(self, index: int, error: Exception) -> None:
        """Notes that a pair cannot be read.

        Raises:
            ValueError: too many cannot.
        """
        self.unreadable.add(index, error, self._fault)

    def _example(self, index: int, visit: int) -> Example:
        record = self.source[int(self.rows[index])]
        chosen = self.ordering.chosen([record.id], [record.label_0])
        crop = self.framing.crop(record.id, visit)
        size = (self.resolution, self.resolution) if self.buckets is None else self.buckets.size(index)
        pictures = [
            decode(_image(record, side), size, f"pair {record.id}", crop, self.max_pixels)
            for side in chosen.side_KB[:, 0]
        ]
        return Example(
            image_KCHW=torch.stack([picture.image_CHW for picture in pictures]),
            prompt=record.prompt,
            id=record.id,
            visit=visit,
            user=record.user,
            label=None if chosen.label_B is None else float(chosen.label_B[0]),
            frame_K4=torch.stack([picture.frame_4 for picture in pictures]),
        )

    def _fault(self, index: int) -> str:
        """Why a pair cannot be read."""
        try:
            self._example(index, 0)
        except (OSError, ValueError) as error:
            return str(error)
        return f"{self.name(index)}: can be read now"


def collate(examples: list[Example]) -> Batch:
    """Stacks examples, candidates first."""
    return Batch(
        image_KBCHW=torch.stack([example.image_KCHW for example in examples], dim=1),
        prompts=tuple(example.prompt for example in examples),
        id_B=torch.tensor([example.id for example in examples]),
        visit_B=torch.tensor([example.visit for example in examples]),
        users=tuple(example.user for example in examples),
        label_B=None if examples[0].label is None else torch.tensor([example.label for example in examples]),
        frame_KB4=torch.stack([example.frame_K4 for example in examples], dim=1),
    )


def _image(record: PairRecord, side: int) -> bytes:
    image = record.image_1 if side else record.image_0
    if image is None:
        raise ValueError(f"pair {record.id}: has no loser")
    return image


def check_reads(name: str, source: PairSource, reads: Reads) -> None:
    """Checks that a source has what is read of it.

    Raises:
        ValueError: pairs are asked of one that has winners only.
    """
    if source.winners_only and reads != "winner":
        raise ValueError(
            f"AlignData: {name} {type(source).__name__} has winners only, but this objective or sampler "
            "reads both candidates of a pair, or one of the two; use it where the winner alone is read, as "
            "in supervised fine-tuning, or give pairs"
        )
