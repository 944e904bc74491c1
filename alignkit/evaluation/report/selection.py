"""Which comparisons stand in which table, and what charts ask of all of them."""

from collections.abc import Mapping
from typing import NamedTuple

from alignkit.evaluation.contents import Comparison, Evaluated, Report
from alignkit.evaluation.statistics.bootstrap import Interval
from alignkit.evaluation.statistics.comparisons import DISPLACEMENT, DIVERSITY, VENDI

# by embeddings: what is no reward
SPREADS = (DIVERSITY, VENDI, DISPLACEMENT)


class Selection(NamedTuple):
    """Comparisons by where they stand.

    Args:
        against_base: over all prompts, by model.
        by_category: against the base, by model.
        others: of two models of which none is the base, over all prompts.
    """

    against_base: Mapping[str, tuple[Comparison, ...]]
    by_category: Mapping[str, tuple[Comparison, ...]]
    others: tuple[Comparison, ...]


def select(report: Report) -> Selection:
    """Sorts comparisons into tables; those by category of two models beside the base are in none."""
    base = report.models[0].name
    against_base: dict[str, tuple[Comparison, ...]] = {model.name: () for model in report.models[1:]}
    by_category = dict(against_base)
    others = []
    for comparison in report.comparisons:
        if comparison.against != base:
            others += [comparison] if comparison.category is None else []
        elif comparison.category is None:
            against_base[comparison.model] += (comparison,)
        else:
            by_category[comparison.model] += (comparison,)
    return Selection(against_base, by_category, tuple(others))


def means(report: Report) -> dict[str, dict[str, Interval]]:
    """By measure, then by model: its mean over all prompts."""
    found: dict[str, dict[str, Interval]] = {}
    for comparison in report.comparisons:
        if comparison.category is None and comparison.against == report.models[0].name:
            by_model = found.setdefault(comparison.measure, {})
            if comparison.against_mean is not None:
                by_model[comparison.against] = comparison.against_mean
            by_model[comparison.model] = comparison.mean
    return found


def win_rates(report: Report) -> dict[str, dict[str, Interval]]:
    """By reward, then by model: its win rate against the base over all prompts."""
    found: dict[str, dict[str, Interval]] = {}
    for comparison in report.comparisons:
        if comparison.category is not None or comparison.against != report.models[0].name:
            continue
        if comparison.win_rate is not None and comparison.measure not in SPREADS:
            found.setdefault(comparison.measure, {})[comparison.model] = comparison.win_rate
    return found


def lines(report: Report) -> tuple[tuple[str, tuple[Evaluated, ...]], ...]:
    """Names of series with their models in the order of steps; a model alone is a line of one point."""
    found: dict[tuple[str, str], list[Evaluated]] = {}
    for model in report.models:
        # a series may be called as a model alone is
        found.setdefault((model.series, "" if model.series else model.name), []).append(model)
    return tuple(
        (series or alone, tuple(sorted(models, key=lambda model: model.step or 0)))
        for (series, alone), models in found.items()
    )
