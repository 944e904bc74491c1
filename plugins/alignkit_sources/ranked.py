"""From lists of ranked images to pairs."""

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import Any


class RankedLists:
    """Every two images of a list are a pair, in the order of the list.

    The image of the lower rank, 1 being the best one, is preferred; of two of the same rank neither is.

    Args:
        lists: the ranks of each list's images, as the list has them.
    """

    def __init__(self, lists: Iterable[Sequence[float]]) -> None:
        self.labels, self._starts = array("d"), array("q")
        for ranks in lists:
            self._starts.append(len(self.labels))
            self.labels.extend(
                0.5 if first == second else float(first < second) for first, second in combinations(ranks, 2)
            )
        self._starts.append(len(self.labels))

    def __len__(self) -> int:
        return len(self.labels)

    def place(self, index: int) -> tuple[int, int, int]:
        """Number of a pair's list, and places of its images there.

        Raises:
            IndexError: there is no such pair.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"no pair {index}, there are {len(self)}")
        number = bisect_right(self._starts, index) - 1
        within, count = index - self._starts[number], self.size(number)
        images = next(n for n in range(2, 2 + count) if n * (n - 1) // 2 == count)
        return number, *list(combinations(range(images), 2))[within]

    def size(self, number: int) -> int:
        """How many pairs a list gives."""
        return self._starts[number + 1] - self._starts[number]

    def of_pairs(self, values: Iterable[str]) -> list[str]:
        """What lists say, for each of their pairs."""
        return [value for number, value in enumerate(values) for _ in range(self.size(number))]

    def num_bytes(self) -> int:
        """What is held in memory."""
        return 8 * (len(self.labels) + len(self._starts))


def rank_of(value: Any, name: str) -> float:
    """A rank, or how much an image is preferred.

    Raises:
        ValueError: it is no number.
    """
    try:
        if type(value) in (int, float) and value == value:
            return float(value)
    except OverflowError:  # such as 1 with 400 zeros
        pass
    raise ValueError(f"{name}: rank and human_preference must be numbers, got {value!r:.80}")
