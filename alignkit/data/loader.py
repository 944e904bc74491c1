"""A loader whose order is a function of the seed and the epoch, and which resumes inside an epoch."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from alignkit.data.workers import NamingLoader


class ResumableLoader(NamingLoader):
    """Shuffled batches, split over ranks; its place in the epoch travels in Lightning's checkpoint.

    Step s of an epoch covers the same records whatever the number of ranks and accumulated batches, as long
    as their product with the batch size is the same: the last few, too few for a step, are left out for the
    epoch, unless there is no full step at all. The dataset is asked for ``(index, visit)``.

    Records of several groups never meet: those that all ranks load at a time are of one group. A group's last
    few, too few for that, are left out for the epoch, and then the product above must not be made of other
    numbers of accumulated batches.

    Args:
        dataset: what is loaded.
        batch_size: records per rank and step.
        seed: seed of the order.
        rank: number of this process.
        world_size: number of processes.
        groups: the group of each record, from 0; records below 0 are never loaded. All are of one without it.
        accumulated: batches per optimizer step.
        visits: after how many epochs the visits of the first one come again; never without it.
        **options: further arguments of ``NamingLoader``.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        batch_size: int,
        *,
        seed: int,
        rank: int,
        world_size: int,
        groups: Tensor | None = None,
        accumulated: int = 1,
        visits: int | None = None,
        **options: Any,
    ) -> None:
        self._place = (-1, 0)
        self._resumed: tuple[int, int] | None = None
        self._seed, self._rank, self._world_size = seed, rank, world_size
        self._order, self._epoch = torch.empty(0, dtype=torch.int64), 0
        self._visits = visits
        self._groups, self._count = groups, len(dataset)  # type: ignore[arg-type]
        self._together = batch_size * world_size
        batches = self._count // self._together if groups is None else num_batches(groups, self._together)
        self._batches = batches // accumulated * accumulated or batches
        super().__init__(
            dataset,
            batch_size=batch_size,
            sampler=_Order(self, self._batches * batch_size),
            drop_last=True,
            **options,
        )

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # The first call after load_state_dict gives what was left of that epoch, maybe nothing, and any later
        # call a new epoch: this is what Lightning's two ways to restart need, and why nothing here may be
        # lazy.
        epoch, taken = (self._place[0] + 1, 0) if self._resumed is None else self._resumed
        self._resumed, self._place = None, (epoch, taken)
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch)
        shuffled = torch.randperm(self._count, generator=generator)
        groups, together = self._groups, self._together
        batches = in_rows(shuffled, together) if groups is None else batched(shuffled, groups, together)
        left = batches[taken // together : self._batches, self._rank :: self._world_size]
        self._order, self._epoch = left.flatten(), epoch
        return self._counted(super().__iter__(), epoch, taken)

    def _counted(self, batches: Iterator[Any], epoch: int, taken: int) -> Iterator[Any]:
        for batch in batches:
            taken += self._together
            self._place = (epoch, taken)
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Where it is: the epoch, the records that all ranks took of it, and how many they take at a time."""
        return {"epoch": self._place[0], "records": self._place[1], "together": self._together}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Goes to a place that ``state_dict`` gave, of any number of ranks and any batch size that reach it.

        Raises:
            ValueError: these do not, or records of several groups would come in another order.
        """
        taken, together = state["records"], self._together
        if taken % together:
            raise ValueError(
                f"data.batch_size: the checkpoint is {taken} pairs into an epoch, no multiple of the "
                f"{together} that all devices read at a time; choose batch_size and devices so that it is"
            )
        if taken and self._groups is not None and state["together"] != together:
            raise ValueError(
                "data.batch_size: with bucket_step, pairs come in another order where all devices read "
                f"{together} at a time, and not {state['together']} as before the checkpoint; keep "
                "batch_size x devices"
            )
        self._resumed = self._place = (state["epoch"], taken)


class _Order(Sampler[tuple[int, int]]):
    """What the loader has decided to read next."""

    def __init__(self, loader: ResumableLoader, length: int) -> None:
        self._loader, self._length = loader, length

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch, visits = self._loader._epoch, self._loader._visits
        visit = epoch if visits is None else epoch % visits
        # of an array, not of the tensor: that would make a tensor of each of them at once
        return ((int(index), visit) for index in self._loader._order.numpy())


def shared_out(count: int, batch_size: int, *, rank: int, world_size: int) -> list[range]:
    """The share of a process in so many records, in order, in batches; every process has as many of them.

    So none waits for another that has none left. Batches of one number are together what a single process
    with a larger batch has, up to the last, which may hold one record more than the others.

    Args:
        count: number of records, at least as many as processes.
        batch_size: records of a batch.
        rank: number of the process.
        world_size: number of processes.
    """
    mine, batches = range(rank, count, world_size), math.ceil(count // world_size / batch_size)
    starts = [number * batch_size for number in range(batches)]
    return [mine[start:end] for start, end in zip(starts, [*starts[1:], len(mine)], strict=True)]


def in_rows(values: Tensor, size: int) -> Tensor:
    """Values in rows of a size, without the last few that make no row."""
    return values[: len(values) // size * size].view(-1, size)


def num_batches(groups: Tensor, size: int) -> int:
    """How many full batches of one group each there are in an epoch."""
    return int((groups[groups >= 0].long().bincount() // size).sum())


def batched(shuffled: Tensor, groups: Tensor, size: int) -> Tensor:
    """Full batches of one group each, (batches, size), in the order in which they get full.

    Args:
        shuffled: records in order.
        groups: the group of each record; those below 0 are left out.
        size: records of a batch.
    """
    shuffled = shuffled[groups[shuffled] >= 0]
    group = groups[shuffled]
    rows, full = [], []
    for number in group.unique().tolist():
        places = in_rows((group == number).nonzero()[:, 0], size)
        rows.append(places)
        full.append(places[:, -1])
    if not rows:
        return shuffled.new_empty(0, size)
    return shuffled[torch.cat(rows)[torch.cat(full).argsort()]]
