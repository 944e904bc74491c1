"""Which charts a report has."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from markupsafe import Markup

from alignkit.evaluation.contents import Evaluated, Report
from alignkit.evaluation.report.axes import share
from alignkit.evaluation.report.charts import Line, Point, curves, plane, rows
from alignkit.evaluation.report.selection import SPREADS, lines, means, win_rates
from alignkit.evaluation.statistics.bootstrap import Interval
from alignkit.evaluation.statistics.comparisons import DISPLACEMENT, DIVERSITY

BY_CHANCE = 0.5
NOWHERE = Interval(0.0, 0.0, 0.0)


class Charts(NamedTuple):
    """Charts of one kind, and what their lines are."""

    charts: tuple[Markup, ...]
    lines: tuple[Line, ...]


class Gain(NamedTuple):
    """How one training fared by rewards that it has seen, and by others."""

    name: str
    chart: Markup
    lines: tuple[Line, ...]


def over_steps(report: Report) -> Charts:
    """One chart per measure, with a line for every series of at least two steps."""
    base = report.models[0]
    charts: list[Markup] = []
    seen: dict[int, Line] = {}
    for measure, by_model in means(report).items():
        drawn = []
        for number, (name, models) in enumerate(lines(report)):
            points = _points(models, by_model)
            if len(points) > 1:
                drawn.append(Line(name, number, points))
        level = None
        if base.step is None and base.name in by_model:
            level = Point(base.name, NOWHERE, by_model[base.name])
        if drawn:
            charts.append(curves(measure, drawn, level))
            seen |= {line.number: line for line in drawn}
    return Charts(tuple(charts), tuple(seen.values()))


def trade_offs(report: Report) -> Iterator[Charts]:
    """Every reward against diversity, then against displacement."""
    by_measure = means(report)
    # a model is where it is: by definition, no interval
    if DISPLACEMENT in by_measure:
        by_measure[DISPLACEMENT].setdefault(report.models[0].name, NOWHERE)
    for spread in (DIVERSITY, DISPLACEMENT):
        charts: list[Markup] = []
        seen: dict[int, Line] = {}
        for measure in by_measure if spread in by_measure else ():
            if measure in SPREADS:
                continue
            x, y = by_measure[spread], by_measure[measure]
            drawn = [
                Line(name, number, tuple(Point(model.name, x[model.name], y[model.name]) for model in both))
                for number, (name, models) in enumerate(lines(report))
                if (both := [model for model in models if model.name in x and model.name in y])
            ]
            charts.append(plane(spread, measure, drawn))
            seen |= {line.number: line for line in drawn}
        if charts:
            yield Charts(tuple(charts), tuple(seen.values()))


def gains(report: Report) -> Iterator[Gain]:
    """Win rates against the base of every training that says which rewards it has seen."""
    by_reward = win_rates(report)
    for name, models in lines(report):
        seen = {reward for model in models for reward in model.trained_on}
        compared = [model for model in models if any(model.name in rates for rates in by_reward.values())]
        if not seen or not compared:
            continue
        # rewards of the training first
        rewards = sorted(by_reward, key=lambda reward: reward not in seen)
        last = compared[-1]
        dots = [
            Line(
                reward,
                list(by_reward).index(reward),
                (Point(last.name, NOWHERE, by_reward[reward][last.name]),),
                hollow=reward not in seen,
            )
            for reward in rewards
            if last.name in by_reward[reward]
        ]
        yield Gain(last.name, rows("win rate", dots, BY_CHANCE), ())
        stepped = [model for model in compared if model.step is not None]
        if len(stepped) > 1:
            drawn = tuple(
                Line(reward, list(by_reward).index(reward), points, hollow=reward not in seen)
                for reward in rewards
                if (points := _points(stepped, by_reward[reward]))
            )
            chart = curves("win rate", drawn, None, share)
            yield Gain(f"{name}, over checkpoints", chart, drawn)


def _points(models: Sequence[Evaluated], by_model: Mapping[str, Interval]) -> tuple[Point, ...]:
    return tuple(
        Point(model.name, _exactly(model.step), by_model[model.name])
        for model in models
        if model.step is not None and model.name in by_model
    )


def _exactly(step: int) -> Interval:
    return Interval(float(step), float(step), float(step))
