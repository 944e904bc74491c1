"""What a sweep varies, shares and ranks by, without a run."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from alignkit.mistakes import UsageError
from alignkit.sweep import processes
from alignkit.sweep.metric import Metric
from alignkit.sweep.report import failures, ranked, verdict, write
from alignkit.sweep.sharing import changed, flat
from alignkit.sweep.space import Choices, Range, choices, crossed, ends, interval, settled
from alignkit.sweep.study import DONE, FAILED, GRID, PRUNED, RANDOM, TPE, Row, Study, drawn
from alignkit.sweep.validations import FILE, written

BETA, LR = Choices("objective.beta", ("500", "2000")), Range("optimizer.lr", 1e-6, 1e-4, True, False)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("a.b=1,2", ("1", "2")),
        ("a=x", ("x",)),
        ("a=[1,2],[3]", ("[1,2]", "[3]")),
        ("a='x,y',z", ("'x,y'", "z")),
        ("a={name: A, b: [1, 2]}, B", ("{name: A, b: [1, 2]}", "B")),
    ],
)
def test_commas_within_brackets_and_quotes_part_nothing(text: str, values: tuple[str, ...]) -> None:
    assert choices(text).values == values


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("beta", "must name a key and its values"),
        ("=1,2", "must name a key"),
        ("a b=1", "must name a key"),
        ("a=", "gives a no value"),
        ("a=1,", "a value of a is empty"),
        ("a=1,2,1", "1 is given twice"),
    ],
)
def test_a_grid_that_cannot_be_read_is_refused(text: str, told: str) -> None:
    with pytest.raises(UsageError, match=f"--grid {text}: .*{told}"[:60].replace("(", r"\(")):
        choices(text)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a=1", "must be KEY=LOW..HIGH"),
        ("a=x..2", "must be KEY=LOW..HIGH"),
        ("a=2..2", "LOW must be below HIGH"),
        ("a=nan..2", "LOW must be below HIGH"),
        ("a=1..inf", "LOW must be below HIGH"),
        ("a=1..2:cos", "only log may stand, got 'cos'"),
        ("a=0..2:log", "with :log LOW must be positive"),
    ],
)
def test_a_range_that_cannot_be_read_is_refused(text: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        interval(text)


def test_numbers_are_as_whole_as_the_configs_own() -> None:
    """5..500 of a beta that is 2000.0 may be 7.5; of a batch size that is 8 it may not."""
    axes = [interval("objective.beta=5..500"), interval("data.batch_size=2..8"), choices("objective=A,B")]
    found = settled(axes, {"objective.beta": 2000.0, "data.batch_size": 8, "objective": "A"})
    assert [axis.key for axis in found] == ["objective", "objective.beta", "data.batch_size"]
    assert [axis.whole for axis in found if isinstance(axis, Range)] == [False, True]
    with pytest.raises(UsageError, match="objective is varied twice"):
        settled([*axes, choices("objective=C")], {})


def test_a_grid_is_crossed_and_ends_are_ends() -> None:
    other = Choices("b", ("x", "y"))
    assert [tuple(one.values()) for one in crossed([BETA, other])] == [
        ("500", "x"), ("500", "y"), ("2000", "x"), ("2000", "y"),
    ]  # fmt: skip
    assert list(ends([BETA, LR])) == [
        {"objective.beta": "500", "optimizer.lr": "1e-06"},
        {"objective.beta": "2000", "optimizer.lr": "0.0001"},
    ]


def test_draws_lie_within_their_ranges() -> None:
    found = drawn([BETA, LR, Range("data.batch_size", 2, 8, False, True)], RANDOM, 40, 0)
    assert len(found) == 40
    assert {one["objective.beta"] for one in found} == {"500", "2000"}
    assert {one["data.batch_size"] for one in found} == {str(size) for size in range(2, 9)}
    rates = sorted(float(one["optimizer.lr"]) for one in found)
    assert 1e-6 <= rates[0] < 1e-5 < rates[-1] <= 1e-4
    assert drawn([LR], TPE, 40, 0) == drawn([LR], RANDOM, 10, 0)
    assert drawn([BETA], GRID, 1, 0) == [{"objective.beta": "500"}]


def test_what_differs_between_configs_is_named_by_key() -> None:
    ours = {"objective": {"class_path": "a.A", "init_args": {"beta": 1.0}}, "config": ["x"], "run": "here"}
    theirs = {"objective": {"class_path": "a.A", "init_args": {"beta": 2.0}}, "config": ["y"], "run": None}
    assert flat(ours) == {"objective": "a.A", "objective.beta": 1.0}
    assert changed(ours, theirs) == {"objective.beta"}
    theirs["objective"] = {"class_path": "a.B", "init_args": {"tau": 0.1}}
    assert changed(ours, theirs) == {"objective", "objective.beta", "objective.tau"}


def test_a_metric_is_read_from_the_summary() -> None:
    summary: dict[str, Any] = {
        "held_out": {"loss": 0.5, "kl": math.nan},
        "scores": {"Taste": {"aligned": {"mean": 3.0}, "difference": {"mean": 0.25}}},
    }
    assert Metric("loss", False, False).of(summary) == 0.5
    assert Metric("Taste", True, True).of(summary) == 0.25
    with pytest.raises(ValueError, match="the run reports no held-out accuracy; it has loss, kl"):
        Metric("accuracy", True, False).of(summary)
    with pytest.raises(ValueError, match="held-out kl is nan"):
        Metric("kl", True, False).of(summary)


ROWS = [
    Row(0, {"objective.beta": "500"}, DONE, 0.2, 10.0, (0.2,)),
    Row(1, {"objective.beta": "900"}, PRUNED, None, 5.0, (), "worse than the median at validation 2: 0.1"),
    Row(2, {"objective.beta": "2000"}, DONE, 0.4, 11.0, (0.4,)),
    Row(3, {"objective.beta": "8000"}, FAILED, None, 1.0, (), "a | b"),
]


def test_the_best_comes_first_whichever_way_is_better(tmp_path: Path) -> None:
    higher, lower = Metric("Taste", True, True), Metric("loss", False, False)
    assert [row.number for row in ranked(ROWS, higher)] == [2, 0, 1, 3]
    assert [row.number for row in ranked(ROWS, lower)] == [0, 2, 1, 3]
    assert verdict(ROWS, higher) == (
        "best is trial 2, objective.beta=2000: gain in Taste 0.400 (higher is better); "
        "2 done, 1 pruned, 1 failed"
    )
    assert verdict(ROWS[3:], higher) == "no trial is done: 1 failed"
    assert failures(ROWS) == ["trial 3 failed: a | b"]
    assert write(tmp_path, ROWS, higher, [BETA], {2: [["alignkit", "fit", "--run=x"]]}) == ""
    page = (tmp_path / "trials.md").read_text()
    assert "| 003 | 8000 | \u2013 | 1 | failed | a \\| b |" in page
    assert "```\nalignkit fit\n```" in page
    assert [row["number"] for row in json.loads((tmp_path / "trials.json").read_text())["trials"]] == [
        2,
        0,
        1,
        3,
    ]
    assert (tmp_path / "trials.png").is_file()


def study(folder: Path, count: int, *, name: str = "one", of: str = "this", sampler: str = GRID) -> Study:
    axes = [BETA] if sampler == GRID else [LR]
    made = Study(
        f"sqlite:///{folder}/study.db", name, {"of": of}, axes=axes, sampler=sampler, seed=0, higher=True
    )
    made.plan(drawn(axes, sampler, count, 0), count)
    return made


def test_trials_are_begun_once_and_those_of_a_dead_process_go_on(tmp_path: Path) -> None:
    first, second = study(tmp_path, 2), study(tmp_path, 2)
    one, two = first.begun(), second.begun()
    assert one is not None
    assert two is not None
    assert [trial.values for trial in (one, two)] == [{"objective.beta": "500"}, {"objective.beta": "2000"}]
    assert first.begun() is second.begun() is None
    two.interrupted(7.0)
    again = first.resumed(1)
    assert (again.values, again.seconds, first.running()) == (two.values, 7.0, [0, 1])
    again.done([1.0, 2.0], 9.0)
    one.failed("no luck", 3.0)
    rows = second.rows()
    assert [row.state for row in rows] == [FAILED, DONE]
    assert (rows[1].metric, rows[1].parts, rows[1].seconds) == (1.5, (1.0, 2.0), 9.0)
    second.retry()
    second.retry()
    assert [(row.values, row.state) for row in first.rows()[2:]] == [(one.values, "waiting")]
    first.plan([{"objective.beta": "500"}] * 3, 3)  # a third is wanted now
    assert len(second.rows()) == 4


def test_a_study_of_something_else_is_refused(tmp_path: Path) -> None:
    study(tmp_path, 2)
    with pytest.raises(
        UsageError, match=r"the study 'one' is of another sweep:\n  of: this -> that\nCall it"
    ):
        study(tmp_path, 2, of="that")
    assert [row.number for row in study(tmp_path, 2, name="other", of="that").rows()] == [0, 1]


def test_tpe_chooses_what_was_not_drawn_and_ends_what_is_worse(tmp_path: Path) -> None:
    found = study(tmp_path, 12, sampler=TPE)
    assert [bool(row.values) for row in found.rows()] == [True] * 10 + [False] * 2
    for number in range(12):
        trial = found.begun()
        assert trial is not None
        is_last = number == 11
        assert trial.report(1, -1.0 if is_last else float(number))
        assert not trial.report(1, 5.0)
        if is_last:
            assert trial.is_worse()
            assert trial.pruned(1.0) == "is ended: worse than the median at validation 1: -1"
        else:
            trial.done([float(number)], 1.0)
    assert found.begun() is None
    rows = found.rows()
    assert all(1e-6 <= float(row.values["optimizer.lr"]) <= 1e-4 for row in rows)
    assert (rows[11].state, rows[11].metric) == (PRUNED, None)


def test_a_line_that_is_being_written_is_left_out(tmp_path: Path) -> None:
    assert written(tmp_path) == {}
    (tmp_path / FILE).write_text('{"step": 4, "value": 0.5}\n{"step": 8, "value": 0.75}\n{"step": 12, "va')
    assert written(tmp_path) == {4: 0.5, 8: 0.75}


@pytest.mark.parametrize(
    ("log", "code", "told"),
    [
        (
            "noise\nalignkit: error: beta must be positive\nTry another\n",
            2,
            "beta must be positive Try another",
        ),
        ("Traceback\nRuntimeError: oh\n\n", 1, "exit code 1: RuntimeError: oh"),
        ("step 5\n", -9, "ended by SIGKILL: step 5"),
        ("", -9, "ended by SIGKILL"),
    ],
)
def test_why_a_process_failed_is_the_end_of_its_log(tmp_path: Path, log: str, code: int, told: str) -> None:
    path = tmp_path / "log"
    path.write_text(log)
    assert processes.reason(path, code) == told


def test_a_lock_is_held_by_one(tmp_path: Path) -> None:
    lock = processes.locked(tmp_path / "lock")
    assert lock is not None
    assert processes.locked(tmp_path / "lock") is None
    assert not processes.is_orphan(tmp_path / "lock")
    processes.own(tmp_path / "lock", {"values": {"a": "1"}})
    assert processes.owned(tmp_path / "lock")["values"] == {"a": "1"}
    assert not processes.is_orphan(tmp_path / "lock")
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    processes.own(tmp_path / "lock", {"pid": dead.pid})
    assert processes.is_orphan(tmp_path / "lock")
