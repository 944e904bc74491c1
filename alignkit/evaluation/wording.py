"""Figures as short text. The whole figure stands in the JSON, and beside its short form in the page."""

from collections.abc import Sequence

from alignkit.evaluation.statistics.bootstrap import Interval

MINUS = "\u2212"
NONE = "\u2013"


def number(value: float | None) -> str:
    """Three decimals; powers of ten for what is very large or very small."""
    if value is None:
        return NONE
    text = f"{value:.3f}" if value == 0 or 0.001 <= abs(value) < 10_000 else f"{value:.2e}"
    return text.replace("-", MINUS)


def signed(value: float | None) -> str:
    """A number that says its sign."""
    return f"+{number(value)}" if value is not None and value > 0 else number(value)


def percent(value: float) -> str:
    """A share in percent."""
    return f"{100 * value:.1f} %"


def probability(value: float | None) -> str:
    """A p value, of which very small ones are only said to be that."""
    if value is None:
        return NONE
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def count(value: int | None) -> str:
    """A number of things."""
    return NONE if value is None else str(value)


def bounds(interval: Interval) -> str:
    """The ends of an interval."""
    return f"[{number(interval.low)}, {number(interval.high)}]"


def percent_bounds(interval: Interval) -> str:
    """The ends of an interval of a share, in percent."""
    return f"[{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def lined_up(rows: Sequence[Sequence[str]], names: int) -> str:
    """Rows of cells as lines: the first columns, of names, to the left, the others to the right.

    Example:
        >>> print(lined_up([["", "mean"], ["Redness", "0.1"]], 1))
                 mean
        Redness   0.1
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    sides = [str.ljust] * names + [str.rjust] * (len(widths) - names)
    lines = [
        "  ".join(side(cell, width) for side, cell, width in zip(sides, row, widths, strict=True))
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)
