"""What is done when winner and loser both get less likely."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_warn

from alignkit.averages import Snapshots
from alignkit.callbacks import EMA
from alignkit.checkpoints.folder import in_folder
from alignkit.checkpoints.forms import step
from alignkit.guards.stopping import StoppedError
from alignkit.module import AlignModule

ADVICE = "A lower learning rate, a larger beta or fewer steps keep it nearer to the reference"


class Alarm(NamedTuple):
    """What is wrong, and since when.

    Args:
        told: what is wrong.
        since: the first of the steps in a row that it was seen in, from 1.
    """

    told: str
    since: int


class Action(ABC):
    """One way to act.

    Args:
        most: how often at most.
    """

    def __init__(self, most: int) -> None:
        self.most, self.times = most, 0

    @abstractmethod
    def __call__(self, trainer: pl.Trainer, module: AlignModule, alarm: Alarm) -> bool:
        """Acts; returns whether that changed anything, so that one must look anew.

        Raises:
            StoppedError: the run is to end.
        """


class Warn(Action):
    """Says so."""

    def __call__(self, trainer: pl.Trainer, module: AlignModule, alarm: Alarm) -> bool:
        self.times += 1
        rank_zero_warn(f"{alarm.told}\n{ADVICE}")
        return False


class LowerLR(Action):
    """Halves the learning rate; when that was done often enough, says so alone."""

    def __call__(self, trainer: pl.Trainer, module: AlignModule, alarm: Alarm) -> bool:
        if self.times == self.most:
            rank_zero_warn(f"{alarm.told}; the learning rate was halved {self.times} times\n{ADVICE}")
            return False
        self.times += 1
        _halve(trainer, module, [group["lr"] for group in _groups(trainer)])
        rank_zero_warn(f"{alarm.told}; the learning rate is halved, for the {_nth(self.times)} time")
        return True


class RollBack(Action):
    """Goes back to the weights of the last good checkpoint with half the learning rate; the data goes on.

    Weights, optimizer and averages go back. A good one was saved before what is wrong began.
    """

    def __call__(self, trainer: pl.Trainer, module: AlignModule, alarm: Alarm) -> bool:
        if self.times == self.most:
            raise StoppedError(f"{alarm.told}, though the run was rolled back {self.times} times\n{ADVICE}")
        self.times += 1
        path, checkpoint = self._good(trainer, alarm)
        rates = [group["lr"] for group in _groups(trainer)]
        module.on_load_checkpoint(checkpoint)
        trainer.strategy.load_model_state_dict(checkpoint, strict=module.strict_loading)
        trainer.strategy.load_optimizer_state_dict(checkpoint)
        _put_averages_back(trainer, module, checkpoint)
        _halve(trainer, module, rates)
        rank_zero_warn(
            f"{alarm.told}; ROLLED BACK to {path.name}, with half the learning rate, for the "
            f"{_nth(self.times)} time; the data goes on"
        )
        return True

    @staticmethod
    def _good(trainer: pl.Trainer, alarm: Alarm) -> tuple[Path, dict[str, Any]]:
        saver = trainer.checkpoint_callback
        folder = saver.dirpath if isinstance(saver, ModelCheckpoint) else None
        saved = [(step(path), path) for path in (in_folder(Path(folder)) if folder else [])]
        for number, path in sorted(saved, reverse=True):
            if 0 <= number < alarm.since:
                try:
                    return path, trainer.strategy.load_checkpoint(path)
                except ValueError:  # it is damaged
                    continue
        raise StoppedError(
            f"{alarm.told}\nThere is no good checkpoint of before step {alarm.since} to roll back to: save "
            f"more often, by trainer.val_check_interval\n{ADVICE}"
        )


class Stop(Action):
    """Ends the run, which is saved as it is."""

    def __call__(self, trainer: pl.Trainer, module: AlignModule, alarm: Alarm) -> bool:
        self.times += 1
        raise StoppedError(f"{alarm.told}; the run stops here, as guards.displacement asks\n{ADVICE}")


def _groups(trainer: pl.Trainer) -> list[dict[str, Any]]:
    return [group for optimizer in trainer.optimizers for group in optimizer.param_groups]


def _halve(trainer: pl.Trainer, module: AlignModule, rates: list[float]) -> None:
    """Halves the learning rate, at once and for the schedule."""
    module.lr_scale /= 2
    for group, rate in zip(_groups(trainer), rates, strict=True):
        group["lr"] = rate / 2


def _put_averages_back(trainer: pl.Trainer, module: AlignModule, checkpoint: dict[str, Any]) -> None:
    states = checkpoint["callbacks"]
    module.skipped = states["Guards"]["skipped"].to(module.device)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        state = states.get(callback.state_key)
        if not state or not isinstance(callback, EMA | Snapshots):
            continue
        if state["step"] == checkpoint["global_step"]:
            callback.load_state_dict({**state, "step": trainer.global_step})
        else:  # it was saved after the step and before its averages
            callback.load_state_dict(state)
            callback.on_train_start(trainer, module)
    # averages that have not seen this step yet must not take it in
    module.skipped = torch.ones_like(module.skipped)


def _nth(number: int) -> str:
    return {1: "first", 2: "second", 3: "third"}.get(number, f"{number}th")
