"""What came of a sweep: a table, the same as JSON, a plot, and a verdict."""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alignkit.evaluation.wording import NONE, lined_up, number
from alignkit.files import whole, write_text
from alignkit.sweep.metric import Metric
from alignkit.sweep.space import Axis, told
from alignkit.sweep.study import DONE, FAILED, Row

TABLE, PLOT, DATA = "trials.md", "trials.png", "trials.json"
# how far apart the ends of an axis must be to be drawn by their order of magnitude
DECADES = 20


def ranked(rows: Sequence[Row], metric: Metric) -> list[Row]:
    """Those that are done, best first; then the others."""

    def place(row: Row) -> tuple[bool, float, int]:
        value = row.metric or 0.0
        return row.state != DONE, -value if metric.higher else value, row.number

    return sorted(rows, key=place)


def verdict(rows: Sequence[Row], metric: Metric) -> str:
    """Which trial is best, in one line."""
    counts = {
        state: sum(row.state == state for row in rows) for state in dict.fromkeys(r.state for r in rows)
    }
    how_many = ", ".join(f"{count} {state}" for state, count in counts.items())
    best = ranked(rows, metric)[:1]
    if not best or best[0].state != DONE:
        return f"no trial is done: {how_many or 'none has begun'}"
    (one,) = best
    value = f"{metric} {number(one.metric)} ({metric.way})"
    return f"best is trial {one.number}, {told(one.values)}: {value}; {how_many}"


def write(
    folder: Path, rows: Sequence[Row], metric: Metric, axes: Sequence[Axis], commands: dict[int, Any]
) -> str:
    """Writes table, JSON and plot; returns why there is no plot, if there is none.

    Args:
        folder: where to.
        rows: the trials.
        metric: what they are ranked by.
        axes: what was varied.
        commands: the commands of each trial's runs, by its number.
    """
    order = ranked(rows, metric)
    data = {
        "metric": metric._asdict(),
        "varied": [str(axis) for axis in axes],
        "trials": [
            row._asdict() | {"commands": [shlex.join(line) for line in commands.get(row.number, ())]}
            for row in order
        ],
    }
    write_text(folder / DATA, json.dumps(data, indent=2) + "\n")
    write_text(folder / TABLE, _page(order, metric, axes, commands))
    return _plot(folder / PLOT, [row for row in rows if row.state == DONE], metric, axes)


def table(rows: Sequence[Row], metric: Metric, axes: Sequence[Axis]) -> str:
    """The trials as lines of text, best first."""
    return lined_up(_cells(ranked(rows, metric), metric, axes), 1)


def _cells(rows: Sequence[Row], metric: Metric, axes: Sequence[Axis]) -> list[list[str]]:
    cells = [["trial", *(axis.key for axis in axes), str(metric), "seconds", "state"]]
    for row in rows:
        values = [row.values.get(axis.key, NONE) for axis in axes]
        cells.append([f"{row.number:03}", *values, number(row.metric), f"{row.seconds:.0f}", row.state])
    return cells


def _page(rows: Sequence[Row], metric: Metric, axes: Sequence[Axis], commands: dict[int, Any]) -> str:
    head, *cells = _cells(rows, metric, axes)
    several = any(len(row.parts) > 1 for row in rows)
    lines = ["# Trials", "", f"{verdict(rows, metric)}.", ""]
    notes = ["of each run", "note"] if several else ["note"]
    lines += [_line([*head, *notes]), "|" + "---|" * (len(head) + len(notes))]
    for row, cell in zip(rows, cells, strict=True):
        parts = [", ".join(map(number, row.parts))] if several else []
        lines.append(_line([*cell, *parts, row.error]))
    if not several:
        lines += ["", "One seed each: small differences are chance. `--seeds 0,1,2` tells them apart."]
    if rows and rows[0].state == DONE:
        lines += ["", "The best again:", "", "```"]
        lines += [shlex.join(line[:-1]) for line in commands.get(rows[0].number, ())] + ["```"]
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"


def _plot(path: Path, rows: Sequence[Row], metric: Metric, axes: Sequence[Axis]) -> str:
    if not rows:
        return "no plot: no trial is done"
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        return "no plot: it needs matplotlib, pip install 'alignkit[sweep]'"
    figure = Figure(figsize=(4 * len(axes), 3.2), layout="constrained")
    best = ranked(rows, metric)[0]
    for axis, pane in zip(axes, figure.subplots(1, len(axes), squeeze=False, sharey=True)[0], strict=True):
        _pane(pane, axis, rows, best)
    figure.axes[0].set_ylabel(f"{metric}\n({metric.way})")
    with whole(path) as partial:
        figure.savefig(partial, format="png", dpi=150)
    return ""


def _pane(pane: Any, axis: Axis, rows: Sequence[Row], best: Row) -> None:
    said = [row.values[axis.key] for row in rows]
    try:
        places: list[Any] = [float(text) for text in said]
        if min(places) > 0 and max(places) >= DECADES * min(places):
            pane.set_xscale("log")
    except ValueError:
        places = [text[:20] for text in said]
    pane.scatter(places, [row.metric for row in rows], color="tab:blue", zorder=2)
    pane.scatter(
        [places[rows.index(best)]], [best.metric], color="tab:orange", zorder=3, label=f"trial {best.number}"
    )
    pane.set_xlabel(axis.key)
    pane.legend()


def failures(rows: Sequence[Row]) -> list[str]:
    """Why trials failed, a line for each."""
    return [f"trial {row.number} failed: {row.error}" for row in rows if row.state == FAILED]
