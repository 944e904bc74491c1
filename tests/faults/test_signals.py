"""Signals to whole runs: what is saved, how it ends, and that it goes on as if nothing had been."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import lightning.pytorch as pl
import pytest
import torch
from safetensors.torch import load_file

from alignkit.checkpoints import CheckpointFiles, read
from alignkit.cli import main

TOLD = f"{__name__}.Told" if __name__.startswith("tests.") else "tests.faults.test_signals.Told"
# 32 pairs without ties: epochs of 8 micro-steps; 3 batches of held-out pairs
CONFIG = """
seed_everything: 3
objective: {name: DiffusionDPO, beta: 200.0}
sampler: SharedNoise
backbone: {class_path: alignkit.testing.ToyBackbone}
optimizer: {name: AdamW, lr: 1.0e-3}
data:
  train: {class_path: alignkit.testing.ToyPairs, init_args: {count: 40}}
  validation: {class_path: alignkit.testing.ToyPairs, init_args: {count: 15}}
  batch_size: 4
  resolution: 16
evaluation: {max_prompts: 2, images_per_prompt: 1, num_steps: 2, sheet_prompts: 1}
samples: {every: 6, num_prompts: 2, num_steps: 2}
trainer:
  accelerator: cpu
  devices: 1
  max_steps: 14
  log_every_n_steps: 1
  check_val_every_n_epoch: null
  val_check_interval: 6
  enable_progress_bar: false
  callbacks:
  - {class_path: alignkit.callbacks.EMA, init_args: {decay: 0.9}}
"""


class Told(pl.Callback):
    """Sends this process signals when a hook is called for the n-th time; notes what validation found.

    Args:
        hook: name of the hook.
        call: which call of it, from 1.
        numbers: the signals.
    """

    found: ClassVar[dict[int, float]] = {}

    def __init__(self, hook: str = "", call: int = 1, numbers: list[int] | None = None) -> None:
        self.hook, self.call, self.numbers, self._calls = hook, call, numbers or [signal.SIGTERM], 0
        if hook:
            setattr(self, hook, self._count)

    def _count(self, *_: Any, **__: Any) -> None:
        self._calls += 1
        if self._calls == self.call:
            for number in self.numbers:
                signal.raise_signal(number)

    def on_validation_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.found[trainer.global_step] = float(trainer.callback_metrics["val/loss"])


Run = Callable[..., tuple[int, str]]


@pytest.fixture
def fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """`alignkit fit` in this process; gives its exit code and what it said."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy.yaml").write_text(CONFIG)
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.delenv("ALIGNKIT_RUN", raising=False)
        Told.found.clear()
        capfd.readouterr()
        code = main(["fit", "--config", "toy.yaml", "--run", "run", *arguments])
        return code, capfd.readouterr().err

    yield run
    monkeypatch.delenv("ALIGNKIT_RUN", raising=False)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def told(hook: str, call: int = 1, *numbers: int) -> list[str]:
    given = list(numbers or (signal.SIGTERM,))
    options = {"hook": hook, "call": call, "numbers": [int(number) for number in given]}
    return [f"--trainer.callbacks+={TOLD}", *(f"--trainer.callbacks.{k}={v}" for k, v in options.items())]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "toy.safetensors")


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[int, float]]:
    """A run that nobody told anything, and what its validations found."""
    folder = tmp_path_factory.mktemp("straight")
    (folder / "toy.yaml").write_text(CONFIG)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALIGNKIT_RUN", str(folder / "run"))
        Told.found.clear()
        assert main(["fit", "--config", str(folder / "toy.yaml"), f"--trainer.callbacks+={TOLD}"]) == 0
    return folder / "run", dict(Told.found)


@pytest.mark.parametrize(
    ("hook", "call", "step"),
    [
        ("on_train_batch_start", 1, 1),
        ("on_before_backward", 5, 5),
        ("on_before_optimizer_step", 8, 8),
        ("on_train_batch_end", 6, 6),
        ("on_train_epoch_end", 1, 8),
        ("on_train_epoch_start", 2, 9),
        ("on_validation_start", 1, 6),
        ("on_validation_batch_start", 2, 6),
        ("on_validation_batch_end", 3, 6),
        ("on_validation_epoch_end", 2, 12),
        ("on_train_batch_end", 14, 14),
    ],
)
def test_a_run_is_saved_once_and_goes_on_as_if_nothing_had_been(
    fit: Run,
    straight: tuple[Path, dict[int, float]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    hook: str,
    call: int,
    step: int,
) -> None:
    saved: list[str] = []
    save = CheckpointFiles.save_checkpoint

    def noted(self: CheckpointFiles, checkpoint: dict[str, Any], path: str, **options: Any) -> None:
        saved.append(f"{checkpoint['global_step']}")
        save(self, checkpoint, path, **options)

    monkeypatch.setattr(CheckpointFiles, "save_checkpoint", noted)
    code, said = fit(*told(hook, call))
    assert code == 143, said
    assert said.count("once more to stop at once") == 1
    assert "SIGTERM: " in said
    assert "alignkit fit --config run/config.yaml --run run --ckpt_path last" in said
    assert "Traceback" not in said
    last = read(tmp_path / "run/checkpoints/last.ckpt")
    assert last["global_step"] == step
    assert saved == [str(number) for number in (6, 12) if number < step] + [str(step)]
    before = dict(Told.found)
    code, said = fit(f"--trainer.callbacks+={TOLD}", "--ckpt_path", "last")
    assert code == 0, said
    ours, theirs = weights(tmp_path / "run"), weights(straight[0])
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(weight, theirs[name]) for name, weight in ours.items())
    assert {**before, **Told.found} == straight[1]
