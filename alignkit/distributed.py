"""What all processes know together. Suffix: B prompts of this process."""

from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor, distributed

Value = TypeVar("Value")


def gathered(value_B: Tensor, *, equal: bool = True) -> Tensor:
    """Values of the prompts of all processes, in the order of their ranks, without gradient.

    In a single process it is the tensor itself, detached.

    Args:
        value_B: values of this process's prompts; further dimensions are the same everywhere.
        equal: every process holds as many prompts, as in training. In validation the last batches may differ:
            then their sizes are asked for first, for which a GPU must be waited for.
    """
    value_B = value_B.detach()
    if not is_joined():
        return value_B
    if equal:
        return torch.cat(_all(value_B))
    counts = [int(count) for count in _all(torch.tensor([len(value_B)], device=value_B.device))]
    padded_B = value_B.new_zeros(max(counts), *value_B.shape[1:])
    padded_B[: len(value_B)] = value_B
    return torch.cat([part[:count] for part, count in zip(_all(padded_B), counts, strict=True)])


def averaged(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Means over all processes of scalars that every process has, by name."""
    if not is_joined() or not values:
        return dict(values)
    mean_V = torch.stack(list(values.values()))
    distributed.all_reduce(mean_V)
    return dict(zip(values, (mean_V / distributed.get_world_size()).unbind(), strict=True))


def gathered_objects(value: Value) -> list[Value]:
    """A value of every process, in the order of their ranks; in a single one its own alone."""
    if not is_joined():
        return [value]
    values: list[Value] = [value] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values


def is_joined() -> bool:
    """Whether this process is one of several."""
    return distributed.is_available() and distributed.is_initialized()


def _all(value: Tensor) -> list[Tensor]:
    parts = [torch.empty_like(value) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, value.contiguous())
    return parts
