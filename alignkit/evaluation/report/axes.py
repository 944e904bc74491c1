"""A frame with ticks to draw a chart into, as SVG. Coordinates are those of the view box, y downwards."""

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

from markupsafe import Markup

from alignkit.evaluation.report.svg import element, path, text
from alignkit.evaluation.wording import MINUS

WIDTH, HEIGHT = 300, 220
LEFT, RIGHT, TOP, BOTTOM = 50, 290, 26, 178


class Axis(NamedTuple):
    """A linear scale.

    Args:
        title: what is measured.
        low: value at the beginning.
        high: value at the end.
        ticks: values that are labelled.
        label: how they are written.
    """

    title: str
    low: float
    high: float
    ticks: tuple[float, ...]
    label: Callable[[float], str]

    def between(self, begin: float, end: float, value: float) -> float:
        """Where a value lies, from the coordinates of both ends."""
        return begin + (value - self.low) / (self.high - self.low) * (end - begin)

    def x(self, value: float) -> float:
        """Where a value lies on a horizontal axis of a frame."""
        return self.between(LEFT, RIGHT, value)

    def y(self, value: float) -> float:
        """Where a value lies on a vertical axis of a frame."""
        return self.between(BOTTOM, TOP, value)


def axis(title: str, values: Iterable[float], label: Callable[[float], str] | None = None) -> Axis:
    """An axis that has room for all values, and round ticks."""
    found = list(values)
    low, high = min(found), max(found)
    # a single value stands in the middle of an axis of its own size
    spare = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    low, high = low - spare, high + spare
    step = _round_step((high - low) / 6)
    ticks = tuple(index * step for index in range(math.ceil(low / step), math.floor(high / step) + 1))
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return Axis(title, low, high, ticks, label or (lambda value: _tick(value, decimals)))


def share(value: float) -> str:
    """A tick of an axis in percent."""
    return f"{100 * value:.0f} %"


def frame(x: Axis, y: Axis, description: str, marks: Iterable[Markup]) -> Markup:
    """A whole chart: ticks, titles, and what is drawn into them."""
    parts = [text("title", 6, 14, y.title)]
    for tick in y.ticks:
        parts.append(path("rule", "M", LEFT, y.y(tick), "H", RIGHT))
        parts.append(text("tick", LEFT - 6, y.y(tick) + 4, y.label(tick), "end"))
    for tick in x.ticks:
        parts.append(path("axis", "M", x.x(tick), BOTTOM, "v", 4))
        parts.append(text("tick", x.x(tick), BOTTOM + 17, x.label(tick), "middle"))
    parts.append(path("axis", "M", LEFT, TOP, "V", BOTTOM, "H", RIGHT))
    parts.append(text("title", (LEFT + RIGHT) / 2, HEIGHT - 7, x.title, "middle"))
    return picture(WIDTH, HEIGHT, description, [*parts, *marks])


def picture(width: float, height: float, description: str, parts: Iterable[Markup]) -> Markup:
    """A whole SVG, described to those who do not see it."""
    return element("svg", *parts, viewBox=f"0 0 {width} {height}", role="img", aria_label=description)


def _round_step(step: float) -> float:
    """The next 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next((factor * power for factor in (1, 2, 5) if factor * power >= step * (1 - 1e-9)), 10 * power)


def _tick(value: float, decimals: int) -> str:
    # a tick at zero may be -1e-17
    words = f"{value:.0e}" if decimals > 5 else f"{round(value, decimals) + 0.0:.{decimals}f}"
    return words.replace("-", MINUS)
