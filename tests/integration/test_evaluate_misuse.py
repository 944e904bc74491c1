"""`alignkit evaluate` where folders, files and options are not what they should be."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from torch import Tensor

from alignkit.evaluation.record import Record
from alignkit.evaluation.report import read
from alignkit.testing import ToyBackbone
from tests.integration.test_evaluate import BLUENESS, Command, draws, evaluate, report, run

__all__ = ["draws", "run"]  # fixtures

Draws = list[list[tuple[str, int]]]


def pictures(folder: Path) -> list[Path]:
    return sorted((folder / "pictures" / "aligned").iterdir())


@pytest.mark.parametrize(
    "harm",
    [
        lambda path, other: path.write_bytes(path.read_bytes()[:60]),
        lambda path, other: path.write_bytes(b""),
        lambda path, other: shutil.copy(other, path),
        lambda path, other: path.unlink(),
    ],
    ids=["truncated", "empty", "another", "deleted"],
)
def test_a_picture_that_is_not_the_one_that_was_judged_is_drawn_again(
    alignkit: Command, run: Path, tmp_path: Path, draws: Draws, harm: Callable[[Path, Path], object]
) -> None:
    """Scores of one picture do not stand beside another, and no other picture is judged in its place."""
    evaluate(alignkit)
    first, second, *_ = pictures(tmp_path / "out")
    whole, content = report(tmp_path / "out"), first.read_bytes()
    harm(first, second)
    is_there = first.exists()
    draws.clear()
    said = evaluate(alignkit, "--reward", BLUENESS)
    assert ("1 pictures are not as they were drawn and judged; they are drawn again" in said) == is_there
    assert "1 of 24 pictures to draw, 23 that are there to judge" in said
    assert sum(map(len, draws)) == 1
    assert first.read_bytes() == content
    evaluate(alignkit)
    assert report(tmp_path / "out") == whole


def test_one_model_under_two_names_is_kept_under_both(
    alignkit: Command, run: Path, tmp_path: Path, draws: Draws
) -> None:
    assert "aligned and other are the same model" in evaluate(alignkit, "--model", "other=runs/demo")
    draws.clear()
    assert "0 of 36 pictures to draw" in evaluate(alignkit, "--model", "other=runs/demo")


def test_scores_that_are_none_are_passed_over(
    alignkit: Command, run: Path, tmp_path: Path, draws: Draws
) -> None:
    """A table of something else, and one with a byte changed among its figures."""
    evaluate(alignkit)
    whole = report(tmp_path / "out")
    scores = tmp_path / "out" / "scores"
    pq.write_table(pa.table({"a": [1]}), scores / "mine.parquet")
    (path,) = (path for path in sorted(scores.iterdir())[:1])
    data = bytearray(path.read_bytes())
    data[len(data) // 4] ^= 255
    path.write_bytes(data)
    draws.clear()
    assert "12 of 24 pictures to draw" in evaluate(alignkit)
    assert report(tmp_path / "out") == whole


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("backbone: [\n", "runs/demo/config.yaml, line 2, column 1: is no YAML"),
        ("", "runs/demo/config.yaml: is empty"),
        ("just text", "runs/demo/config.yaml: must map keys to values"),
    ],
)
def test_a_run_whose_config_cannot_be_read_is_a_mistake(
    alignkit: Command, run: Path, content: str, message: str
) -> None:
    (run / "config.yaml").write_text(content)
    for command in (("evaluate",), ("generate", "--prompt", "x"), ("pairs", "--prompt", "x", "--out", "p")):
        code, _, err = alignkit(*command, "--run", "runs/demo")
        assert code == 2
        assert message in err


def test_a_checkpoint_that_cannot_be_read_is_a_mistake(alignkit: Command, run: Path) -> None:
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "last.ckpt").write_bytes(b"PK\x03\x04 cut off")
    code, _, err = alignkit("evaluate", "--model", "base", "--model", "runs/demo@last")
    assert code == 2
    assert "--model runs/demo@last: runs/demo/checkpoints/last.ckpt is a pickle" in err
    assert len(err.splitlines()) <= 5


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--device", "gpu"), "--device: 'gpu' is no device; here are cpu"),
        (("--device", "cpu:1"), "--device: cpu:1: there are 1 here"),
        (("--device", "cpu:0", "--devices", "2"), "--device cpu:0 names one of them"),
    ],
)
def test_devices_that_are_not_here_are_mistakes(
    alignkit: Command, run: Path, more: tuple[str, ...], message: str
) -> None:
    code, _, err = alignkit("evaluate", "--run", "runs/demo", *more)
    assert code == 2
    assert message in err


@pytest.mark.parametrize("content", [None, '{"settings":', "[]", '{"settings": [], "models": 3}'])
def test_a_lost_record_loses_nothing(
    alignkit: Command, run: Path, tmp_path: Path, draws: Draws, content: str | None
) -> None:
    evaluate(alignkit)
    whole, path = report(tmp_path / "out"), tmp_path / "out" / "evaluation.json"
    written = json.loads(path.read_text())
    path.unlink()
    if content is not None:
        path.write_text(content)
    assert "0 of 24 pictures to draw" in evaluate(alignkit)
    found = report(tmp_path / "out")
    # what drew them stood in the record alone, and nobody guesses it
    assert found["manifest"].pop("drawn_with") == []
    del whole["manifest"]["drawn_with"], written["environments"]
    assert found == whole
    again = json.loads(path.read_text())
    assert again.pop("environments") == []
    assert again == written


def test_settings_bind_only_what_was_drawn(alignkit: Command, run: Path, tmp_path: Path) -> None:
    """A guidance that no model bears is not what the folder is of for ever."""
    code, _, err = alignkit("evaluate", "--run", "runs/demo", "--out", "out", "--guidance", "1e39")
    assert code == 2
    assert "--model base: draws pictures of values that are no numbers" in err
    assert "--guidance 1e+39" in err
    assert not list((tmp_path / "out").rglob("*.png"))
    evaluate(alignkit)


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("a_file", "--out a_file: give another folder\nNot a directory"),
        ("a_file/sub", "--out a_file/sub: give another folder\nNot a directory"),
        ("x" * 300, "File name too long"),
        ("out", "--out out: cannot be written to; give another folder\n[Errno 21] Is a directory"),
    ],
)
def test_a_folder_that_cannot_be_written_is_a_mistake(
    alignkit: Command, run: Path, tmp_path: Path, out: str, message: str
) -> None:
    (tmp_path / "a_file").touch()
    (tmp_path / "out" / "report.json").mkdir(parents=True)
    code, _, err = alignkit("evaluate", "--run", "runs/demo", "--out", out)
    assert code == 2
    assert message in err


def test_a_folder_is_one_process_s_at_a_time(alignkit: Command, run: Path, tmp_path: Path) -> None:
    evaluate(alignkit)
    with Record(tmp_path / "out", {}).held():
        code, _, err = alignkit("evaluate", "--run", "runs/demo", "--out", "out")
    assert code == 2
    assert "--out out: another process is at work in it" in err
    evaluate(alignkit)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_who_is_told_to_stop_says_that_it_goes_on(
    alignkit: Command, run: Path, draws: Draws, monkeypatch: pytest.MonkeyPatch, number: int, code: int
) -> None:
    generate = ToyBackbone.generate

    def stopped(self: ToyBackbone, *arguments: Any, **options: Any) -> Tensor:
        if len(draws) == 2:
            os.kill(os.getpid(), number)
        return generate(self, *arguments, **options)

    monkeypatch.setattr(ToyBackbone, "generate", stopped)
    ended = alignkit("evaluate", "--run", "runs/demo", "--out", "out", "--batch-size", "4")
    assert (ended[0], "call this again to go on" in ended[2]) == (code, True)
    monkeypatch.setattr(ToyBackbone, "generate", generate)
    # the batch at hand was drawn and judged
    assert "12 of 24 pictures to draw" in evaluate(alignkit, "--batch-size", "4")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--model", "base", "--model", "runs/nope"),
            "None of base, runs/nope is a run with held-out prompts",
        ),
        (("--model", "base"), "--model: there is only 'base'; give another one to compare with"),
        (("--run", "runs/demo", "--model", ""), "--model '': names no model; give MODEL or NAME=MODEL"),
        (("--run", "runs/demo", "--model", "x="), "--model 'x=': names no model"),
        (("--run", "runs/demo", "--model", "runs/demo/last.ckpt"), "is a checkpoint; name it by its run"),
        (
            ("--run", "runs/demo", "--reward", "{factor: 1}"),
            "--reward: must be NAME or {name: NAME, ...}, got",
        ),
        (("--run", "runs/demo", "--reward", "{}"), "--reward: must be NAME or {name: NAME, ...}, got '{}'"),
        (
            ("--run", "runs/demo", "--features", "{}"),
            "--features: must be NAME or {name: NAME, ...}, got '{}'",
        ),
        (("--run", "runs/demo", "--features", ""), "unknown features ''"),
        (("--run", "runs/demo", "--trained-on", "Rednes"), "'Rednes'; did you mean Redness?"),
        (("--run", "runs/demo", "--trained-on", "aligned="), "no reward is named ''"),
        (("--run", "runs/demo", "--max-prompts", "1"), "--max-prompts must be at least 2, got 1"),
        (("--run", "runs/demo", "--suite", "one.txt"), "--suite one: one prompt alone"),
        (
            ("--run", "runs/demo", "--seeds", "99999999999"),
            "--seeds 99999999999: makes 1199999999988 pictures",
        ),
    ],
)
def test_slips_are_told_before_anything_is_drawn(
    alignkit: Command, run: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    (run / "last.ckpt").touch()
    (tmp_path / "one.txt").write_text("a cat\n")
    code, _, err = alignkit("evaluate", *arguments)
    assert code == 2
    assert message in err
    assert len(err.splitlines()) <= 5
    assert not (tmp_path / "evaluations").exists()


def test_prompts_are_named_by_the_config_that_they_are_of(
    alignkit: Command, run: Path, tmp_path: Path
) -> None:
    (tmp_path / "other.yaml").write_text((run / "config.yaml").read_text())
    evaluate(alignkit, "--config", "other.yaml")
    assert read(tmp_path / "out").manifest["suite"]["name"] == "held-out prompts of other.yaml"
