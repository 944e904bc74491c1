"""A report as one HTML file that asks for nothing beside it."""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from alignkit.evaluation import wording
from alignkit.evaluation.contents import Comparison, Report
from alignkit.evaluation.report.charts import key
from alignkit.evaluation.report.figures import gains, over_steps, trade_offs
from alignkit.evaluation.report.lossless import comparison_to_plain
from alignkit.evaluation.report.manifest import flat
from alignkit.evaluation.report.pictures import SIDE, SMALL, fit
from alignkit.evaluation.verdicts.standing import LEVEL, Difference, Standing

HERE = Path(__file__).parent
# bytes of the whole file; pictures get what the rest leaves
LIMIT, LIMIT_MB = 14_500_000, 15
MAX_ROWS, MAX_SETTINGS, MAX_CHARACTERS = 3000, 1000, 1000
# around the pictures of a prompt within the data
ROOM = 20


class Row(NamedTuple):
    """A line of a table.

    Args:
        number: of the comparison in the report.
        comparison: what it says.
        direction: "above" or "below" the other model where that is significant, or empty.
    """

    number: int
    comparison: Comparison
    direction: str


class Table(NamedTuple):
    """A model against the base: over all prompts, and by category."""

    model: str
    rows: tuple[Row, ...]
    by_category: tuple[Row, ...]


def to_page(report: Report, folder: Path) -> str:
    """The page, below 15 MB.

    Tables have at most 3000 rows, those of all prompts first. Pictures of more than 128 pixels are scaled
    down to 256 and compressed as WebP; when there is no room for all, the page holds those of as many prompts
    as fit, evenly spread, and says so.

    Args:
        report: what it says.
        folder: to which the paths of its pictures are relative.

    Raises:
        ValueError: a picture is missing.
    """
    rows = _rows(report)
    without = len(_laid_out(report, rows, []).encode())
    results = report.results
    told = [_told(report, number) for number in range(len(results.prompts) if report.pictures else 0)]
    costs = [len(_json(part).encode()) + ROOM for part in told]
    shown = fit(report.pictures, folder, costs, LIMIT - without)
    return _laid_out(report, rows, [{**told[number], "pictures": data} for number, data in shown.items()])


def _rows(report: Report) -> tuple[Row, ...]:
    """Comparisons that tables have room for: against the base, of other pairs, by category."""
    base = report.models[0].name
    rows = [
        Row(number, comparison, _direction(comparison))
        for number, comparison in enumerate(report.comparisons)
    ]
    of_all = [row for row in rows if row.comparison.category is None]
    by_category = [
        row for row in rows if row.comparison.category is not None and row.comparison.against == base
    ]
    # stable: within each kind they stay in the order of the report
    of_all.sort(key=lambda row: row.comparison.against != base)
    return tuple([*of_all, *by_category][:MAX_ROWS])


def _direction(comparison: Comparison) -> str:
    """Only over all prompts, where p is corrected; by the same rule as the verdicts."""
    p, difference, rate = comparison.adjusted_p, comparison.difference, comparison.win_rate
    if p is None or difference is None or rate is None:
        return ""
    standing = Difference(comparison.measure, difference, rate, p).standing
    return {Standing.HIGHER: "above", Standing.LOWER: "below"}.get(standing, "")


def _told(report: Report, number: int) -> dict[str, Any]:
    """What the grid says of one prompt."""
    prompt = report.results.prompts[number]
    scores = {
        model: {measure: reward_PS[number].tolist() for measure, reward_PS in scored.reward_PS.items()}
        for model, scored in report.results.scores.items()
    }
    return {"number": number, **prompt._asdict(), "scores": scores}


def _laid_out(report: Report, rows: Sequence[Row], prompts: Sequence[Mapping[str, Any]]) -> str:
    base = report.models[0].name
    tables = [
        Table(
            model.name,
            tuple(
                row for row in rows if _is_about(row, model.name, base) and row.comparison.category is None
            ),
            tuple(
                row
                for row in rows
                if _is_about(row, model.name, base) and row.comparison.category is not None
            ),
        )
        for model in report.models[1:]
    ]
    style, script = (Markup((HERE / name).read_text(encoding="utf-8")) for name in ("page.css", "page.js"))
    settings = list(flat(report.manifest))
    measures = dict.fromkeys(name for scores in report.results.scores.values() for name in scores.reward_PS)
    data = {
        "comparisons": [{"number": row.number, **comparison_to_plain(row.comparison)} for row in rows],
        "models": list(report.pictures),
        "measures": list(measures),
        "seeds": report.results.seeds,
        "prompts": prompts,
    }
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template("page.html").render(
        report=report,
        base=base,
        policy=_policy(style, script),
        style=style,
        script=script,
        tables=tables,
        others=[row for row in rows if row.comparison.against != base],
        num_left_out=len(report.comparisons) - len(rows),
        is_cut=len(rows) == MAX_ROWS,
        max_rows=MAX_ROWS,
        level=LEVEL,
        num_shown=len(prompts),
        limit_mb=LIMIT_MB,
        small=SMALL,
        side=SIDE,
        curves=over_steps(report),
        planes=list(trade_offs(report)),
        gains=list(gains(report)),
        manifest=[(name, _cut(value)) for name, value in settings[:MAX_SETTINGS]],
        num_settings_left_out=max(0, len(settings) - MAX_SETTINGS),
        data=_json(data),
        exact=_exact,
        key=key,
        wording=wording,
    )


def _is_about(row: Row, model: str, base: str) -> bool:
    return (row.comparison.model, row.comparison.against) == (model, base)


def _policy(style: str, script: str) -> str:
    """Only this script and this style sheet, and pictures within the file; no connection of any kind."""
    hashes = [
        "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"
        for text in (style, script)
    ]
    return (
        f"default-src 'none'; img-src data:; style-src {hashes[0]}; script-src {hashes[1]}; "
        "connect-src 'none'; base-uri 'none'; form-action 'none'"
    )


def _json(value: object) -> Markup:
    """JSON that cannot end the element that it stands in."""
    return htmlsafe_json_dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _exact(value: float | None) -> str:
    """A figure with all its digits, as JSON has it."""
    return "" if value is None else json.dumps(value)


def _cut(text: str) -> str:
    return text if len(text) <= MAX_CHARACTERS else text[:MAX_CHARACTERS] + "\u2026 (in full in report.json)"
