"""How far a run has come, counted in pairs, and the same in the counters of Lightning's loops."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import lightning.pytorch as pl


class Split(NamedTuple):
    """How the pairs of an optimizer step are divided.

    Args:
        batch_size: pairs per device and batch.
        devices: number of processes.
        accumulated: batches per step.
    """

    batch_size: int
    devices: int
    accumulated: int

    @property
    def together(self) -> int:
        """Pairs that all devices read at a time."""
        return self.batch_size * self.devices

    @property
    def step(self) -> int:
        """Pairs of a step."""
        return self.together * self.accumulated


class Place(NamedTuple):
    """How far a run has come: after a batch, or after the last step, if a batch was broken off.

    Args:
        epoch: number of epochs that are over.
        pairs: pairs of this epoch that are done, on all devices.
        edge: those of them that are in the weights: all but those whose gradients are accumulated.
        total: pairs that are done in all epochs.
        ended: whether they are all pairs of the epoch.
        validated: whether a validation that was due here is over.
        broken: whether a batch was broken off, so that gradients may hold a part of it.
        split: how pairs are divided.
    """

    epoch: int
    pairs: int
    edge: int
    total: int
    ended: bool
    validated: bool
    broken: bool
    split: Split


def place_of(trainer: pl.Trainer, split: Split) -> Place:
    """Where a run is, wherever it is asked: in a batch, after it, in a validation, between epochs."""
    loop = trainer.fit_loop.epoch_loop
    epochs = trainer.fit_loop.epoch_progress.current.state_dict()
    batches, total = (
        tracker.state_dict() for tracker in (loop.batch_progress.current, loop.batch_progress.total)
    )
    done, epoch = batches["processed"], epochs["processed"]
    broken = batches["ready"] != done
    ended = done >= trainer.num_training_batches or (loop.batch_progress.is_last_batch and not broken)
    if epochs["started"] == epoch:  # its loop was left: at its end, or where the run stopped
        epoch, done, ended = (epoch, 0, False) if ended else (max(epoch - 1, 0), done, False)
    checked = loop.val_loop.batch_progress.current.completed
    validating = trainer.validating and checked < sum(loop.val_loop.max_batches)
    return Place(
        epoch=epoch,
        pairs=done * split.together,
        edge=(done if ended else done // split.accumulated * split.accumulated) * split.together,
        total=total["processed"] * split.together,
        ended=ended,
        validated=not validating and batches["completed"] >= batches["processed"],
        broken=broken,
        split=split,
    )


def put_loops(fit_loop: dict[str, Any], place: Place, split: Split, steps: int, *, exactly: bool) -> None:
    """Sets the state of Lightning's loops to a place, as it is read back between two batches.

    Args:
        fit_loop: the state, changed.
        place: where the run was.
        split: how pairs are divided from now on.
        steps: optimizer steps that are done.
        exactly: goes on with the accumulated gradients, instead of from the last step.

    Raises:
        ValueError: this division has no step that ends there.
    """
    pairs = place.pairs if exactly else place.edge
    if split.step != place.split.step and pairs % split.step:
        raise ValueError(
            f"the checkpoint is {pairs} pairs into an epoch, no multiple of the {split.step} of a step "
            f"(batch_size {split.batch_size} x devices {split.devices} x accumulate_grad_batches "
            f"{split.accumulated}); choose them so that it is, or resume where an epoch begins"
        )
    here, batches = pairs == place.pairs, pairs // split.together
    is_pending = here and not place.validated
    total = (place.total - place.pairs + pairs) // split.together
    fit_loop["epoch_progress"] = dict.fromkeys(("total", "current"), _reached(place.epoch, begun=1))
    fit_loop["epoch_loop.batch_progress"] = {
        "total": _reached(total),
        "current": _reached(batches),
        "is_last_batch": here and place.ended,
    }
    # one that was begun and not done is done anew, and none else
    fit_loop["epoch_loop.val_loop.batch_progress"] = {
        "total": _reached(0, begun=int(is_pending)),
        "current": _reached(0),
        "is_last_batch": False,
    }
    # what loggers count by is one behind until a batch and its validation are over
    behind = int(is_pending and pairs == place.edge)
    fit_loop["epoch_loop.state_dict"] = {"_batches_that_stepped": steps - behind}
    fit_loop["state_dict"] = {
        "combined_loader": [{"epoch": place.epoch, "records": pairs, "together": place.split.together}]
    }


def read_place(said: Mapping[str, Any]) -> Place:
    """A place out of a checkpoint."""
    return Place(**{**said, "split": Split(**said["split"])})


def written_place(place: Place) -> dict[str, Any]:
    """A place as a checkpoint holds it."""
    return {**place._asdict(), "split": place.split._asdict()}


def _reached(count: int, begun: int = 0) -> dict[str, int]:
    return {"ready": count + begun, "started": count + begun, "processed": count, "completed": count}
