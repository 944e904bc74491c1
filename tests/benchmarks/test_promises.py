"""What is promised of speed: the table is what the benchmarks have kept, and so is the plan for many GPUs."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.runs import ROOT

RESULTS = ROOT / "benchmarks" / "results"


def test_the_table_is_of_what_was_kept(script: Any) -> None:
    """Every file of figures is in it; what it says of each is what the file says."""
    promises = script("promises")
    lines = (RESULTS / "promises.md").read_text().splitlines()
    assert lines == promises.page(RESULTS)
    kept = sorted(path.stem for path in (RESULTS / "promises").iterdir())
    assert kept == sorted(promises.NAMES)


def test_every_figure_is_of_a_result_that_is_there() -> None:
    """A figure's command has written a table in the same month, by a commit that the table names."""
    for path in (RESULTS / "promises").iterdir():
        told = json.loads(path.read_text())
        if told["commit"] is None:
            assert all(promise["found"] is None for promise in told["promises"])
            continue
        tables = [table.read_text() for table in RESULTS.glob(f"{path.stem}_*.md")]
        said = f"{told['date']}, commit {told['commit']}, {told['conditions']}."
        assert any(said in table and f"`{told['command']}`" in table for table in tables)


@pytest.mark.parametrize(
    ("bounds", "found", "cells"),
    [
        ({"least": 1.35}, 1.35, "at least 1.35 | 1.35 | yes"),
        ({"least": 1.35}, 1.349, "at least 1.35 | 1.35 | no"),
        ({"most": 0.03}, 0.0301, "at most 0.03 | 0.0301 | no"),
        ({"most": 0.0}, 0.0, "at most 0 | 0 | yes"),
        ({"least": 20_000}, 44_704.2, "at least 20,000 | 44,704 | yes"),
        ({"most": 1.03}, None, "at most 1.03 | not yet run | "),
    ],
)
def test_a_promise_is_kept_at_its_bound_and_not_beyond(
    script: Any, bounds: dict[str, float], found: float | None, cells: str
) -> None:
    assert script("report").Promise("a figure", **bounds, found=found).cells == f"a figure | {cells}"


def test_what_is_kept_is_read_as_it_was(script: Any, tmp_path: Path) -> None:
    report = script("report")
    promises = [report.Promise("a", least=1.0, found=2.5, told="eager"), report.Promise("b", most=0.0)]
    report.keep(promises, tmp_path, "some")
    told = json.loads((tmp_path / "promises" / "some.json").read_text())
    assert [report.Promise(**fields) for fields in told["promises"]] == promises
    assert told["commit"] == report.commit()
    report.keep(promises[1:], tmp_path, "some")
    assert json.loads((tmp_path / "promises" / "some.json").read_text())["commit"] is None


@pytest.mark.slow
def test_the_plan_for_many_gpus_is_what_its_script_says(script: Any) -> None:
    page = (ROOT / "benchmarks" / "scaling.md").read_text().splitlines()
    assert page == script("plan_sdxl").page()


def test_a_plan_is_arithmetic_on_what_is_given(script: Any) -> None:
    """Twice the GPUs halve the work of each; gradients of 2.567 billion float32 at 400 GB/s, sent twice."""
    plan = script("plan_sdxl")
    assert plan.arithmetic(8, 0.4) == pytest.approx(2048 / 8 * 53.98 / (0.4 * 788))
    assert plan.arithmetic(16, 0.4) == pytest.approx(plan.arithmetic(8, 0.4) / 2)
    assert plan.all_reduce(2) == pytest.approx(4 * 2.567463684 / 400)
    assert plan.all_reduce(512) == pytest.approx(2 * plan.all_reduce(2), rel=0.01)
    whole = 2000 * (plan.arithmetic(8, 0.4) + plan.all_reduce(8)) / 3600
    assert plan.hours(8, 0.4) == pytest.approx(whole)


def test_exponents_are_of_power_laws(script: Any) -> None:
    scaling = script("scaling")
    assert scaling.exponent([1, 2, 4], [3, 12, 48]) == pytest.approx(2)
    assert scaling.exponent([1_000, 100_000], [5, 5]) == pytest.approx(0)
    curve = scaling.Curve("a step", "pairs", {1: [3.0, 4.0], 2: [4.0, 4.0], 4: [8.0, 16.0]}, [1, 2, 8], "")
    assert curve.medians == [3.5, 4.0, 12.0]
    assert curve.last == pytest.approx(1.585, abs=1e-3)
    # slopes of least squares over log2: (log2 8/3) / 2 and (log2 16/4) / 2
    assert curve.exponents == pytest.approx([0.7075, 1.0], abs=1e-3)
    assert curve.expected == pytest.approx((1.5, 2.0))
