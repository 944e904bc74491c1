"""Charts as SVG: curves over steps, points in a plane, and intervals in rows."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from markupsafe import Markup

from alignkit.evaluation.report.axes import LEFT, RIGHT, WIDTH, Axis, axis, frame, picture, share
from alignkit.evaluation.report.svg import element, path, text
from alignkit.evaluation.statistics.bootstrap import Interval
from alignkit.evaluation.wording import bounds, number, percent, percent_bounds

# colours are those of the style sheet; shapes beside them are for who sees no colours
NUM_COLOURS = 8
SHAPES = (
    "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z",
    "M-3.6-3.6h7.2v7.2h-7.2z",
    "M0-4.8L4.6 3.4H-4.6z",
    "M0-5L5 0L0 5L-5 0z",
)
ROW, NAME_WIDTH, NAME_LENGTH = 22, 126, 20


class Point(NamedTuple):
    """A model's figures.

    Args:
        name: what it is called.
        x: where it stands: a step, or a mean with its interval.
        y: a mean with its interval.
    """

    name: str
    x: Interval
    y: Interval


class Line(NamedTuple):
    """Points that belong together, in order.

    Args:
        name: what they are called.
        number: decides on colour and shape.
        points: at least one.
        hollow: whether line and marks are of the lighter kind.
    """

    name: str
    number: int
    points: tuple[Point, ...]
    hollow: bool = False

    def kind(self, part: str) -> str:
        """Names of what the style sheet says of a part."""
        return f"{part} c{self.number % NUM_COLOURS}{' hollow' if self.hollow else ''}"

    def shape(self) -> str:
        """What a point looks like, around the origin."""
        return SHAPES[self.number % len(SHAPES)]


def curves(
    title: str, lines: Sequence[Line], level: Point | None, words: Callable[[float], str] | None = None
) -> Markup:
    """Means against steps, with their intervals as bands.

    Args:
        title: what is measured.
        lines: points by step.
        level: a model without a step: its mean is a dashed rule.
        words: how values are written at the axis.
    """
    points = [point for line in lines for point in line.points]
    x = axis("step", [point.x.mean for point in points], lambda value: f"{value:.0f}")
    y = axis(
        title, [value for point in points for value in point.y] + ([level.y.mean] if level else []), words
    )
    marks = []
    if level:
        told = element("title", f"{level.name}: {number(level.y.mean)} {bounds(level.y)}")
        marks.append(path("level", "M", LEFT, y.y(level.y.mean), "H", RIGHT, inside=told, **_data(level)))
    marks += [path(line.kind("band"), *_band(line, x, y)) for line in lines]
    for line in lines:
        marks.append(path(line.kind("line"), *_through(line, x, y)))
        marks += [
            _mark(
                line,
                point,
                x.x(point.x.mean),
                y.y(point.y.mean),
                f"step {point.x.mean:g}, {_figure(point.y)}",
            )
            for point in line.points
        ]
    return frame(x, y, f"{title} against step: {_names(lines)}", marks)


def plane(x_title: str, y_title: str, lines: Sequence[Line]) -> Markup:
    """Two means of every model against each other, with both intervals."""
    points = [point for line in lines for point in line.points]
    x = axis(x_title, [value for point in points for value in point.x])
    y = axis(y_title, [value for point in points for value in point.y])
    marks = [path(line.kind("line"), *_through(line, x, y)) for line in lines]
    for line in lines:
        for point in line.points:
            at, height = x.x(point.x.mean), y.y(point.y.mean)
            across = ("M", x.x(point.x.low), height, "H", x.x(point.x.high))
            marks.append(path(line.kind("bar"), *across, "M", at, y.y(point.y.low), "V", y.y(point.y.high)))
            words = f"{x_title} {_figure(point.x)}, {y_title} {_figure(point.y)}"
            marks.append(_mark(line, point, at, height, words))
    return frame(x, y, f"{y_title} against {x_title}: {_names(lines)}", marks)


def rows(title: str, lines: Sequence[Line], at: float) -> Markup:
    """Shares with their intervals, one row a line, beside a rule at one value."""
    x = axis(title, [at, *(value for line in lines for value in line.points[0].y)], share)
    top, left, right = 8, NAME_WIDTH, WIDTH - 16
    bottom = top + ROW * len(lines)
    parts = []
    for tick in {*x.ticks, at}:
        place = x.between(left, right, tick)
        parts.append(path("level" if tick == at else "rule", "M", place, top, "V", bottom))
    for tick in x.ticks:
        parts.append(text("tick", x.between(left, right, tick), bottom + 16, x.label(tick), "middle"))
    for index, line in enumerate(lines):
        point, middle = line.points[0], top + ROW * (index + 0.5)
        mean, low, high = (x.between(left, right, value) for value in point.y)
        name = line.name if len(line.name) <= NAME_LENGTH else line.name[: NAME_LENGTH - 1] + "\u2026"
        parts.append(text("tick", 4, middle + 4, name, inside=element("title", line.name)))
        parts.append(path(line.kind("bar"), "M", low, middle, "H", high))
        words = f"{line.name} {percent(point.y.mean)} {percent_bounds(point.y)}"
        parts.append(_mark(line, point, mean, middle, words))
    parts.append(text("title", (left + right) / 2, bottom + 34, title, "middle"))
    return picture(WIDTH, bottom + 42, f"{title}: {_names(lines)}", parts)


def key(line: Line) -> Markup:
    """What stands for a line in a legend."""
    inside = path(line.kind("line"), "M", -13, 0, "H", 13), path(line.kind("mark"), line.shape())
    return element("svg", *inside, class_="key", viewBox="-14 -7 28 14", aria_hidden="true")


def _mark(line: Line, point: Point, at: float, height: float, words: str) -> Markup:
    told = element("title", f"{point.name}: {words}")
    place = f"translate({at:.1f} {height:.1f})"
    return path(line.kind("mark"), line.shape(), inside=told, transform=place, **_data(point))


def _data(point: Point) -> dict[str, str | float]:
    """The figures themselves."""
    return {"data_model": point.name, "data_x": repr(point.x.mean), "data_y": repr(point.y.mean)}


def _band(line: Line, x: Axis, y: Axis) -> Iterator[str | float]:
    upper = [(x.x(point.x.mean), y.y(point.y.high)) for point in line.points]
    lower = [(x.x(point.x.mean), y.y(point.y.low)) for point in reversed(line.points)]
    yield from _joined(upper + lower)
    yield "z"


def _through(line: Line, x: Axis, y: Axis) -> Iterator[str | float]:
    return _joined([(x.x(point.x.mean), y.y(point.y.mean)) for point in line.points])


def _joined(places: Iterable[tuple[float, float]]) -> Iterator[str | float]:
    for index, place in enumerate(places):
        yield "L" if index else "M"
        yield from place


def _figure(interval: Interval) -> str:
    return f"{number(interval.mean)} {bounds(interval)}"


def _names(lines: Sequence[Line]) -> str:
    return ", ".join(line.name for line in lines)
