"""Elements of SVG, with everything in them escaped."""

from markupsafe import Markup


def element(name: str, *inside: str, **attributes: str | float) -> Markup:
    """One element. Coordinates have one decimal; underscores of names stand for hyphens.

    Example:
        >>> element("text", "a < b", class_="tick", x=1 / 3)
        Markup('<text class="tick" x="0.3">a &lt; b</text>')
    """
    written = [
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), _written(value))
        for key, value in attributes.items()
    ]
    return Markup("<{0}{1}>{2}</{0}>").format(name, Markup("").join(written), Markup("").join(inside))


def path(kind: str, *moves: str | float, inside: str = "", **attributes: str | float) -> Markup:
    """A path of a kind that the style sheet knows, by its moves.

    Example:
        >>> path("rule", "M", 1, 2, "H", 3.25)
        Markup('<path class="rule" d="M 1 2 H 3.2"></path>')
    """
    return element("path", inside, class_=kind, d=" ".join(map(_written, moves)), **attributes)


def text(kind: str, x: float, y: float, words: str, anchor: str = "start", inside: str = "") -> Markup:
    """Words at a place."""
    return element("text", words, inside, class_=kind, x=x, y=y, text_anchor=anchor)


def _written(value: str | float) -> str:
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, int | float) else value
