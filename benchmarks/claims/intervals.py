"""Intervals and verdicts over training seeds and prompts.

Shape suffixes: S training seeds; P prompts; R resamples; L quantities.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from alignkit.evaluation.statistics.bootstrap import Interval

HOLDS, FAILS, UNDECIDED = "holds", "does not hold", "cannot tell"


def interval(value_SP: NDArray[np.float64]) -> Interval:
    """Mean with its 95 % interval, where both the seeds and the prompts are a sample."""
    return of_resamples(float(value_SP.mean()), resampled_means(value_SP[None])[:, 0])


def resampled_means(
    value_LSP: NDArray[np.float64], *, num_resamples: int = 10_000, seed: int = 0
) -> NDArray[np.float64]:
    """Means of several quantities over the same resamples, (R, L).

    Seeds and prompts are drawn with replacement, independently: the pigeonhole bootstrap, which errs on the
    wide side (Owen, "The pigeonhole bootstrap", 2007, https://arxiv.org/abs/0712.1111).
    """
    generator = np.random.default_rng(seed)
    num_seeds, num_prompts = value_LSP.shape[1:]
    count_RS = generator.multinomial(num_seeds, [1 / num_seeds] * num_seeds, size=num_resamples)
    count_RP = generator.multinomial(num_prompts, [1 / num_prompts] * num_prompts, size=num_resamples)
    sum_RL: NDArray[np.float64] = np.einsum("rs,lsp,rp->rl", count_RS, value_LSP, count_RP, optimize=True)
    return sum_RL / (num_seeds * num_prompts)


def of_resamples(found: float, value_R: NDArray[np.float64]) -> Interval:
    """What was found, with the middle 95 % of its resamples."""
    low, high = np.percentile(value_R, [2.5, 97.5])
    return Interval(found, float(low), float(high))


class Condition(NamedTuple):
    """A part of a claim: that a quantity is larger than zero.

    Args:
        text: what is said, as a clause.
        found: the quantity, with its interval.
        smallest: the smallest value that would matter. If even that is outside the interval, the condition
            does not hold.
        unit: of the quantity.
    """

    text: str
    found: Interval
    smallest: float
    unit: str = ""

    @property
    def verdict(self) -> str:
        """Holds where the whole interval is above 0; does not where all of it is below what would matter."""
        if self.found.low > 0:
            return HOLDS
        return FAILS if self.found.high < self.smallest else UNDECIDED

    def __str__(self) -> str:
        low, high = self.found.low, self.found.high
        return f"{self.text}: {self.found.mean:+.3f} [{low:+.3f}, {high:+.3f}]{self.unit}: {self.verdict}"


def together(conditions: list[Condition]) -> str:
    """The verdict on a claim that needs all its conditions."""
    verdicts = {condition.verdict for condition in conditions}
    if FAILS in verdicts:
        return FAILS
    return UNDECIDED if UNDECIDED in verdicts else HOLDS
