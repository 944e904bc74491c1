"""What a report says as JSON and as Markdown."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

from alignkit.evaluation.contents import Report
from alignkit.evaluation.report import read, write
from alignkit.evaluation.report.lossless import from_json, to_json
from alignkit.evaluation.report.markdown import escaped, to_markdown
from alignkit.evaluation.results import Prompt, Scores
from alignkit.evaluation.statistics.bootstrap import Interval
from tests.reports import SERIES, simulated


def assert_same(found: Report, expected: Report) -> None:
    """Equal in all there is, with arrays bit by bit."""
    assert found._replace(results=expected.results) == expected
    assert found.results.prompts == expected.results.prompts
    assert found.results.seeds == expected.results.seeds
    assert list(found.results.scores) == list(expected.results.scores)
    for name, scores in expected.results.scores.items():
        assert list(found.results.scores[name].reward_PS) == list(scores.reward_PS)
        for measure, reward_PS in scores.reward_PS.items():
            np.testing.assert_array_equal(
                found.results.scores[name].reward_PS[measure], reward_PS, strict=True
            )
        if scores.feature_PSD is None:
            assert found.results.scores[name].feature_PSD is None
        else:
            np.testing.assert_array_equal(
                found.results.scores[name].feature_PSD, scores.feature_PSD, strict=True
            )


def with_scores(report: Report, model: str, scores: Scores) -> Report:
    results = report.results
    return report._replace(results=results._replace(scores={**results.scores, model: scores}))


def test_json_gives_back_the_very_report(tmp_path: Path) -> None:
    report = simulated(tmp_path, SERIES)
    paths = write(report, tmp_path)
    assert [path.name for path in paths] == ["report.json", "report.md", "report.html"]
    assert all(path.is_file() for path in paths)
    assert_same(read(tmp_path), report)


def test_awkward_values_come_back(tmp_path: Path) -> None:
    """Every digit, negative zero, texts of any kind, no embeddings."""
    report = simulated(tmp_path, num_prompts=2)
    awkward = np.array([[0.1 + 0.2, -0.0], [5e-324, 1.7976931348623157e308]])
    texts = (
        Prompt('</script> "quoted" \\ \n\t', "a|b"),
        Prompt("\u0634\u0645\u0633 \u202e \U0001f600 \u2028"),
    )
    report = with_scores(report, "dpo", Scores({"MajorityTaste": awkward}))
    report = report._replace(
        results=report.results._replace(prompts=texts), manifest={"a": {"b": [1, 1.5, None]}}
    )
    found = from_json(to_json(report))
    assert_same(found, report)
    assert math.copysign(1, found.results.scores["dpo"].reward_PS["MajorityTaste"][0, 1]) == -1


def test_json_is_for_readers_too(tmp_path: Path) -> None:
    """Rows of scores stand in one line, and no line is longer than it must be."""
    text = to_json(simulated(tmp_path))
    assert json.loads(text)["schema"] == 1
    assert all(
        len(line) <= 200 for line in text.splitlines() if "base64" not in line and "float64" not in line
    )
    assert re.search(r'^ +"text": "|^ +\{"text": "', text, re.MULTILINE)


def test_numpy_scalars_are_numbers(tmp_path: Path) -> None:
    report = simulated(tmp_path)
    first = report.comparisons[0]._replace(wins=np.int64(7), sign_p=np.float64(0.25))
    assert from_json(to_json(report._replace(comparisons=(first,)))).comparisons[0].wins == 7


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_score_that_is_no_number_is_named(tmp_path: Path, value: float) -> None:
    report = simulated(tmp_path)
    report.results.scores["dmpo"].reward_PS["EmojiFidelity"][3, 1] = value
    asked = re.escape(report.results.prompts[3].text)
    with pytest.raises(ValueError, match=f"the EmojiFidelity of dmpo for '{asked}', seed 1001, is {value}"):
        write(report, tmp_path)
    assert not (tmp_path / "report.json").exists()


def test_figure_and_embedding_that_are_no_numbers_are_named(tmp_path: Path) -> None:
    report = simulated(tmp_path)
    broken = report.comparisons[1]._replace(difference=Interval(0.0, math.nan, 1.0))
    with pytest.raises(
        ValueError, match=r"difference.low of MinorityTaste of dpo against base, all prompts, is nan"
    ):
        to_json(report._replace(comparisons=(report.comparisons[0], broken)))
    scores = report.results.scores["dpo"]
    with pytest.raises(ValueError, match="embeddings of dpo are not finite"):
        to_json(with_scores(report, "dpo", scores._replace(feature_PSD=np.full((1, 1, 1), np.nan))))


def test_other_schema_is_refused(tmp_path: Path) -> None:
    text = to_json(simulated(tmp_path)).replace('"schema": 1', '"schema": 2')
    with pytest.raises(ValueError, match="schema must be 1, got 2"):
        from_json(text)


def rows(markdown: str) -> list[list[str]]:
    """Cells of all lines of tables, split where GitHub splits them."""
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def test_markdown_says_verdicts_first_then_every_comparison(tmp_path: Path) -> None:
    report = simulated(tmp_path)
    markdown = to_markdown(report)
    title, verdicts, *_ = markdown.split("\n\n")
    assert title == "# dpo, dmpo against base"
    assert verdicts == "\n".join(f"- {verdict}" for verdict in report.verdicts)
    sections = re.split(r"^## ", markdown, flags=re.MULTILINE)[1:]
    assert [section.splitlines()[0] for section in sections] == [
        "dpo against base",
        "dmpo against base",
        "Other pairs",
        "Models",
        "Manifest",
    ]
    comparison = report.comparisons[0]
    difference, rate = comparison.difference, comparison.win_rate
    assert (comparison.model, comparison.measure, comparison.category) == ("dpo", "MajorityTaste", None)
    assert difference is not None
    assert rate is not None
    row = rows(sections[0])[2]
    assert row[0] == "MajorityTaste"
    assert row[3] == f"+{difference.mean:.3f} [{difference.low:.3f}, {difference.high:.3f}]"
    assert row[5] == f"{100 * rate.mean:.1f} % [{100 * rate.low:.1f}, {100 * rate.high:.1f}]"
    assert row[6:] == [f"{comparison.wins} / {comparison.ties} / {comparison.losses}", "&lt; 0.001"]
    # 6 measures of all prompts and of 2 categories, with 2 lines above each table
    assert len(rows(sections[0])) == (6 + 2) + (12 + 2)
    assert rows(sections[0])[8][-1] == "wins / ties / losses"
    assert ["sampler.steps", "20"] in rows(sections[4])


def test_tables_of_markdown_stay_rectangular_whatever_they_are_told(tmp_path: Path) -> None:
    report = simulated(tmp_path, prompts=[Prompt("a", "x | y\n# z"), Prompt("b", "`<b>*_[")], num_prompts=2)
    report = report._replace(manifest={"command | that": "<script>\n| a |"}, verdicts=("*bold* <b>",))
    markdown = to_markdown(report)
    for block in re.findall(r"(?:^\|.*\n)+", markdown, re.MULTILINE):
        assert len({len(row) for row in rows(block)}) == 1
    assert "<script>" not in markdown
    assert "- \\*bold\\* &lt;b&gt;" in markdown


def test_escaped_text_stands_in_one_line() -> None:
    assert escaped("a\n_b_ | <c> & `d`") == r"a \_b\_ \| &lt;c&gt; &amp; \`d\`"
