"""Intervals by resampling prompts. Suffix: P prompts."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Interval(NamedTuple):
    """A mean with its 95 % interval."""

    mean: float
    low: float
    high: float


def bootstrap(value_P: NDArray[np.float64], *, num_resamples: int = 10_000, seed: int = 0) -> Interval:
    """Percentile bootstrap of a mean over prompts.

    Efron and Tibshirani, "An Introduction to the Bootstrap", 1993.

    Args:
        value_P: one figure per prompt: prompts, not images, are what is drawn from a population.
        num_resamples: how many data sets are drawn.
        seed: seed of the draws.

    Raises:
        ValueError: there is no prompt.
    """
    if not len(value_P):
        raise ValueError("bootstrap: needs at least one prompt, got none")
    generator = np.random.default_rng(seed)
    row_RP = generator.integers(len(value_P), size=(num_resamples, len(value_P)))
    low, high = np.percentile(value_P[row_RP].mean(1), [2.5, 97.5])
    return Interval(float(value_P.mean()), float(low), float(high))
