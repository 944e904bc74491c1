"""What needs the Trainer: checkpoints, averaged weights, sample grids, throughput, the progress bar."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from alignkit import checkpoints
from alignkit.averages import Average, exchange, trainable
from alignkit.checkpoints import UnsavedError
from alignkit.data import AlignData
from alignkit.evaluation.compare import audiences, draw
from alignkit.evaluation.sheet import contact_sheet, to_pictures
from alignkit.logs import attempt
from alignkit.module import AlignModule
from alignkit.resuming import Onlooker
from alignkit.signals import cut_short, is_told
from alignkit.strategies import Sharded
from alignkit.types import Batch

Value = TypeVar("Value")
# of what a step saw, by what the progress bar calls it; read again after so many seconds
SHOWN = {"loss": "loss", "margin": "rewards/margins", "accuracy": "rewards/accuracies"}
SHOWN_EVERY = 1.0
# they leave out the Trainer's CheckpointIO, in saving or in loading
PICKLING = (DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy)


class Checkpoints(ModelCheckpoint):
    """What a run leaves to go on from: saved after every validation, on an exception, and when asked.

    ``last.ckpt`` is a link to the latest, also where a resumed run goes on in its folder. An older one goes
    only when a newer one was read back and the link is set to it.

    Args:
        keep: how many of the latest stay, besides those that were given a name of their own.
    """

    def __init__(self, keep: int = 2) -> None:
        # which ones go is decided here; one that is saved anew, after a fallback to an older one, takes the
        # place of the damaged one
        super().__init__(
            save_last="link", save_on_exception=True, save_top_k=-1, enable_version_counter=False
        )
        if keep < 1:
            raise ValueError(f"Checkpoints: keep must be at least 1, got {keep}")
        self.keep = keep
        self._recent: list[str] = []
        self._saved_batches: int | None = None

    @staticmethod
    def check(trainer: pl.Trainer) -> None:
        """Refuses a trainer before it joins others.

        Raises:
            ValueError: its strategy does not let checkpoints be verified.
        """
        if isinstance(trainer.strategy, PICKLING) and not isinstance(trainer.strategy, Sharded):
            raise ValueError(
                f"trainer.strategy: {type(trainer.strategy).__name__} writes and reads pickled checkpoints; "
                "choose auto, ddp or fsdp, or save none: --trainer.enable_checkpointing=false"
            )

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Removes what a killed process left half-written."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and trainer.is_global_zero and self.dirpath is not None:
            checkpoints.tidy(Path(self.dirpath))

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # ``save_as`` may come before the first link, and a checkpoint does not know of the one set to it
        self.last_model_path = self._named(self.CHECKPOINT_NAME_LAST)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        # nothing new to save before the first step
        self._last_global_step_saved, self._saved_batches = trainer.global_step, _batches(trainer)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        if isinstance(exception, UnsavedError) or not self.has_news(trainer):  # nor can it be now
            return
        candidates = self._monitor_candidates(trainer)
        try:
            self._save_checkpoint(trainer, self.format_checkpoint_name(candidates))
            self._save_last_checkpoint(trainer, candidates)
        except UnsavedError as error:  # what it happened to is what the user must hear of
            rank_zero_warn(str(error))

    def save_as(self, trainer: pl.Trainer, name: str) -> None:
        """Saves the run as it is under a name of its own, which no later save removes."""
        path = self._named(name)
        super()._save_checkpoint(trainer, path)
        self._saved_batches = _batches(trainer)
        self._link_checkpoint(trainer, path, self.last_model_path)

    def has_news(self, trainer: pl.Trainer) -> bool:
        """Whether it has trained, be it a micro-step, since it was saved; what trained no more is saved."""
        is_trying: bool = trainer.fast_dev_run  # type: ignore[attr-defined]
        began = self._saved_batches is not None and trainer.state.fn == TrainerFn.FITTING
        return began and not is_trying and self._saved_batches != _batches(trainer)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "recent": self._recent}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        if state_dict["dirpath"] == self.dirpath:
            self._recent = list(state_dict["recent"])

    def _save_checkpoint(self, trainer: pl.Trainer, filepath: str) -> None:
        # before it is saved, so that it knows of itself
        self._recent = [*(path for path in self._recent if path != filepath), filepath]
        super()._save_checkpoint(trainer, filepath)
        self._saved_batches = _batches(trainer)

    def _save_last_checkpoint(self, trainer: pl.Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        super()._save_last_checkpoint(trainer, monitor_candidates)
        # not those of saves that failed
        there = [path for path in self._recent if Path(path).exists()]
        for path in there[: -self.keep]:
            if self._should_remove_checkpoint(trainer, path, there[-1]):
                self._remove_checkpoint(trainer, path)
        self._recent = there[-self.keep :]

    @staticmethod
    def _link_checkpoint(trainer: pl.Trainer, filepath: str, linkpath: str) -> None:
        if trainer.is_global_zero:
            checkpoints.link(Path(linkpath), Path(filepath))
        trainer.strategy.barrier()

    def _named(self, name: str) -> str:
        assert self.dirpath is not None
        return str(Path(self.dirpath, f"{name}{self.FILE_EXTENSION}"))


class EMA(pl.Callback):
    """Exponential moving average of the policy's trainable weights.

    Used for validation and for what a run leaves; training goes on with the raw weights. Name it
    before other callbacks that look at the policy.

    Args:
        decay: share of the old average that a step keeps, in (0, 1); early on less, so that the start is
            forgotten.
    """

    def __init__(self, decay: float = 0.999) -> None:
        super().__init__()
        if not 0 < decay < 1:
            raise ValueError(f"EMA: decay must be between 0 and 1, got {decay}")
        self.decay = decay
        self._average = Average(decay)
        self._step = 0
        self._swapped = False

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self._average.weights:
            self._average.start(trainable(_policy(pl_module)))
            self._step = trainer.global_step

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._follow(trainer, pl_module)  # a checkpoint may be saved after a step and before its average

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self._follow(trainer, pl_module)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._swap(pl_module)
        self._swapped = True

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._swapped = False
        if trainer.state.fn != "validate":  # there no training goes on, and the evaluation comes next
            self._swap(pl_module)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if self._swapped:  # within a validation
            saved, weights = checkpoint["callbacks"], checkpoint["state_dict"]
            state, raw = saved[self.state_key], self._average.weights
            saved[self.state_key] = {**state, "average": {name: weights[f"policy.{name}"] for name in raw}}
            weights |= {f"policy.{name}": weight for name, weight in raw.items()}

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._follow(trainer, pl_module)
        self._swap(pl_module)
        self._average = Average(self.decay)  # from here on the policy is its average

    def restart(self, module: pl.LightningModule) -> None:
        """Leaves the policy as its average, and begins a new one there."""
        self._swap(module)
        self._average.start(trainable(_policy(module)))

    def _follow(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if trainer.global_step == self._step:  # gradients are being accumulated
            return
        self._step = trainer.global_step
        assert isinstance(module, AlignModule)
        self._average.update(trainable(_policy(module)), module.skipped)

    def _swap(self, module: pl.LightningModule) -> None:
        exchange(_policy(module), self._average.weights)

    def state_dict(self) -> dict[str, Any]:
        return {**self._average.state_dict(), "step": self._step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._average.load_state_dict(state_dict)
        self._step = state_dict["step"]


class SampleGrid(Onlooker):
    """Draws the same held-out prompts with the same seeds now and then, base above policy, into TensorBoard.

    Args:
        every: optimizer steps between two grids.
        num_prompts: columns of the grid; 0 draws none.
        num_steps: DDIM steps per image.
        guidance: weight of classifier-free guidance.
        seed: seed of the first image.
    """

    def __init__(
        self,
        every: int = 100,
        num_prompts: int = 8,
        num_steps: int = 20,
        guidance: float = 7.5,
        seed: int = 2000,
    ) -> None:
        super().__init__()
        if every < 1:
            raise ValueError(f"SampleGrid: every must be at least 1, got {every}")
        self.every, self.num_prompts = every, num_prompts
        self.num_steps, self.guidance, self.seed = num_steps, guidance, seed
        self._base: Tensor | None = None
        self._drawn_at = -1

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        due = trainer.global_step % self.every == 0 and trainer.global_step != self._drawn_at
        data, logger = trainer.datamodule, trainer.logger  # type: ignore[attr-defined]
        if not due or not isinstance(logger, TensorBoardLogger):
            return
        assert isinstance(pl_module, AlignModule)
        assert isinstance(data, AlignData)
        self._drawn_at = trainer.global_step
        prompts = data.held_out_prompts()[: self.num_prompts]
        if not prompts:
            return
        policy = pl_module.whole_policy(wanted=trainer.is_global_zero)
        if not trainer.is_global_zero:
            return
        if self._base is None:
            with pl_module.base_network() as base:
                self._base = self._drawn(pl_module, base, prompts, None)
        rows = {"base": self._base}
        with evaluating(policy):
            for name, tokens_ULD in audiences(pl_module, "policy").items():
                rows[name] = self._drawn(pl_module, policy, prompts, tokens_ULD)
        pictures = [to_pictures(row) for row in rows.values() if row is not None]
        if len(pictures) < len(rows):
            return
        sheet = contact_sheet(pictures, list(rows), prompts)
        image_HWC = np.asarray(sheet)
        attempt(
            logger, logger.experiment.add_image, "samples", image_HWC, trainer.global_step, dataformats="HWC"
        )

    def _drawn(
        self, module: AlignModule, network: torch.nn.Module, prompts: list[str], tokens_ULD: Tensor | None
    ) -> Tensor | None:
        """Pictures; None where the run is told to end, which need not wait for them."""
        if is_told():
            return None
        with cut_short():  # nothing but the drawing: the networks are to be left as they are
            return draw(
                module.backbone,
                network,
                prompts,
                images_per_prompt=1,
                seed=self.seed,
                num_steps=self.num_steps,
                guidance=self.guidance,
                tokens_ULD=tokens_ULD,
                label="",
            )[:, 0]
        return None


class Throughput(Onlooker):
    """Logs and shows pairs per second, over all devices, since the last line that was logged."""

    def __init__(self) -> None:
        super().__init__()
        self._since, self._pairs = time.monotonic(), 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._since, self._pairs = time.monotonic(), 0

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        elapsed = time.monotonic() - self._since
        if self._pairs and elapsed > 1:
            # a tensor of the host: Lightning sends a number to the device, and waits for it
            pl_module.log("pairs/s", torch.tensor(self._pairs / elapsed), prog_bar=True)
            self._since, self._pairs = time.monotonic(), 0
        self._pairs += len(batch.prompts) * trainer.world_size


class ProgressBar(RichProgressBar):
    """Lightning's rich bar over the whole run, not the epoch: time spent, time left, what matters here."""

    def __init__(self) -> None:
        super().__init__()
        self._read_at = -math.inf
        self._shown: dict[str, int | str | float | dict[str, float]] = {}

    @property
    def total_train_batches(self) -> int | float:
        trainer = self.trainer
        if trainer.max_steps > 0:
            return trainer.max_steps * trainer.accumulate_grad_batches
        if trainer.max_epochs and trainer.max_epochs > 0:
            return trainer.max_epochs * trainer.num_training_batches
        return super().total_train_batches

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.train_progress_bar_id is None:  # the bar of the first epoch goes on
            super().on_train_epoch_start(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, trainer.fit_loop.total_batch_idx)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_validation_epoch_end(trainer, pl_module)
        if trainer.state.fn == "validate":  # what the evaluation draws and prints comes next
            self._stop_progress()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._read_at = -math.inf
        super().on_train_epoch_end(trainer, pl_module)

    def get_metrics(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """What this process last saw, read once a second: reading waits for the device."""
        if time.monotonic() - self._read_at > SHOWN_EVERY:
            told = super().get_metrics(trainer, pl_module)
            seen = pl_module.seen if isinstance(pl_module, AlignModule) else {}
            shown = {name: seen[key].item() for name, key in SHOWN.items() if key in seen}
            self._shown = {**{k: v for k, v in told.items() if k != "v_num"}, **shown}
            self._read_at = time.monotonic()
        return self._shown

    def track(self, values: Sequence[Value], label: str) -> Iterator[Value]:
        """Yields the values, and shows how far that has come in a line below the run's."""
        if self.progress is None or self.is_disabled:
            yield from values
            return
        task = self._add_task(len(values), label)
        for value in values:
            yield value
            self.progress.advance(task)
            self.refresh()
        self.progress.update(task, visible=False)

    @property
    def predict_description(self) -> str:
        return "drawing"

    def _get_train_description(self, current_epoch: int) -> str:
        return "training"


def _batches(trainer: pl.Trainer) -> int:
    """Micro-steps that a run has done."""
    processed: int = trainer.fit_loop.epoch_loop.batch_progress.total.processed  # type: ignore[attr-defined]
    return processed


def _policy(module: pl.LightningModule) -> torch.nn.Module:
    assert isinstance(module, AlignModule)
    assert module.policy is not None
    return module.policy


@contextmanager
def evaluating(network: torch.nn.Module) -> Iterator[None]:
    """The network in evaluation mode, within a ``with`` block."""
    training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(training)
