"""The largest batch that there is memory for, at the same pairs per optimizer step."""

import copy
from bisect import bisect_right
from collections.abc import Callable
from typing import Any

from alignkit.mistakes import UsageError
from alignkit.planning.report import GIB

# of a device's memory: the rest is its context's, and what its allocator wastes
USABLE = 0.9


def divisors(number: int) -> list[int]:
    """Those of a positive number, in order.

    Example:
        >>> divisors(12)
        [1, 2, 3, 4, 6, 12]
    """
    return [part for part in range(1, number + 1) if number % part == 0]


def fitted(config: dict[str, Any], gib: float, peak: Callable[[dict[str, Any]], int]) -> dict[str, Any]:
    """A config with the largest batch that fits, and as many of them in a step as keep its pairs.

    The run is the same but for rounding: what is drawn for a pair does not depend on its batch.

    Args:
        config: as ``alignkit.training.read_config`` gives it.
        gib: memory of one device, GiB.
        peak: bytes that a step of a config takes; more for larger batches.

    Raises:
        UsageError: a single pair does not fit.
    """
    pairs = config["data"]["batch_size"] * config["trainer"]["accumulate_grad_batches"]
    sizes, room = divisors(pairs), USABLE * gib * GIB

    def of(size: int) -> dict[str, Any]:
        found = copy.deepcopy(config)
        found["data"]["batch_size"] = size
        found["trainer"]["accumulate_grad_batches"] = pairs // size
        return found

    fits = bisect_right(sizes, False, key=lambda size: peak(of(size)) > room)
    if not fits:
        raise UsageError(
            f"--fit-memory {gib:g}: a batch of one pair takes {peak(of(1)) / GIB:.3g} GiB, and {USABLE:.0%} "
            f"of {gib:g} GiB are there for it; train with lora, gradient_checkpointing or frozen_dtype (see "
            "alignkit fit --help), from a cache and a bank, or on pictures of a lower resolution"
        )
    return of(sizes[fits - 1])
