"""The guards of a run, as one callback."""

from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.optim import Optimizer

from alignkit.averages import trainable
from alignkit.checkpoints import UnsavedError
from alignkit.guards.actions import Action, Alarm, LowerLR, RollBack, Stop, Warn
from alignkit.guards.displacement import Displacement
from alignkit.guards.journal import FILE, Journal
from alignkit.guards.numbers import not_finite, total_norm
from alignkit.guards.record import Step
from alignkit.guards.spikes import Spikes
from alignkit.guards.updates import scales, way
from alignkit.guards.window import CHANGES, Window
from alignkit.mistakes import listed
from alignkit.module import AlignModule
from alignkit.rounds import Rounds
from alignkit.types import Batch

READ_EVERY = 50  # steps, where nothing is logged
ACTIONS: dict[str, type[Action]] = {"warn": Warn, "lower_lr": LowerLR, "roll_back": RollBack, "stop": Stop}


class Guards(pl.Callback):
    """Looks at every step, and acts when one goes wrong; says so on the screen and in ``RUN/guards.jsonl``.

    What it sees stays on the device until the run logs, validates or saves; optimizers that are not fused
    wait for the device at every step. Loss and gradient norm are those of the whole step, before clipping.

    Args:
        nonfinite: what to do about a step whose loss or gradient is not finite: ignore; skip leaves its
            update out, and all else goes on. With 16-mixed, loss scaling does that.
        max_skipped: after so many steps in a row whose update was left out, the run stops.
        spikes: what to do about a step whose loss or gradient norm is far above those of the latest steps:
            ignore; warn; skip leaves its update out. In diffusion losses differ widely between batches and
            levels of noise, so that a spike need not be a fault, and skipping them favours what is easy.
        spike_sigmas: how many standard deviations above the mean is far.
        spike_window: how many steps are the latest; nothing is a spike until half of them are there.
        displacement: what to do when the errors of winner and loser both lie far above the reference's:
            ignore; warn; lower_lr halves the learning rate; roll_back goes back to the weights of the last
            good checkpoint, too; stop ends the run.
        displacement_threshold: how far, as a share of the reference's error. Training on pairs of
            the embedded default comes to about 1.6, and past 3 at twice its learning rate.
        displacement_window: for how many steps on end.
        max_actions: how often the learning rate is halved, or the run rolled back, before it stops.
    """

    def __init__(
        self,
        nonfinite: Literal["ignore", "skip"] = "skip",
        max_skipped: int = 10,
        spikes: Literal["ignore", "warn", "skip"] = "warn",
        spike_sigmas: float = 6.0,
        spike_window: int = 128,
        displacement: Literal["ignore", "warn", "lower_lr", "roll_back", "stop"] = "warn",
        displacement_threshold: float = 2.0,
        displacement_window: int = 50,
        max_actions: int = 3,
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("max_skipped", max_skipped, 1),
            ("spike_window", spike_window, 2),
            ("displacement_window", displacement_window, 1),
            ("max_actions", max_actions, 1),
        ):
            if value < least:
                raise ValueError(f"Guards: {name} must be at least {least}, got {value}")
        for name, share in (
            ("spike_sigmas", spike_sigmas),
            ("displacement_threshold", displacement_threshold),
        ):
            if not share > 0:
                raise ValueError(f"Guards: {name} must be positive, got {share}")
        self.nonfinite, self.spikes, self.displacement = nonfinite, spikes, displacement
        self._spikes = Spikes(spike_window, spike_sigmas)
        self._displacement = Displacement(displacement_window, displacement_threshold)
        self._action = ACTIONS.get(displacement, Warn)(max_actions)
        self._on = {nonfinite, spikes, displacement} != {"ignore"}
        self._journal, self._window = Journal(max_skipped), Window()
        self._batch: Batch | None = None
        self._latest: Step | None = None
        self._skipped = torch.zeros((), dtype=torch.bool)
        self._totals_2 = torch.zeros(2)  # since the run began: left out, spikes
        self._alarmed = self._told = False
        self._trainer: pl.Trainer | None = None
        self._lr_scale = 1.0
        self._loaded_window: dict[str, Any] = {}
        self._rounds: Rounds | None = None
        self._round = 0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuses what does not go together.

        Raises:
            ValueError: updates are already left out by another, or a round cannot be rolled back.
        """
        if stage != "fit":
            return
        if self.spikes == "skip" and scales(trainer):
            raise ValueError(
                "guards.spikes: skip does not go with trainer.precision 16-mixed, whose loss scaling decides "
                "which updates are left out; choose warn, or bf16-mixed"
            )
        callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        self._rounds = next((callback for callback in callbacks if isinstance(callback, Rounds)), None)
        if self.displacement != "roll_back":
            return
        if self._rounds is not None:
            raise ValueError(
                "guards.displacement: roll_back does not go with training in rounds, where the reference "
                "changes, too; choose lower_lr or stop"
            )
        if trainer.checkpoint_callback is None:
            raise ValueError("guards.displacement: roll_back needs checkpoints; choose lower_lr or stop")

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, AlignModule)
        self._trainer, device = trainer, pl_module.device
        self._spikes.to(device)
        self._displacement.to(device)
        self._totals_2 = self._totals_2.to(device)
        self._window.load_state_dict(self._loaded_window, device)
        pl_module.lr_scale, pl_module.skipped = self._lr_scale, self._skipped.to(device)
        self._round = self._rounds.round if self._rounds else 0

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        self._batch = batch
        if batch_idx % trainer.accumulate_grad_batches == 0:  # also where a step is begun anew
            self._window = Window()

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        assert isinstance(pl_module, AlignModule)
        if self._rounds and self._rounds.round != self._round:  # against another reference all is different
            self._round = self._rounds.round
            self._spikes.forget()
            self._displacement.forget()
        if self._on and self._batch is not None:
            self._window.add(self._batch, pl_module.seen)
            self._batch = None

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Judges the step, and leaves its update out if it must be."""
        assert isinstance(pl_module, AlignModule)
        if not self._window.batches:
            return
        figures, batches = self._window.close(total_norm(trainer, pl_module, optimizer))
        bad = ~(figures.loss.isfinite() & figures.norm.isfinite())
        spiking, spread = self._spikes.judge(figures)
        no = torch.zeros_like(bad)
        spiking = spiking & ~bad if self.spikes != "ignore" else no
        skipped = (bad if self.nonfinite == "skip" else no) | (spiking if self.spikes == "skip" else no)
        pl_module.skipped = self._skipped = skipped
        way(trainer, optimizer)(optimizer, skipped)
        taken = ~(bad | skipped)
        self._spikes.take(figures, taken)
        self._displacement.take(figures, taken)
        self._totals_2 = self._totals_2 + torch.stack([skipped, spiking])
        self._latest = Step(trainer.global_step + 1, batches, figures, spread, bad, spiking, skipped)
        self._journal.add(self._latest)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Logs a step; now and then reads what was seen, and acts.

        Raises:
            StoppedError: the run must not go on.
        """
        step, self._latest = self._latest, None
        if step is None:  # gradients are being accumulated
            return
        assert isinstance(pl_module, AlignModule)
        if not self._told and not self._sees_displacement(pl_module):
            self._told = True
            self._say_unseen(pl_module)
        if trainer.global_step % _every(trainer) == 0:
            self._log(trainer, pl_module, step.figures.norm)
            self._read()
            self._act(trainer, pl_module)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._read()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._read()
        assert isinstance(pl_module, AlignModule)
        skipped, spikes = self._totals_2.int().tolist()
        outcome = {"skipped_steps": skipped, "spikes": spikes}
        if self._sees_displacement(pl_module):
            outcome |= {
                "displacement": round(self._displacement.rise().item(), 4),
                f"displacement_{self.displacement}": self._action.times,
            }
        pl_module.outcome["guards"] = outcome

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Lets no checkpoint be saved whose weights are not finite.

        Raises:
            UnsavedError: some are not.
        """
        if self.nonfinite == "ignore":
            return
        assert isinstance(pl_module, AlignModule)
        assert pl_module.policy is not None
        names = not_finite(trainable(pl_module.policy))
        if not names:
            return
        raise UnsavedError(
            f"after step {trainer.global_step} weights are not finite, such as {listed(names, 3)}: nothing "
            "is saved, and the checkpoints before are as they were\nA lower learning rate may help, or "
            f"32-true; steps that went wrong stand in {Path(trainer.default_root_dir) / FILE}"
        )

    def state_dict(self) -> dict[str, Any]:
        self._read()
        return {
            "spikes": self._spikes.state_dict(),
            "displacement": self._displacement.state_dict(),
            "window": self._window.state_dict(),
            "skipped": self._skipped,
            "totals": self._totals_2,
            "journal": self._journal.state_dict(),
            "alarmed": self._alarmed,
            "actions": self._action.times,
            "lr_scale": self._lr_scale,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._spikes.load_state_dict(state_dict["spikes"])
        self._displacement.load_state_dict(state_dict["displacement"])
        self._journal.load_state_dict(state_dict["journal"])
        self._skipped, self._totals_2 = state_dict["skipped"], state_dict["totals"]
        self._loaded_window = state_dict["window"]
        self._alarmed, self._action.times = state_dict["alarmed"], state_dict["actions"]
        self._lr_scale = state_dict["lr_scale"]

    def _read(self) -> None:
        if self._trainer is not None:
            self._journal.read(Path(self._trainer.default_root_dir), self._trainer.is_global_zero)

    def _act(self, trainer: pl.Trainer, module: AlignModule) -> None:
        """Acts on what was read. Only every so many steps, so that a run that was resumed does the same."""
        self._journal.check(Path(trainer.default_root_dir))
        if not self._sees_displacement(module):
            return
        steps = int(self._displacement.steps())
        if steps < self._displacement.window:
            self._alarmed = False
        elif not self._alarmed:
            told = (
                f"step {trainer.global_step}: for {steps} steps the errors of winner and loser have both "
                f"been more than {self._displacement.threshold:g} times the reference's error above it; "
                f"now by {self._displacement.rise().item():.3g} times"
            )
            if self._action(trainer, module, Alarm(told, trainer.global_step - steps + 1)):
                self._displacement.forget()
            else:
                self._alarmed = True
            self._lr_scale = module.lr_scale

    def _log(self, trainer: pl.Trainer, module: AlignModule, norm: Tensor) -> None:
        skipped, spikes = self._totals_2
        figures = {"skipped": skipped, "spikes": spikes}
        if not scales(trainer):
            figures["grad_norm"] = norm
        if self._sees_displacement(module):
            figures["displacement"] = self._displacement.rise()
        module.log_dict({f"guards/{name}": value for name, value in figures.items()}, batch_size=1)

    def _say_unseen(self, module: AlignModule) -> None:
        if self.displacement not in ("ignore", "warn"):
            rank_zero_info(
                f"guards.displacement: {self.displacement} has nothing to look at, since "
                f"{type(module.objective).__name__} reads no pair or no reference"
            )

    def _sees_displacement(self, module: AlignModule) -> bool:
        return self.displacement != "ignore" and module.seen.keys() >= set(CHANGES)


def _every(trainer: pl.Trainer) -> int:
    """After how many steps what was seen is read."""
    return trainer.log_every_n_steps or READ_EVERY  # type: ignore[attr-defined]
