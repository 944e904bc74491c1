"""A save that is cut short: by SIGKILL at a byte of it, by a quota, and by a folder that became read-only."""

import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest

from alignkit.checkpoints import read
from alignkit.module import AlignModule
from tests.integration.conftest import alignkit
from tests.runs import TOY

__all__ = ["alignkit"]
Run = Callable[..., tuple[int, str, str]]

# 20 random bytes of a save, the last of which are the 64 of the hash, which is written last
KILLED = """
import os, random, signal, sys
from pathlib import Path

import torch

from alignkit.checkpoints import link, loaded, tidy, write

folder, draw, opened = Path(sys.argv[1]), random.Random(0), Path.open


class Counted:
    '''A file that ends this process with the byte that it is told to end with.'''

    def __init__(self, file, left):
        self.file, self.left = file, left

    def write(self, piece):
        piece = memoryview(piece)
        self.file.write(piece[: self.left])
        if len(piece) >= self.left:
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= len(piece)

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()


def save(step):
    weights = {f"weight {number}": torch.full((50_000,), float(step)) for number in range(10)}
    write(folder / f"step={step}.ckpt", {"global_step": step, "state_dict": weights})
    link(folder / "last.ckpt", folder / f"step={step}.ckpt")


save(1)
size = (folder / "step=1.ckpt").stat().st_size
for byte in [1, 8, size, *(draw.randrange(size) for _ in range(16)), size + 64]:
    child = os.fork()
    if not child:
        Path.open = lambda path, mode="r", *rest, **options: (
            Counted(opened(path, mode, buffering=0), byte)
            if path.name.startswith(".step=2")  and "w" in mode
            else opened(path, mode, *rest, **options)
        )
        save(2)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    (partial,) = folder.glob(".*.partial")
    assert partial.stat().st_size == min(byte, size), (partial.stat().st_size, byte)
    path, state = loaded(folder / "last.ckpt", "--ckpt_path")
    assert state["global_step"] == 1
    assert all(weight.eq(1).all() for weight in state["state_dict"].values())
    tidy(folder)
    assert sorted(os.listdir(folder)) == ["last.ckpt", "step=1.ckpt"]
    print(byte)
save(2)
assert loaded(folder / "last.ckpt", "--ckpt_path").state["global_step"] == 2
"""


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """A folder on another file system, where there is one."""
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs a second file system at /dev/shm")
    folder = Path(tempfile.mkdtemp(dir=memory))
    yield folder
    shutil.rmtree(folder)


def test_sigkill_at_any_byte_of_a_save_leaves_the_one_before(tmp_path: Path, elsewhere: Path) -> None:
    """With TMPDIR on another file system, where renaming is copying; nothing is ever written there."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", KILLED, str(tmp_path / "checkpoints")],
        env={**os.environ, "TMPDIR": str(elsewhere)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) == 20
    assert not list(elsewhere.iterdir())


TRAINER = """
trainer:
  accelerator: cpu
  devices: 1
  max_steps: 8
  check_val_every_n_epoch: null
  val_check_interval: 2
  logger: false
  enable_progress_bar: false
"""
CONFIG = TOY + TRAINER


class Broken(pl.Callback):
    """Breaks something after the third step."""

    def __init__(self, harm: Callable[[], None]) -> None:
        self.harm = harm

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == 3:
            self.harm()


Fit = Callable[[Callable[[], None]], str]


@pytest.fixture
def fit(alignkit: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fit:
    """A run that something happens to after its first checkpoint, and that must end; what it said."""
    own = AlignModule.configure_callbacks
    (tmp_path / "toy.yaml").write_text(CONFIG)

    def run(harm: Callable[[], None]) -> str:
        monkeypatch.setattr(AlignModule, "configure_callbacks", lambda module: [*own(module), Broken(harm)])
        code, _, err = alignkit("fit", "--config", "toy.yaml", "--run", "run")
        assert code == 2, err
        assert "Traceback" not in err
        return err

    return run


def assert_kept(folder: Path) -> None:
    assert sorted(os.listdir(folder)) == ["epoch=0-step=2.ckpt", "last.ckpt"]
    assert read(folder / "last.ckpt")["global_step"] == 2


def test_a_quota_that_is_reached_ends_a_run_in_words(fit: Fit, tmp_path: Path) -> None:
    limits, folder = resource.getrlimit(resource.RLIMIT_FSIZE), tmp_path / "run/checkpoints"

    def limit() -> None:
        size = (folder / "epoch=0-step=2.ckpt").stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, limits[1]))

    try:
        said = fit(limit)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "cannot save run/checkpoints/epoch=0-step=4.ckpt, " in said
    assert "bytes: File too large\nWhat was saved before is as it was" in said
    assert_kept(folder)


def test_a_folder_that_became_read_only_ends_a_run_in_words(fit: Fit, tmp_path: Path) -> None:
    """For root, to whom permissions mean nothing, by being somebody else."""
    folder, user = tmp_path / "run/checkpoints", os.geteuid()

    def close() -> None:
        folder.chmod(0o555)
        if not user:
            # the way there belongs to root
            for path in (*tmp_path.parents, tmp_path):
                if path.stat().st_uid == 0 and path != path.parent and "pytest" in str(path):
                    path.chmod(0o755)
            os.seteuid(65534)

    try:
        said = fit(close)
    finally:
        if not user:
            os.seteuid(user)
        folder.chmod(0o755)
    assert "cannot save run/checkpoints/epoch=0-step=4.ckpt, " in said
    assert "bytes: Permission denied\nWhat was saved before is as it was" in said
    assert_kept(folder)
