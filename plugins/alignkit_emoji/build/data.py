"""Batches of pictures with captions, for the three trainings that made the shipped weights."""

from collections.abc import Iterator
from typing import NamedTuple

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from alignkit_emoji.pictures import load_pictures

CAPTIONS = ("{}", "a {}", "an {}", "a picture of {}", "an emoji of {}")


class PictureBatch(NamedTuple):
    """Pictures in [-1, 1], with the number of each picture's concept and its own row number."""

    image_NCHW: Tensor
    concept_N: Tensor
    row_N: Tensor


class _Shuffled(IterableDataset[PictureBatch]):
    """Endless batches, drawn with replacement from a seeded generator."""

    def __init__(self, image_NCHW: Tensor, concept_N: Tensor, batch_size: int, seed: int) -> None:
        self.image_NCHW, self.concept_N = image_NCHW, concept_N
        self.batch_size, self.seed = batch_size, seed

    def __iter__(self) -> Iterator[PictureBatch]:
        generator = torch.Generator().manual_seed(self.seed)
        while True:
            row_N = torch.randint(len(self.image_NCHW), (self.batch_size,), generator=generator)
            yield PictureBatch(self.image_NCHW[row_N], self.concept_N[row_N], row_N)


class PictureData(pl.LightningDataModule):
    """The shipped pictures as training and validation batches.

    Args:
        groups: Unicode groups to use, such as "Food & Drink"; all six when empty.
        batch_size: pictures per step.
        seed: seed of the order.
    """

    def __init__(self, groups: list[str], batch_size: int = 64, seed: int = 0) -> None:
        super().__init__()
        pictures = load_pictures(groups)
        self.concepts = list(dict.fromkeys(pictures.concepts))
        self.image_NCHW = pictures.image_NCHW.float() / 127.5 - 1
        row = {concept: i for i, concept in enumerate(self.concepts)}
        self.concept_N = torch.tensor([row[concept] for concept in pictures.concepts])
        self.batch_size, self.seed = batch_size, seed

    def train_dataloader(self) -> DataLoader[PictureBatch]:
        return DataLoader(
            _Shuffled(self.image_NCHW, self.concept_N, self.batch_size, self.seed), batch_size=None
        )

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        rows = torch.arange(len(self.image_NCHW))
        return DataLoader(TensorDataset(self.image_NCHW, self.concept_N, rows), batch_size=256)
