"""`alignkit evaluate` where folders, files and options are not what they should be."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

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
    assert "--model runs/demo@last: runs/demo/checkpoints/last.ckpt cannot be read" in err
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
