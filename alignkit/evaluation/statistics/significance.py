"""A test of one comparison, and its correction for many."""

from collections.abc import Sequence


def sign_test(wins: int, losses: int) -> float:
    """P-value of the exact two-sided sign test: that many wins or losses, or more, of as many fair coins.

    Ties are dropped before: they say nothing of which is better (Dixon and Mood, "The statistical sign
    test", 1946).
    """
    count = wins + losses
    ways = total = 1
    for drawn in range(min(wins, losses)):
        ways = ways * (count - drawn) // (drawn + 1)
        total += ways
    return min(1.0, 2 * total / (1 << count))


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """P-values corrected for their number: the chance of any false finding among them stays below the level.

    Holm, "A simple sequentially rejective multiple test procedure", 1979. They may depend on each other.
    """
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return tuple(adjusted)
