"""A loader whose order is a function of the seed and the epoch, and which resumes inside an epoch."""

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler


class ResumableLoader(DataLoader[Any]):
    """Shuffled batches, split over ranks; its place in the epoch travels in Lightning's checkpoint.

    Step s of an epoch covers the same records whatever the number of ranks and accumulation steps, as long as
    their product with the batch size is the same. The dataset is asked for ``(index, visit)``.

    Args:
        dataset: what is loaded.
        batch_size: records per rank and step.
        seed: seed of the order.
        rank: number of this process.
        world_size: number of processes.
        **options: further arguments of ``DataLoader``.
    """

    def __init__(
        self, dataset: Dataset[Any], batch_size: int, *, seed: int, rank: int, world_size: int, **options: Any
    ) -> None:
        self._place = (-1, 0)
        self._resumed: tuple[int, int] | None = None
        self._seed, self._rank, self._world_size = seed, rank, world_size
        self._order: list[tuple[int, int]] = []
        super().__init__(
            dataset,
            batch_size=batch_size,
            sampler=_Order(self, len(dataset) // world_size),  # type: ignore[arg-type]
            drop_last=True,
            **options,
        )

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # The first call after load_state_dict gives what was left of that epoch, maybe nothing, and any later
        # call a new epoch: this is what Lightning's two ways to restart need, and why nothing here may be
        # lazy.
        epoch, consumed = (self._place[0] + 1, 0) if self._resumed is None else self._resumed
        self._resumed, self._place = None, (epoch, consumed)
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch)
        shuffled = torch.randperm(len(self.dataset), generator=generator).tolist()  # type: ignore[arg-type]
        mine = shuffled[self._rank :: self._world_size][: len(self.dataset) // self._world_size]  # type: ignore[arg-type]
        self._order = [(index, epoch) for index in mine[consumed * (self.batch_size or 1) :]]
        return self._counted(super().__iter__(), epoch, consumed)

    def _counted(self, batches: Iterator[Any], epoch: int, consumed: int) -> Iterator[Any]:
        for batch in batches:
            consumed += 1
            self._place = (epoch, consumed)
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Where it is: the epoch, and the batches taken from it."""
        return {"epoch": self._place[0], "consumed": self._place[1]}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Goes to a place that ``state_dict`` gave."""
        self._resumed = self._place = (state["epoch"], state["consumed"])


class _Order(Sampler[tuple[int, int]]):
    """What the loader has decided to read next."""

    def __init__(self, loader: ResumableLoader, length: int) -> None:
        self._loader, self._length = loader, length

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(self._loader._order)
