"""How one model stands to another by a measure, and how that is said."""

from collections.abc import Iterable, Sequence
from enum import Enum
from typing import NamedTuple

from alignkit.evaluation.contents import Comparison
from alignkit.evaluation.statistics.bootstrap import Interval
from alignkit.evaluation.statistics.comparisons import DISPLACEMENT, DIVERSITY, VENDI
from alignkit.evaluation.wording import bounds, percent, probability, signed

LEVEL = 0.05


class Standing(Enum):
    """What can be said of a difference."""

    HIGHER = "the interval is above 0, and the corrected test says so, too"
    LOWER = "the same below 0"
    DIVIDED = "a few large differences outweigh many of the other sign"
    UNSURE = "an interval without 0, and a test that is not significant once corrected"
    UNKNOWN = "the interval contains 0"


class Difference(NamedTuple):
    """One model minus another, by one measure over all prompts.

    Args:
        measure: class name of a reward, or what is known by embeddings.
        interval: of the mean difference.
        win_rate: of the first model.
        adjusted_p: of the sign test, corrected.
    """

    measure: str
    interval: Interval
    win_rate: Interval
    adjusted_p: float

    @property
    def standing(self) -> Standing:
        """What can be said of it."""
        if self.interval.low <= 0 <= self.interval.high:
            return Standing.UNKNOWN
        if self.adjusted_p >= LEVEL:
            return Standing.UNSURE
        rises = self.interval.low > 0
        if self.win_rate.mean != 0.5 and (self.win_rate.mean > 0.5) != rises:
            return Standing.DIVIDED
        return Standing.HIGHER if rises else Standing.LOWER

    def figures(self) -> str:
        """The difference with its interval, and p."""
        p = probability(self.adjusted_p)
        return f"{signed(self.interval.mean)} {bounds(self.interval)}, p {p if p[0] == '<' else f'= {p}'}"

    def __str__(self) -> str:
        return f"{self.measure} ({self.figures()}, wins {percent(self.win_rate.mean)})"


class Standings:
    """Looks up how models stand to each other over all prompts.

    Args:
        comparisons: those of a report.
    """

    def __init__(self, comparisons: Sequence[Comparison]) -> None:
        self._found = {
            (one.model, one.against, one.measure): one for one in comparisons if one.category is None
        }
        self._means = {
            (name, one.measure): mean.mean
            for one in self._found.values()
            for name, mean in ((one.model, one.mean), (one.against, one.against_mean))
            if mean is not None
        }
        spreads = (DIVERSITY, VENDI, DISPLACEMENT)
        self.rewards = tuple(dict.fromkeys(m for _, _, m in self._found if m not in spreads))
        self.num_tests = sum(one.adjusted_p is not None for one in self._found.values())
        self.num_prompts = next((one.num_prompts for one in self._found.values()), 0)

    def mean(self, model: str, measure: str) -> float:
        """A model's own mean."""
        return self._means[model, measure]

    def comparison(self, model: str, against: str, measure: str) -> Comparison | None:
        """What was found, if the two were compared in this order."""
        return self._found.get((model, against, measure))

    def difference(self, model: str, against: str, measure: str) -> Difference:
        """The first model minus the second, in whichever order they were compared."""
        one = self._found.get((model, against, measure))
        other = one or self._found[against, model, measure]
        assert other.difference is not None
        assert other.win_rate is not None
        assert other.adjusted_p is not None
        if one is not None:
            return Difference(measure, other.difference, other.win_rate, other.adjusted_p)
        mean, low, high = other.difference
        rate, least, most = other.win_rate
        turned = Interval(-mean, -high, -low), Interval(1 - rate, 1 - most, 1 - least)
        return Difference(measure, *turned, other.adjusted_p)

    def differences(self, model: str, against: str, measures: Iterable[str]) -> list[Difference]:
        """The first model minus the second, by several measures."""
        return [self.difference(model, against, measure) for measure in measures]


def listed(items: Sequence[object]) -> str:
    """Items with commas between them, and an "and".

    Example:
        >>> listed(["a"]), listed(["a", "b"]), listed(["a", "b", "c"])
        ('a', 'a and b', 'a, b and c')
    """
    *first, last = map(str, items)
    return f"{', '.join(first)} and {last}" if first else last
