"""What a sweep varies: keys of a config, and the values that they take. Imports neither torch nor optuna."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

from alignkit.mistakes import UsageError, shown

# values of a trial by key, as they are written on a command line
Values = Mapping[str, str]
_KEY = re.compile(r"[A-Za-z_][\w.-]*")
_OPEN, _CLOSE = "[{(", "]})"


class Choices(NamedTuple):
    """A key that takes one of some values.

    Args:
        key: of a config, with dots.
        values: as they are written.
    """

    key: str
    values: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.key}={','.join(self.values)}"


class Range(NamedTuple):
    """A key that takes any number between two.

    Args:
        key: of a config, with dots.
        low: least number.
        high: greatest.
        log: whether small and large numbers are as likely by their order of magnitude.
        whole: whether only whole numbers are taken.
    """

    key: str
    low: float
    high: float
    log: bool
    whole: bool

    def __str__(self) -> str:
        return f"{self.key}={self.written(self.low)}..{self.written(self.high)}{':log' * self.log}"

    def written(self, value: float) -> str:
        """A number of it as a command line has it."""
        return str(round(value)) if self.whole else f"{value:.6g}"


Axis = Choices | Range


def choices(text: str) -> Choices:
    """Reads what ``--grid`` is given.

    Raises:
        UsageError: it is no ``KEY=V1,V2``.

    Example:
        >>> choices("objective.beta=500,2000").values
        ('500', '2000')
        >>> choices("objective={name: Mine, scale: 2},Other").values
        ('{name: Mine, scale: 2}', 'Other')
    """
    key, said = _split(text, "--grid", "objective.beta=500,2000,5000")
    values = [value.strip() for value in _parts(said)]
    if not all(values):
        raise UsageError(f"--grid {text}: a value of {key} is empty; write them as {key}=V1,V2")
    if twice := next((value for value in values if values.count(value) > 1), None):
        raise UsageError(f"--grid {text}: {twice} is given twice")
    return Choices(key, tuple(values))


def interval(text: str) -> Range:
    """Reads what ``--range`` is given.

    Raises:
        UsageError: it is no ``KEY=LOW..HIGH`` or ``KEY=LOW..HIGH:log``.

    Example:
        >>> interval("optimizer.lr=1e-5..1e-3:log")
        Range(key='optimizer.lr', low=1e-05, high=0.001, log=True, whole=False)
    """
    example = "optimizer.lr=1e-5..1e-3:log"
    key, said = _split(text, "--range", example)
    span, colon, scale = said.partition(":")
    low, _, high = span.partition("..")
    try:
        numbers = float(low), float(high)
    except ValueError:
        raise UsageError(f"--range {text}: must be KEY=LOW..HIGH, such as {example}") from None
    if colon and scale != "log":
        raise UsageError(f"--range {text}: after the colon only log may stand, got {shown(scale)}")
    if not numbers[0] < numbers[1] or numbers[1] == float("inf"):
        raise UsageError(f"--range {text}: LOW must be below HIGH, got {low} and {high}")
    if colon and numbers[0] <= 0:
        raise UsageError(f"--range {text}: with :log LOW must be positive, got {low}")
    return Range(
        key, *numbers, log=bool(colon), whole=all(re.fullmatch(r"-?\d+", end) for end in (low, high))
    )


def settled(axes: Sequence[Axis], config: Mapping[str, Any]) -> tuple[Axis, ...]:
    """The axes, each once, components before their arguments, numbers as whole as the config's own.

    Args:
        axes: as the command line has them.
        config: whole, and flat, as ``alignkit.sweep.sharing.flat`` makes it.

    Raises:
        UsageError: a key is given twice.
    """
    keys = [axis.key for axis in axes]
    if twice := next((key for key in keys if keys.count(key) > 1), None):
        raise UsageError(f"{twice} is varied twice; give all of its values at once")
    known = {axis.key: config.get(axis.key) for axis in axes}
    typed = [
        axis._replace(whole=False) if isinstance(axis, Range) and isinstance(known[axis.key], float) else axis
        for axis in axes
    ]
    return tuple(sorted(typed, key=lambda axis: axis.key.count(".")))


def crossed(axes: Iterable[Choices]) -> Iterator[dict[str, str]]:
    """Every combination of the choices' values; the last key's changes fastest."""
    known = tuple(axes)
    for values in product(*(axis.values for axis in known)):
        yield dict(zip((axis.key for axis in known), values, strict=True))


def ends(axes: Iterable[Axis]) -> Iterator[dict[str, str]]:
    """The least of all that is varied, and the greatest."""
    for place in (0, -1):
        yield {
            axis.key: axis.values[place]
            if isinstance(axis, Choices)
            else axis.written((axis.low, axis.high)[place])
            for axis in axes
        }


def overrides(values: Values) -> list[str]:
    """Values as options of ``alignkit fit``."""
    return [f"--{key}={value}" for key, value in values.items()]


def told(values: Values) -> str:
    """Values in a line of text."""
    return ", ".join(f"{key}={value}" for key, value in values.items())


def _split(text: str, option: str, example: str) -> tuple[str, str]:
    key, equals, said = text.partition("=")
    if not equals or not _KEY.fullmatch(key):
        raise UsageError(f"{option} {text}: must name a key and its values, such as {option} {example}")
    if not said:
        raise UsageError(f"{option} {text}: gives {key} no value, write it as in {option} {example}")
    return key, said


def _parts(text: str) -> Iterator[str]:
    """What stands between commas that are in no brackets and no quotes."""
    depth, quote, start = 0, "", 0
    for place, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter == "," and not depth:
            yield text[start:place]
            start = place + 1
        else:
            depth += (letter in _OPEN) - (letter in _CLOSE)
    yield text[start:]
