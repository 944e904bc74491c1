"""How the update of a step is left out: weights and the optimizer's state stay as they are."""

from typing import Protocol

import lightning.pytorch as pl
from torch import Tensor
from torch.optim import SGD, Optimizer


class LeaveOut(Protocol):
    """Leaves out the update that comes next, if the flag is set."""

    def __call__(self, optimizer: Optimizer, skipped: Tensor) -> None: ...


class OnDevice:
    """Tells a fused kernel as loss scaling does (``found_inf``), so that nothing waits for the device."""

    def __call__(self, optimizer: Optimizer, skipped: Tensor) -> None:
        optimizer.found_inf = skipped.float()  # type: ignore[attr-defined]


class OnHost:
    """Takes the gradients away: an optimizer passes over weights that have none. It waits for the device."""

    def __call__(self, optimizer: Optimizer, skipped: Tensor) -> None:
        if skipped.item():
            optimizer.zero_grad(set_to_none=True)


class ByScaler:
    """Leaves it to float16's loss scaling, which looks at the gradients itself."""

    def __call__(self, optimizer: Optimizer, skipped: Tensor) -> None:
        pass


def way(trainer: pl.Trainer, optimizer: Optimizer) -> LeaveOut:
    """How it is done here."""
    if scales(trainer):
        return ByScaler()
    # fused SGD would begin its momentum with memory that nobody has written to
    begins = isinstance(optimizer, SGD) and any(group["momentum"] for group in optimizer.param_groups)
    if getattr(optimizer, "_step_supports_amp_scaling", False) and not begins:
        return OnDevice()
    return OnHost()


def scales(trainer: pl.Trainer) -> bool:
    """Whether losses are scaled, as in ``16-mixed``: then gradients are, too, and overflow now and then."""
    return getattr(trainer.precision_plugin, "scaler", None) is not None
