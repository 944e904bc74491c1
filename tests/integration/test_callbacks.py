"""Callbacks whose arithmetic a whole run would hide."""

from pathlib import Path
from unittest.mock import Mock

import lightning.pytorch as pl
import pytest
import torch
from torch.testing import assert_close
from torch.utils.data import DataLoader

from alignkit import Batch
from alignkit.callbacks import EMA, ProgressBar, SampleGrid
from alignkit.evaluation import Evaluation
from alignkit.module import AlignModule
from alignkit_diffusers.stable_diffusion import StableDiffusion
from alignkit_diffusion_dpo.objective import DiffusionDPO
from alignkit_standard.sampler import SharedNoise


@pytest.fixture
def module(pipeline: Path) -> AlignModule:
    built = AlignModule(DiffusionDPO(), SharedNoise(), StableDiffusion(str(pipeline)), torch.optim.AdamW)
    built.configure_model()
    return built


def started(module: AlignModule) -> tuple[EMA, Mock, torch.nn.Parameter]:
    """An average that began at 0, and a weight that a step has then moved to 1."""
    weight = module.policy.conv_in.bias  # type: ignore[union-attr]
    assert isinstance(weight, torch.nn.Parameter)
    torch.nn.init.zeros_(weight)
    ema, trainer = EMA(decay=0.9), Mock(global_step=0)
    ema.on_fit_start(trainer, module)
    torch.nn.init.ones_(weight)
    return ema, trainer, weight


def test_average_follows_each_optimizer_step_and_is_shown_only_to_validation(module: AlignModule) -> None:
    """The first update copies the 1; the second, to 2, has decay min(0.9, 2/11): 2/11 + 2 * 9/11 = 20/11.

    A second batch of the same step (accumulation) changes nothing.
    """
    ema, trainer, weight = started(module)
    for step in (1, 2):
        trainer.global_step = step
        torch.nn.init.constant_(weight, step)
        for _ in range(2):
            ema.on_train_batch_end(trainer, module, None, Mock(), 0)
    ema.on_validation_start(trainer, module)
    assert_close(weight.detach(), torch.full_like(weight, 20 / 11))
    ema.on_validation_end(trainer, module)
    assert torch.equal(weight.detach(), torch.full_like(weight, 2.0))


def test_a_run_ends_with_the_average(module: AlignModule) -> None:
    ema, trainer, weight = started(module)
    ema.on_fit_end(trainer, module)
    ema.on_validation_start(trainer, module)
    assert torch.equal(weight.detach(), torch.zeros_like(weight))


def test_validation_alone_keeps_the_average_for_the_evaluation_that_follows(module: AlignModule) -> None:
    ema, trainer, weight = started(module)
    trainer.state.fn = "validate"
    ema.on_validation_start(trainer, module)
    ema.on_validation_end(trainer, module)
    assert torch.equal(weight.detach(), torch.zeros_like(weight))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: EMA(decay=1.0), "EMA: decay must be between 0 and 1, got 1.0"),
        (lambda: SampleGrid(every=0), "SampleGrid: every must be at least 1, got 0"),
        (lambda: Evaluation(num_steps=0), "Evaluation: num_steps must be at least 1, got 0"),
    ],
)
def test_settings_out_of_range_are_refused(build: type, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_the_bar_reads_what_a_step_saw_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading waits for the device, so that no step in between may."""
    now = [100.0]
    monkeypatch.setattr("alignkit.callbacks.time.monotonic", lambda: now[0])
    bar, module = ProgressBar(), Mock(spec=AlignModule)
    trainer = Mock(progress_bar_metrics={"pairs/s": 7.0}, loggers=[])
    module.seen = {"loss": torch.tensor(0.5), "rewards/margins": torch.tensor(0.25), "trained": None}
    assert bar.get_metrics(trainer, module) == {"pairs/s": 7.0, "loss": 0.5, "margin": 0.25}
    now[0], module.seen = 100.9, {"loss": Mock(item=Mock(side_effect=AssertionError))}
    assert bar.get_metrics(trainer, module)["loss"] == 0.5
    now[0], module.seen = 101.1, {"loss": torch.tensor(0.125)}
    assert bar.get_metrics(trainer, module) == {"pairs/s": 7.0, "loss": 0.125}


class Logged(pl.Callback):
    """Keeps what the loggers could be told after each batch, and which weights have gradients."""

    def __init__(self) -> None:
        self.names: list[set[str]] = []
        self.graded: list[list[bool]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, *_: object) -> None:
        results = trainer.fit_loop._results
        self.names.append({name.removeprefix("training_step.") for name in results})
        results.clear()
        (group,) = trainer.optimizers[0].param_groups
        self.graded.append([weight.grad is not None for weight in group["params"]])


@pytest.fixture
def logged(module: AlignModule) -> Logged:
    """Of eight batches, two a step, of which every second one is logged."""
    logged = Logged()
    pictures_KBCHW, numbers_B = torch.zeros(2, 2, 3, 32, 32), torch.arange(2)
    batch = Batch(pictures_KBCHW, ("a pear", "an apple"), numbers_B, torch.zeros_like(numbers_B))
    batches = DataLoader([batch] * 8, batch_size=None)
    pl.Trainer(
        accelerator="cpu",
        max_steps=4,
        accumulate_grad_batches=2,
        log_every_n_steps=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[logged],
    ).fit(module, batches)
    return logged


TRAINER_WARNS = (
    r"ignore:.*isinstance\(treespec, LeafSpec\)",
    "ignore:.*does not have many workers",
    "ignore:.*have no `val_dataloader`",
)


@pytest.mark.filterwarnings(*TRAINER_WARNS)
def test_only_the_steps_that_loggers_write_down_are_logged(logged: Logged) -> None:
    """The third and fourth of four batches."""
    assert [bool(names) for names in logged.names] == [False, False, True, True] * 2
    assert {"loss", "winner_mse", "rewards/margins"} <= logged.names[2]


@pytest.mark.filterwarnings(*TRAINER_WARNS)
def test_gradients_are_freed_with_their_step(logged: Logged) -> None:
    """No memory is held for them in the next forward pass; while they are accumulated there are all."""
    assert [(any(graded), all(graded)) for graded in logged.graded] == [(True, True), (False, False)] * 4
