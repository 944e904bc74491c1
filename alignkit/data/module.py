"""The one LightningDataModule. Shape suffixes: K candidates of a prompt, best first; B prompts; C H W."""

import io
from typing import Any, Literal, NamedTuple, get_args

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from alignkit.components import PairSource
from alignkit.data.loader import ResumableLoader
from alignkit.noise import bernoulli
from alignkit.types import Batch, Key, Reads

TIE = 0.5
Ties = Literal["drop", "coin", "soft"]


class AlignData(pl.LightningDataModule):
    """Batches of preference pairs, winner first.

    Args:
        train: pairs to train on.
        validation: held-out pairs, by prompt; without them nothing is validated or evaluated. Their ties are
            always dropped.
        batch_size: pairs per device and step.
        resolution: side of the square that pictures are resized (shorter side) and centre-cropped to.
        ties: what becomes of training pairs without a winner. "drop" leaves them out; "coin" decides each
            once, by the seed; "soft" keeps every label as a probability and trains on the expected loss.
        num_workers: processes that read and decode; 0 does it in the training process.
        seed: seed of the order, and of coins.
        reads: what batches hold of each training pair; set from objective and sampler.
        validation_reads: the same of validation pairs; set from the objective.
    """

    def __init__(
        self,
        train: PairSource,
        validation: PairSource | None = None,
        batch_size: int = 8,
        resolution: int = 512,
        ties: Ties = "drop",
        num_workers: int = 0,
        seed: int = 0,
        reads: Reads = "pair",
        validation_reads: Reads = "pair",
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"AlignData: batch_size must be at least 1, got {batch_size}")
        if resolution < 8:
            raise ValueError(f"AlignData: resolution must be at least 8 pixels, got {resolution}")
        if ties not in get_args(Ties):
            raise ValueError(f"AlignData: ties must be one of {', '.join(get_args(Ties))}, got {ties!r}")
        if ties == "soft" and reads == "winner":
            raise ValueError(
                "AlignData: ties 'soft' needs both candidates of a pair, but this objective or sampler reads "
                "the winner alone; use 'drop' or 'coin'"
            )
        self.train, self.validation = train, validation
        self.batch_size, self.resolution, self.ties = batch_size, resolution, ties
        self.num_workers, self.seed = num_workers, seed
        self.reads, self.validation_reads = reads, validation_reads

    def setup(self, stage: str) -> None:
        """Decides on the ties of the training pairs.

        Raises:
            ValueError: too few pairs are left for one batch on every device.
        """
        if stage != "fit":
            return
        self._train = PairDataset(self.train, self.resolution, self.reads, self.ties, self.seed)
        done = {"drop": "dropped", "coin": "decided by coin", "soft": "kept as soft labels"}[self.ties]
        rank_zero_info(f"{len(self._train)} training pairs, {self._train.num_ties} ties {done}")
        needed = self.batch_size * (self.trainer.world_size if self.trainer else 1)
        if len(self._train) < needed:
            raise ValueError(
                f"AlignData: {len(self._train)} training pairs are fewer than the {needed} of one "
                "step; lower batch_size or give more pairs"
            )

    def train_dataloader(self) -> ResumableLoader:
        return ResumableLoader(
            self._train,
            self.batch_size,
            seed=self.seed,
            rank=self.trainer.global_rank if self.trainer else 0,
            world_size=self.trainer.world_size if self.trainer else 1,
            num_workers=self.num_workers,
            collate_fn=collate,
            persistent_workers=self.num_workers > 0,
        )

    def val_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        if self.validation is None:
            return []
        pairs = PairDataset(self.validation, self.resolution, self.validation_reads)
        rank = self.trainer.global_rank if self.trainer else 0
        world_size = self.trainer.world_size if self.trainer else 1
        order = [(index, 0) for index in range(rank, len(pairs), world_size)]
        return DataLoader(
            pairs, self.batch_size, sampler=order, num_workers=self.num_workers, collate_fn=collate
        )

    def training_prompts(self) -> list[str]:
        """The distinct prompts of the training pairs, sorted."""
        prompts = self.train.prompts()
        return sorted({prompts[row] for row in self._train.rows})

    def held_out_prompts(self) -> list[str]:
        """The distinct prompts of the validation pairs, in their order."""
        return [] if self.validation is None else list(dict.fromkeys(self.validation.prompts()))

    def facts(self) -> dict[str, Any]:
        """What a run reports of its training pairs; empty where none were trained on."""
        pairs = getattr(self, "_train", None)
        return (
            {} if pairs is None else {"pairs": len(pairs), "ties": pairs.num_ties, "ties_policy": self.ties}
        )


class Example(NamedTuple):
    """What was read of one pair, decoded."""

    image_KCHW: Tensor
    prompt: str
    id: int
    visit: int
    user: str
    label: float | None


class PairDataset(Dataset[Any]):
    """The pairs of a source, decoded and ordered; asked for ``(index, visit)``.

    Args:
        source: where they come from.
        resolution: side of their pictures, pixels.
        reads: what is read of each.
        ties: what becomes of those without a winner.
        seed: seed of coins.
    """

    def __init__(
        self, source: PairSource, resolution: int, reads: Reads = "pair", ties: Ties = "drop", seed: int = 0
    ) -> None:
        self.source, self.resolution = source, resolution
        self.reads, self.ties, self.seed = reads, ties, seed
        labels = source.labels()
        self.rows = [row for row, label_0 in enumerate(labels) if ties != "drop" or label_0 != TIE]
        self.num_ties = sum(label_0 == TIE for label_0 in labels)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: tuple[int, int]) -> Example:
        index, visit = place
        record = self.source[self.rows[index]]
        images, label = [record.image_0, record.image_1], record.label_0
        if label == TIE and self.ties == "coin":
            label = float(self._coin("tie", record.id))
        if label < TIE:
            images, label = images[::-1], 1 - label
        liked = label if self.ties == "soft" else 1.0
        read: float | None = liked if self.ties == "soft" else None
        if self.reads == "winner":
            images = images[:1]
        elif self.reads == "either":
            first = self._coin("side", record.id)
            images, read = (images[:1], liked) if first else (images[1:], 1 - liked)
        image_KCHW = torch.stack([decode(image, self.resolution, f"pair {record.id}") for image in images])
        return Example(image_KCHW, record.prompt, record.id, visit, record.user, read)

    def _coin(self, purpose: str, record: int) -> bool:
        key = Key(self.seed, torch.tensor([record]), torch.tensor([0]))
        return bool(bernoulli(key, purpose, 0.5))


def decode(data: bytes, resolution: int, owner: str) -> Tensor:
    """Decodes an image into a square of RGB in [-1, 1], CHW: shorter side resized, centre cropped.

    Raises:
        ValueError: the bytes are no picture; names the owner.
    """
    try:
        image = Image.open(io.BytesIO(data)).convert("RGB")
    except OSError as error:
        raise ValueError(f"{owner}: its picture cannot be read ({len(data)} bytes): {error}") from error
    if image.size != (resolution, resolution):
        scale = resolution / min(image.size)
        width, height = (max(resolution, round(side * scale)) for side in image.size)
        left, top = (width - resolution) // 2, (height - resolution) // 2
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        image = image.crop((left, top, left + resolution, top + resolution))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1


def collate(examples: list[Example]) -> Batch:
    """Stacks examples, candidates first."""
    return Batch(
        image_KBCHW=torch.stack([example.image_KCHW for example in examples], dim=1),
        prompts=tuple(example.prompt for example in examples),
        id_B=torch.tensor([example.id for example in examples]),
        visit_B=torch.tensor([example.visit for example in examples]),
        users=tuple(example.user for example in examples),
        label_B=None if examples[0].label is None else torch.tensor([example.label for example in examples]),
    )
