"""The one LightningDataModule. Shape suffixes: K candidates of a prompt, best first; B prompts; C H W."""

import io
from typing import Any, NamedTuple

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from alignkit.components import PairSource
from alignkit.data.loader import ResumableLoader
from alignkit.types import Batch

TIE = 0.5


class AlignData(pl.LightningDataModule):
    """Batches of preference pairs, winner first. Ties are dropped, and counted.

    Args:
        train: pairs to train on.
        validation: held-out pairs, by prompt; without them nothing is validated or evaluated.
        batch_size: pairs per device and step.
        resolution: side of the square that pictures are resized (shorter side) and centre-cropped to.
        num_workers: processes that read and decode; 0 does it in the training process.
        seed: seed of the order.
    """

    def __init__(
        self,
        train: PairSource,
        validation: PairSource | None = None,
        batch_size: int = 8,
        resolution: int = 512,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"AlignData: batch_size must be at least 1, got {batch_size}")
        if resolution < 8:
            raise ValueError(f"AlignData: resolution must be at least 8 pixels, got {resolution}")
        self.train, self.validation = train, validation
        self.batch_size, self.resolution, self.num_workers, self.seed = (
            batch_size,
            resolution,
            num_workers,
            seed,
        )

    def setup(self, stage: str) -> None:
        """Drops ties of the training pairs.

        Raises:
            ValueError: too few pairs are left for one batch on every device.
        """
        if stage != "fit":
            return
        self._train = DecidedPairs(self.train, self.resolution)
        rank_zero_info(f"{len(self._train)} training pairs, {self._train.num_ties} ties dropped")
        needed = self.batch_size * (self.trainer.world_size if self.trainer else 1)
        if len(self._train) < needed:
            raise ValueError(
                f"AlignData: {len(self._train)} decided training pairs are fewer than the {needed} of one "
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
        pairs = DecidedPairs(self.validation, self.resolution)
        rank = self.trainer.global_rank if self.trainer else 0
        world_size = self.trainer.world_size if self.trainer else 1
        order = [(index, 0) for index in range(rank, len(pairs), world_size)]
        return DataLoader(
            pairs, self.batch_size, sampler=order, num_workers=self.num_workers, collate_fn=collate
        )

    def held_out_prompts(self) -> list[str]:
        """The distinct prompts of the validation pairs, in their order."""
        return [] if self.validation is None else list(dict.fromkeys(self.validation.prompts()))


class Example(NamedTuple):
    """One decided pair, decoded."""

    image_KCHW: Tensor
    prompt: str
    id: int
    visit: int
    user: str


class DecidedPairs(Dataset[Any]):
    """The pairs of a source with a winner, decoded and ordered; asked for ``(index, visit)``."""

    def __init__(self, source: PairSource, resolution: int) -> None:
        self.source, self.resolution = source, resolution
        self.rows = [row for row, label_0 in enumerate(source.labels()) if label_0 != TIE]
        self.num_ties = len(source) - len(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: tuple[int, int]) -> Example:
        index, visit = place
        record = self.source[self.rows[index]]
        images = [record.image_0, record.image_1]
        if record.label_0 < TIE:
            images.reverse()
        image_KCHW = torch.stack([decode(image, self.resolution, f"pair {record.id}") for image in images])
        return Example(image_KCHW, record.prompt, record.id, visit, record.user)


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
    )
