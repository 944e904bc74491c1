"""Checkpoints of whole runs: what stands in them, which ones stay, and what a run goes on from."""

import os
import shutil
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from alignkit.checkpoints import CheckpointFiles, file, read
from tests.runs import straight_run, written
from tests.unit.test_checkpoint_file import Canary
from tests.unit.test_checkpoint_values import assert_same

Run = Callable[..., tuple[int, str, str]]

# 8 steps, saved every second one; an epoch has 6
CONFIG = """
seed_everything: 3
objective: {{name: DiffusionDPO, beta: 200.0}}
sampler: SharedNoise
backbone: {{name: StableDiffusion, path: {pipeline}, caption_dropout: 0.2}}
optimizer: {{name: AdamW, lr: 1.0e-3}}
model: {{warmup_steps: 3}}
data:
  train: {{class_path: tests.integration.conftest.NoisyPairs}}
  validation: {{class_path: tests.integration.conftest.NoisyPairs, init_args: {{count: 20}}}}
  batch_size: 8
  resolution: 16
evaluation: {{max_prompts: 0}}
samples: {{num_prompts: 0}}
trainer:
  accelerator: cpu
  devices: 1
  max_steps: 8
  log_every_n_steps: 1
  check_val_every_n_epoch: null
  val_check_interval: 2
  limit_val_batches: 1
  enable_progress_bar: false
  callbacks:
  - {{class_path: alignkit.callbacks.EMA, init_args: {{decay: 0.9}}}}
"""
LAST = "run/checkpoints/last.ckpt"
STAY = ["epoch=0-step=6.ckpt", "epoch=1-step=8.ckpt", "last.ckpt"]


@pytest.fixture
def config(pipeline: Path, tmp_path: Path) -> str:
    return written(tmp_path, CONFIG.format(pipeline=pipeline))


@pytest.fixture(scope="module")
def straight(pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing happened to."""
    return straight_run(tmp_path_factory.mktemp("straight"), CONFIG.format(pipeline=pipeline))


def weights(run: Path) -> dict[str, Tensor]:
    return load_file(run / "unet" / "diffusion_pytorch_model.safetensors")


def assert_same_run(first: Path, second: Path) -> None:
    ours, theirs = weights(first), weights(second)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(weight, theirs[name]) for name, weight in ours.items())


def spoil(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


LORA = ("--backbone.lora.rank", "2")
ROUNDS = ("--sampler", "SelfPlay", "--sampler.rounds", "2", "--sampler.num_steps", "1")
FROZEN = ("--reference", "alignkit.policy.FrozenCopy")
KINDS: dict[str, tuple[str, ...]] = {
    "full, average, snapshots": ("--weighting", "MinorityAware"),
    "adapters, average, rounds, mixed precision": (
        *LORA,
        *FROZEN,
        *ROUNDS,
        "--trainer.precision",
        "bf16-mixed",
    ),
    "adafactor, other callbacks": (
        *("--optimizer", "Adafactor", "--optimizer.lr", "1.0e-3"),
        "--trainer.callbacks+=lightning.pytorch.callbacks.EarlyStopping",
        "--trainer.callbacks.monitor=val/rewards/margins",
        "--trainer.callbacks+=lightning.pytorch.callbacks.ModelCheckpoint",
        "--trainer.callbacks.monitor=val/rewards/margins",
        "--trainer.callbacks.filename=best",
    ),
}


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_all_that_a_run_saves_comes_back(
    alignkit: Run, config: str, options: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[Path, dict[str, Any]] = {}
    save = CheckpointFiles.save_checkpoint

    def noted(self: CheckpointFiles, checkpoint: dict[str, Any], path: str, **options: Any) -> None:
        given[Path(path)] = deepcopy(checkpoint)
        save(self, checkpoint, path, **options)

    monkeypatch.setattr(CheckpointFiles, "save_checkpoint", noted)
    short = ("--trainer.max_steps", "4", "--run", "run")
    code, _, err = alignkit("fit", "--config", config, *options, *short)
    assert code == 0, err
    kept = [path for path in given if path.exists()]
    assert len(kept) >= 2
    for path in kept:
        assert_same(given[path], read(path))
    state = given[kept[-1]]
    assert {"state_dict", "optimizer_states", "lr_schedulers", "callbacks", "loops"} <= state.keys()
    assert all(name.startswith("policy.") for name in state["state_dict"])


def test_newest_two_stay_named_by_step(straight: Path) -> None:
    assert sorted(os.listdir(straight / "checkpoints")) == STAY
    assert (straight / "checkpoints" / "last.ckpt").resolve().name == "epoch=1-step=8.ckpt"
    assert [read(straight / "checkpoints" / name)["global_step"] for name in STAY] == [6, 8, 8]


def test_resumed_run_goes_on_with_what_stays(
    alignkit: Run, config: str, straight: Path, tmp_path: Path
) -> None:
    """What a killed process left half-written is gone, and the two that it had go as newer ones come."""
    stop = ("--run", "run", "--trainer.max_steps", "4")
    code, _, err = alignkit("fit", "--config", config, *stop)
    assert code == 0, err
    folder = tmp_path / "run" / "checkpoints"
    assert sorted(os.listdir(folder)) == ["epoch=0-step=2.ckpt", "epoch=0-step=4.ckpt", "last.ckpt"]
    (folder / ".epoch=0-step=6.ckpt.partial").write_bytes(b"half")
    code, _, err = alignkit("fit", "--config", config, "--run", "run", "--ckpt_path", "last")
    assert code == 0, err
    assert sorted(os.listdir(folder)) == STAY
    assert_same_run(straight, tmp_path / "run")


@pytest.mark.parametrize(
    ("called", "harm", "told"),
    [
        ("last", Path.unlink, "cannot be read: No such file"),
        ("last", lambda path: os.truncate(path, 0), "is no checkpoint of alignkit"),
        (LAST, spoil, "is damaged or cut off"),
        (LAST, lambda path: os.truncate(path, 1000), "is damaged or cut off"),
    ],
    ids=["gone", "empty", "a flipped bit", "cut off"],
)
def test_damaged_last_goes_back_loudly_and_ends_the_same(
    alignkit: Run,
    config: str,
    straight: Path,
    tmp_path: Path,
    called: str,
    harm: Callable[[Path], None],
    told: str,
) -> None:
    shutil.copytree(straight, tmp_path / "run", symlinks=True)
    harm(tmp_path / "run/checkpoints/epoch=1-step=8.ckpt")
    with pytest.warns(UserWarning, match=rf"last\.ckpt .*{told}.* GOING BACK to .*epoch=0-step=6\.ckpt"):
        code, _, err = alignkit("fit", "--config", config, "--run", "run", "--ckpt_path", called)
    assert code == 0, err
    assert sorted(os.listdir(tmp_path / "run" / "checkpoints")) == STAY
    assert read(tmp_path / LAST)["global_step"] == 8
    assert_same_run(straight, tmp_path / "run")


def test_damaged_one_that_was_named_is_refused(
    alignkit: Run, config: str, straight: Path, tmp_path: Path
) -> None:
    shutil.copytree(straight, tmp_path / "run", symlinks=True)
    path = "run/checkpoints/epoch=1-step=8.ckpt"
    spoil(tmp_path / path)
    for command in ("fit", "validate"):
        code, _, err = alignkit(command, "--config", config, "--run", "run", "--ckpt_path", path)
        assert code == 2
        assert f"--ckpt_path: {path} is damaged or cut off: it has not the sha256" in err


@pytest.mark.parametrize(
    ("command", "path", "told"),
    [
        ("fit", "run/checkpoints/step=6.ckpt", "beside it; a run's own stand in RUN/checkpoints/"),
        ("fit", "run/checkpoints", "--ckpt_path: there is no 'run/checkpoints'"),
        ("fit", "https://example.org/last.ckpt", "--ckpt_path: there is no 'https:"),
        (
            "validate",
            "last",
            "--ckpt_path last: of which run? Give the file, such as RUN/checkpoints/last.ckpt",
        ),
    ],
)
def test_missing_checkpoint_is_refused(
    alignkit: Run, config: str, straight: Path, tmp_path: Path, command: str, path: str, told: str
) -> None:
    shutil.copytree(straight, tmp_path / "run", symlinks=True)
    code, _, err = alignkit(command, "--config", config, "--ckpt_path", path)
    assert code == 2
    assert told in err
    assert not (tmp_path / "runs").exists()


def test_pickle_is_refused_and_not_run(alignkit: Run, config: str, tmp_path: Path) -> None:
    canary, path = tmp_path / "canary", tmp_path / "old.ckpt"
    torch.save({"state_dict": {}, "hyper_parameters": Canary(canary)}, path)
    for command in ("fit", "validate"):
        code, _, err = alignkit(command, "--config", config, "--ckpt_path", str(path))
        assert code == 2
        assert "old.ckpt is a pickle, as torch.save and earlier versions wrote it" in err
    assert not canary.exists()


def test_checkpoint_changes_no_setting(alignkit: Run, config: str, straight: Path, tmp_path: Path) -> None:
    """Lightning takes ``hyper_parameters`` over what the config says."""
    state = read(straight / "checkpoints" / "last.ckpt")
    file.write(tmp_path / "x.ckpt", {**state, "hyper_parameters": {"warmup_steps": 77}})
    code, _, err = alignkit("fit", "--config", config, "--run", "run", "--ckpt_path", "x.ckpt")
    assert code == 0, err
    assert "warmup_steps: 3" in (tmp_path / "run" / "config.yaml").read_text()


def test_full_disk_ends_the_run_in_words_and_keeps_what_was_saved(
    alignkit: Run, config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage, asked = shutil.disk_usage, []

    def filling(folder: Path) -> Any:
        asked.append(folder)
        return usage(folder)._replace(free=10**12 if len(asked) < 2 else 1234)

    monkeypatch.setattr(file.shutil, "disk_usage", filling)
    code, _, err = alignkit("fit", "--config", config, "--run", "run")
    assert code == 2
    assert "cannot save run/checkpoints/epoch=0-step=4.ckpt, " in err
    assert "bytes: only 1,234 bytes are free there" in err
    assert "What was saved before is as it was" in err
    folder = tmp_path / "run" / "checkpoints"
    assert sorted(os.listdir(folder)) == ["epoch=0-step=2.ckpt", "last.ckpt"]
    assert read(folder / "last.ckpt")["global_step"] == 2
    assert len(asked) == 2  # and no second attempt


def test_error_is_told_where_no_checkpoint_can_be_saved_for_it(
    alignkit: Run, config: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from alignkit.module import AlignModule

    step = AlignModule.training_step

    def failing(self: AlignModule, *arguments: Any) -> Any:
        if self.global_step == 1:
            monkeypatch.setattr(file.shutil, "disk_usage", lambda folder: usage._replace(free=0))
            raise RuntimeError("the network fell off")
        return step(self, *arguments)

    usage = shutil.disk_usage("/")
    monkeypatch.setattr(AlignModule, "training_step", failing)
    with (
        pytest.warns(UserWarning, match="only 0 bytes are free there"),
        pytest.raises(RuntimeError, match="the network fell off"),
    ):
        alignkit("fit", "--config", config, "--run", "run")


def test_strategy_that_pickles_is_refused(alignkit: Run, config: str, tmp_path: Path) -> None:
    strategy = "--trainer.strategy={class_path: lightning.pytorch.strategies.ModelParallelStrategy}"
    code, _, err = alignkit("fit", "--config", config, strategy)
    assert code == 2
    assert "trainer.strategy: ModelParallelStrategy writes and reads pickled checkpoints" in err
    assert not torch.distributed.is_initialized()
