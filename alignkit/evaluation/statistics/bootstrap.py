"""Intervals by resampling prompts. Suffixes: P prompts; K figures of the same prompts; R resamples."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# what is held at once: drawn prompts, and figures of which every resample is kept
CELLS, FIGURES = 2_000_000, 256


class Interval(NamedTuple):
    """A mean with its 95 % interval."""

    mean: float
    low: float
    high: float


def intervals(
    value_PK: NDArray[np.float64], *, num_resamples: int = 10_000, seed: int = 0
) -> tuple[Interval, ...]:
    """Symmetric 95 % bootstrap-t intervals of the means of several figures over the same prompts.

    The mean, plus and minus as many standard errors as hold 95 % of resampled means, each counted in its own
    standard error: Hall, "On symmetric bootstrap confidence intervals", 1988. A resample's variance has
    1/P of the prompts' own added, as a kernel would that smooths them: where few prompts differ at all, many
    resamples are constant. Never fewer errors than Student's law asks for, which is exact for normal values
    however few.

    Chosen by simulated coverage at 20 and 57 prompts: exponential 94 and 95 % (percentiles 91 and 94),
    Student's t of 3 degrees 96 and 96 (BCa 89 and 91), lognormal 90 and 92 (percentiles 86 and 90), values of
    which nine in ten are 0 81 and 95 (percentiles 73 and 88). No interval knows of a tail that none of its
    prompts shows.

    Args:
        value_PK: one value per prompt and figure: prompts, not images, are what is drawn from a population.
            Their order does not matter.
        num_resamples: how many data sets are drawn; the same ones for all figures.
        seed: seed of the draws.

    Returns:
        Of every figure; a point where all prompts have one value, or there is one prompt.

    Raises:
        ValueError: there is no prompt.
    """
    count = len(value_PK)
    if not count:
        raise ValueError("intervals: needs at least one prompt, got none")
    sorted_PK = np.sort(value_PK, axis=0)
    flat_K = sorted_PK[0] == sorted_PK[-1]
    mean_K = np.where(flat_K, sorted_PK[0], sorted_PK.mean(0))
    half_K = np.zeros_like(mean_K)
    if count > 1:
        deviation_K = np.where(flat_K, 0, sorted_PK.std(0, ddof=1))
        # 0, too, where the square of a tiny spread is
        standard_PK = (sorted_PK - mean_K) / np.where(deviation_K > 0, deviation_K, 1)
        for start in range(0, len(mean_K), FIGURES):
            part = slice(start, start + FIGURES)
            errors_K = _errors(standard_PK[:, part], num_resamples, seed)
            half_K[part] = errors_K * deviation_K[part] / math.sqrt(count)
    figures = zip(mean_K.tolist(), (mean_K - half_K).tolist(), (mean_K + half_K).tolist(), strict=True)
    return tuple(Interval(*figure) for figure in figures)


def student_quantile(freedom: int) -> float:
    """The 97.5 % point of Student's t.

    By an expansion in its degrees of freedom, within 0.5 % from 3 on: Abramowitz and Stegun, "Handbook of
    Mathematical Functions", 1964, 26.7.5. Exact for 1 and 2.
    """
    if freedom <= 2:
        return (math.tan(0.475 * math.pi), 0.95 * math.sqrt(2 / (1 - 0.95**2)))[freedom - 1]
    z = 1.959963984540054
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return math.fsum(term / float(freedom) ** power for power, term in enumerate(terms))


def _errors(standard_PK: NDArray[np.float64], num_resamples: int, seed: int) -> NDArray[np.float64]:
    """How many standard errors the interval reaches, of values with mean 0 and variance 1."""
    count = len(standard_PK)
    square_PK = np.square(standard_PK)
    parts = []
    for times_RP in _resamples(count, num_resamples, seed):
        mean_RK = times_RP @ standard_PK / count
        variance_RK = (times_RP @ square_PK - count * np.square(mean_RK)) / (count - 1)
        parts.append(np.abs(mean_RK) / np.sqrt((np.maximum(variance_RK, 0) + 1 / count) / count))
    reached_K = np.percentile(np.concatenate(parts), 95, axis=0) * math.sqrt(1 + 1 / count)
    errors_K: NDArray[np.float64] = np.maximum(reached_K, student_quantile(count - 1))
    return errors_K


def _resamples(count: int, num_resamples: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """How many times each prompt is drawn, (R, P), in parts."""
    generator = np.random.default_rng(seed)
    step = max(1, CELLS // count)
    for start in range(0, num_resamples, step):
        rows = min(step, num_resamples - start)
        cell_RP = generator.integers(count, size=(rows, count)) + count * np.arange(rows)[:, None]
        yield np.bincount(cell_RP.ravel(), minlength=rows * count).reshape(rows, count).astype(np.float64)
