"""What a checkpoint holds to go on from, and what is checked when a run does."""

from collections.abc import Collection, Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from alignkit.components import Reference
from alignkit.data import AlignData
from alignkit.resuming.changes import Change, counted, differences, refuse
from alignkit.resuming.place import Split, place_of, put_loops, read_place, written_place

CONFIG, DATA, REFERENCE, PLACE = "config", "data", "reference", "place"
GRADIENTS, CHANGES = "gradients", "changes"
OPTIMIZER = "optimizer"
# keys of a config, by what they divide a step into
DIVIDED = {
    "batch_size": "data.batch_size",
    "devices": "trainer.devices",
    "accumulated": "trainer.accumulate_grad_batches",
}


class Resuming(pl.Callback):
    """Lets a run go on exactly where it stopped, and only as the run that it was.

    The place is kept in pairs, so that a run goes on with another number of workers, or another batch size,
    devices and accumulated batches whose product is the same. Within a step, a single process keeps its
    gradients; otherwise, the step is begun anew from its first pair.

    What draws from torch's own generator, as dropout does, draws from one that is seeded for each batch.

    Args:
        config: the run's, whole; without it, configs are not compared.
        allowed: keys that may differ from those of the checkpoint, or what they are a part of; also "data"
            and "reference".
    """

    def __init__(self, config: Mapping[str, Any] | None = None, allowed: Collection[str] = ()) -> None:
        super().__init__()
        self.config = None if config is None else counted(config)
        self.allowed = tuple(allowed)
        self.changes: list[dict[str, Any]] = []
        self._found: list[Change] = []
        self._gradients: dict[str, Tensor] = {}
        self._reference: str | None = None
        self._checkpoint: dict[str, Any] = {}
        self._is_resumed = False

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if self.config is not None:
            checkpoint[CONFIG] = self.config
        if (reference := _reference(pl_module)) is not None:
            checkpoint[REFERENCE] = reference.fingerprint()
        checkpoint[CHANGES] = self.changes
        data = trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, AlignData):
            return
        place = place_of(trainer, _split(trainer, data))
        checkpoint |= {DATA: dict(data.identity()), PLACE: written_place(place)}
        if place.pairs != place.edge and not place.broken and trainer.world_size == 1:
            weights = _policy(pl_module).named_parameters()
            checkpoint[GRADIENTS] = {name: it.grad for name, it in weights if it.grad is not None}

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Compares config, data and the pairs of a step, and goes to the checkpoint's place.

        Raises:
            ValueError: they differ, or the place is none of this run.
        """
        self._reference = checkpoint.get(REFERENCE)
        if trainer.state.fn != "fit":
            return
        self._is_resumed, self.changes = True, list(checkpoint.get(CHANGES, ()))
        data = trainer.datamodule  # type: ignore[attr-defined]
        unknown, found = [], list[Change]()
        if self.config is not None:
            found += differences(checkpoint[CONFIG], self.config) if CONFIG in checkpoint else ()
            unknown += [] if CONFIG in checkpoint else [CONFIG]
        if isinstance(data, AlignData):
            if PLACE not in checkpoint:
                raise ValueError(
                    f"{trainer.ckpt_path} does not say which pairs it was trained on, as earlier versions "
                    "did not; start anew"
                )
            place, split = read_place(checkpoint[PLACE]), _split(trainer, data)
            found += differences(checkpoint[DATA], dict(data.identity()), "data")
            in_batches = data.bucket_step is not None or trainer.limit_train_batches != 1.0
            found += _divided(place.split, split, in_batches=in_batches)
        self._accept(trainer, found)
        if any(change.key.startswith(OPTIMIZER) for change in found):
            self._checkpoint = checkpoint
        if unknown:
            rank_zero_warn(f"{trainer.ckpt_path} holds no config: whether it changed is not checked")
        if isinstance(data, AlignData):
            self._gradients = checkpoint.get(GRADIENTS, {}) if split == place.split else {}
            put_loops(
                checkpoint["loops"]["fit_loop"],
                place,
                split,
                checkpoint["global_step"],
                exactly=bool(self._gradients),
            )

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compares the reference; an optimizer whose settings may change keeps them when its state comes.

        Raises:
            ValueError: the checkpoint was trained against another reference.
        """
        # here, as an error within training would be saved over the checkpoint
        self._check_reference(trainer, pl_module)
        checkpoint, self._checkpoint = self._checkpoint, {}
        for state, optimizer in zip(checkpoint.get("optimizer_states", ()), trainer.optimizers, strict=False):
            for group, own in zip(state["param_groups"], optimizer.param_groups, strict=True):
                factor = group["lr"] / group["initial_lr"]
                group |= {name: value for name, value in own.items() if name != "params"}
                group["lr"] = own["initial_lr"] * factor
        for state, config in zip(
            checkpoint.get("lr_schedulers", ()), trainer.lr_scheduler_configs, strict=False
        ):
            state["base_lrs"] = config.scheduler.state_dict()["base_lrs"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Says what was allowed to change, and puts accumulated gradients back."""
        self._check_reference(trainer, pl_module)  # of a strategy that loads after ``on_fit_start``
        if self._found:
            self.changes += [
                {"step": trainer.global_step, "key": it.key, "from": it.before, "to": it.now}
                for it in self._found
            ]
            told = "; ".join(map(str, self._found))
            rank_zero_info(f"from step {trainer.global_step} on, this run is another: {told}")
            self._found = []
        weights = dict(_policy(pl_module).named_parameters())
        for name, gradient in self._gradients.items():
            weights[name].grad = gradient.to(weights[name].device)
        self._gradients = {}

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "validate":
            self._check_reference(trainer, pl_module)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        seed = 0
        for number in (pl_module.seed, trainer.current_epoch, batch_idx, trainer.global_rank):
            assert isinstance(number, int)
            seed = (seed * 1_000_003 + number) % 2**63
        # not torch.manual_seed: it is slow where CUDA is not in use
        torch.default_generator.manual_seed(seed)
        if pl_module.device.type == "cuda":
            torch.cuda.manual_seed(seed)
        if self._is_resumed:  # a validation that is not done anew is counted for loggers
            trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step
            self._is_resumed = False

    def _accept(self, trainer: pl.Trainer, found: list[Change]) -> None:
        refuse(found, self.allowed, str(trainer.ckpt_path))
        self._found += found

    def _check_reference(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        wanted, self._reference = self._reference, None
        if wanted is not None and (reference := _reference(module)) is not None:
            self._accept(trainer, list(differences(wanted, reference.fingerprint(), REFERENCE)))


def _divided(before: Split, now: Split, *, in_batches: bool) -> list[Change]:
    """What makes the pairs of a step others, or those of a batch, if an epoch is made of batches."""
    if before.step == now.step and (before.together == now.together or not in_batches):
        return []
    return [
        Change(key, getattr(before, name), getattr(now, name))
        for name, key in DIVIDED.items()
        if getattr(before, name) != getattr(now, name)
    ]


def _split(trainer: pl.Trainer, data: AlignData) -> Split:
    return Split(data.batch_size, trainer.world_size, trainer.accumulate_grad_batches)


def _policy(module: pl.LightningModule) -> nn.Module:
    assert isinstance(module.policy, nn.Module)
    return module.policy


def _reference(module: pl.LightningModule) -> Reference | None:
    reference = module.reference
    return reference if isinstance(reference, Reference) else None
