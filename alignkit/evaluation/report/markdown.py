"""A report as GitHub's Markdown."""

import re
from collections.abc import Iterable, Sequence

from alignkit.evaluation.contents import Comparison, Report
from alignkit.evaluation.report.manifest import flat
from alignkit.evaluation.report.selection import select
from alignkit.evaluation.statistics.bootstrap import Interval
from alignkit.evaluation.wording import (
    bounds,
    count,
    number,
    percent,
    percent_bounds,
    probability,
    signed,
)

COLUMNS = (
    "measure",
    "mean",
    "base",
    "difference",
    "median",
    "win rate",
    "wins / ties / losses",
    "adjusted p",
)
NO_CATEGORY = "(none)"


def to_markdown(report: Report) -> str:
    """Verdicts, a table of every model against the base, others, categories, and the manifest."""
    base, selection = report.models[0].name, select(report)
    results = report.results
    parts = [f"# {escaped(report.title)}", "\n".join(f"- {escaped(verdict)}" for verdict in report.verdicts)]
    parts.append(
        f"{len(results.prompts)} prompts, seeds {', '.join(map(str, results.seeds))} of each. "
        "Square brackets hold 95 % intervals over prompts."
    )
    for model, comparisons in selection.against_base.items():
        parts += [f"## {escaped(model)} against {escaped(base)}", _table(COLUMNS, map(_row, comparisons))]
        by_category = selection.by_category[model]
        if by_category:
            # p is corrected over all prompts only
            rows = [
                (
                    escaped(comparison.category or NO_CATEGORY),
                    str(comparison.num_prompts),
                    *_row(comparison)[:-1],
                )
                for comparison in by_category
            ]
            parts += ["### By category", _table(("category", "prompts", *COLUMNS[:-1]), rows)]
    if selection.others:
        rows = [
            (escaped(comparison.model), escaped(comparison.against), *_row(comparison))
            for comparison in selection.others
        ]
        heads = ("model", "other", *COLUMNS[:2], "other's mean", *COLUMNS[3:])
        parts += ["## Other pairs", _table(heads, rows)]
    models = [
        (
            escaped(model.name),
            escaped(model.source),
            escaped(model.series),
            "" if model.step is None else str(model.step),
            escaped(", ".join(model.trained_on)),
        )
        for model in report.models
    ]
    parts += ["## Models", _table(("name", "source", "series", "step", "trained on"), models)]
    manifest = [(escaped(key), escaped(value)) for key, value in flat(report.manifest)]
    parts += ["## Manifest", _table(("setting", "value"), manifest)]
    return "\n\n".join(part for part in parts if part) + "\n"


def escaped(text: str) -> str:
    """Text that Markdown leaves as it is, in one line."""
    line = " ".join(text.split())
    marked = re.sub(r"([\\`*_{}\[\]|~#$@])", r"\\\1", line)
    return marked.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _row(comparison: Comparison) -> Sequence[str]:
    tally = (comparison.wins, comparison.ties, comparison.losses)
    rate = comparison.win_rate
    return (
        escaped(comparison.measure),
        _figure(comparison.mean),
        _figure(comparison.against_mean),
        "" if comparison.difference is None else _signed(comparison.difference),
        "" if comparison.median_difference is None else signed(comparison.median_difference),
        "" if rate is None else f"{percent(rate.mean)} {percent_bounds(rate)}",
        "" if comparison.wins is None else " / ".join(map(count, tally)),
        "" if comparison.adjusted_p is None else probability(comparison.adjusted_p).replace("<", "&lt;"),
    )


def _figure(interval: Interval | None) -> str:
    return "" if interval is None else f"{number(interval.mean)} {bounds(interval)}"


def _signed(interval: Interval) -> str:
    return f"{signed(interval.mean)} {bounds(interval)}"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
