"""A clock that jumps, and logs that cannot be written any more: no run ends of it, and checkpoints stay."""

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from alignkit.checkpoints import read
from alignkit.module import AlignModule
from tests.faults.test_saving import CONFIG, Broken
from tests.integration.conftest import alignkit
from tests.unit.test_checkpoint_file import mounted

__all__ = ["alignkit"]
Run = Callable[..., tuple[int, str, str]]
Fit = Callable[..., tuple[int, str]]
CSV = "--trainer.logger={class_path: lightning.pytorch.loggers.CSVLogger, init_args: {save_dir: logs, "
CSV += "name: '', version: '', flush_logs_every_n_steps: 1}}"
TENSORBOARD = "--trainer.logger={class_path: lightning.pytorch.loggers.TensorBoardLogger, init_args: "
TENSORBOARD += "{save_dir: logs, name: '', version: '', max_queue: 1, flush_secs: 0}}"


@pytest.fixture
def fit(alignkit: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fit:
    """A run that something happens to after its third step; its exit code and what it said."""
    own = AlignModule.configure_callbacks
    (tmp_path / "toy.yaml").write_text(CONFIG)

    def run(harm: Callable[[], Any], *options: str) -> tuple[int, str]:
        monkeypatch.setattr(AlignModule, "configure_callbacks", lambda module: [*own(module), Broken(harm)])
        options = ("--trainer.log_every_n_steps", "1", *options)
        code, _, err = alignkit("fit", "--config", "toy.yaml", *options)
        return code, err

    return run


def assert_same(ours: Path, theirs: Path) -> None:
    expected = load_file(theirs / "toy.safetensors")
    for name, weight in load_file(ours / "toy.safetensors").items():
        assert torch.equal(weight, expected[name]), name


@pytest.mark.parametrize("jump", [-1e9, 1e9])
def test_a_clock_that_jumps_changes_nothing(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jump: float
) -> None:
    """By thirty years, back or forth; the run of before is gone on with by its last checkpoint."""
    assert fit(lambda: None, "--run", "straight")[0] == 0
    now = time.time

    def shift() -> None:
        monkeypatch.setattr(time, "time", lambda: now() + jump)

    code, said = fit(shift, "--run", "run", "--trainer.max_steps", "6")
    assert code == 0, said
    code, said = fit(lambda: None, "--run", "run", "--ckpt_path", "last")
    assert code == 0, said
    assert_same(tmp_path / "run", tmp_path / "straight")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_of_logs_ends_no_run(fit: Fit, tmp_path: Path) -> None:
    """It is said once, and the weights are those of a run that logs."""
    path = tmp_path / "logs/metrics.csv"

    def fill() -> None:
        path.unlink()
        path.symlink_to("/dev/full")

    assert fit(lambda: None, "--run", "straight")[0] == 0
    told = (
        "CSVLogger cannot write to logs: No space left on device; the run goes on, and nothing more is logged"
    )
    with pytest.warns(UserWarning, match=told) as warned:
        code, said = fit(fill, "--run", "run", CSV)
    assert code == 0, said
    assert sum("cannot write" in str(warning.message) for warning in warned) == 1
    assert_same(tmp_path / "logs", tmp_path / "straight")


def test_logs_that_cannot_be_opened_end_no_run(fit: Fit, tmp_path: Path) -> None:
    """A read-only folder, which does not stop root, in the form of one in the file's place, which does."""

    def close() -> None:
        (tmp_path / "logs/metrics.csv").unlink()
        (tmp_path / "logs/metrics.csv").mkdir()

    with pytest.warns(UserWarning, match="CSVLogger cannot write to logs: Is a directory; the run goes on"):
        code, said = fit(close, "--run", "run", CSV)
    assert code == 0, said
    assert read(tmp_path / "logs/checkpoints/last.ckpt")["global_step"] == 8


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 kilobytes for logs."""
    folder = tmp_path / "logs"
    folder.mkdir()
    if os.geteuid() or not mounted(folder, "size=64k"):
        pytest.skip("only root may mount a small disk, and not everywhere")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


# TensorBoard's own thread
@pytest.mark.filterwarnings("ignore:Exception in thread")
def test_a_disk_that_is_full_of_logs_and_checkpoints_ends_a_run_in_words(fit: Fit, small: Path) -> None:
    """Checkpoints lie beside the logs here: it is the next of them that ends the run, and the last stays."""

    def fill() -> None:
        room = shutil.disk_usage(small).free
        (small / "filler").write_bytes(b"0" * room)

    with pytest.warns(UserWarning, match="TensorBoardLogger cannot write to logs: No space left on device"):
        code, said = fit(fill, "--run", "run", TENSORBOARD)
    assert (code, "Traceback" in said) == (2, False), said
    assert "cannot save logs/checkpoints/epoch=0-step=4.ckpt" in said
    assert read(small / "checkpoints/last.ckpt")["global_step"] == 2
