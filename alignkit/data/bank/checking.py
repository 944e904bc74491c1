"""Holds a run to its reference bank before the first step, and lets go of the reference then."""

from __future__ import annotations

from typing import TYPE_CHECKING

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from alignkit.data.bank.manifest import differences
from alignkit.data.bank.origin import origin_of
from alignkit.data.bank.store import Bank
from alignkit.data.module import AlignData
from alignkit.types import Batch

if TYPE_CHECKING:
    from alignkit.module import AlignModule

# pairs that are asked about again, and by how much of itself, or of 1, that may move the loss of a policy
# that still is its reference: of a logistic loss, that is 0.01 of the logit
ENTRIES, TOLERANCE = 64, 0.005


class BankCheck(pl.Callback):
    """Refuses a bank that was made from something else, or says something else than the reference does.

    Attributes:
        is_done: whether the bank was found good, and the reference was let go.
    """

    is_done = False

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._check(trainer, pl_module)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "validate":
            self._check(trainer, pl_module)

    def _check(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        if self.is_done or not isinstance(data, AlignData) or data.opened_bank is None:
            return
        check(module, data, data.opened_bank)  # type: ignore[arg-type]
        module.reference = module.reference.released()  # type: ignore[operator, union-attr]
        self.is_done = True


def check(module: AlignModule, data: AlignData, bank: Bank) -> None:
    """Checks a bank.

    Args:
        module: whose reference, set up and on its device.
        data: whose pairs.
        bank: what the reference said of them.

    Raises:
        ValueError: it was made from something else, or what is computed again differs.
    """
    if told := differences(bank.manifest.origin, origin_of(module, data)):
        raise ValueError(
            f"data.bank: {str(bank.folder)!r} was made from something else: {'; '.join(told)}. Make one for "
            "this config, alignkit cache --reference --config CONFIG --out ANOTHER_FOLDER, or train with "
            "what it was made from"
        )
    pairs, visits = data.dataset("train"), bank.visits("train")
    generator = torch.Generator().manual_seed(data.seed)
    places = [
        (index, int(torch.randint(visits, (), generator=generator)))
        for index in torch.randperm(len(pairs), generator=generator)[:ENTRIES].tolist()
    ]
    size, worst = data.batch_size, 0.0
    batches = [places[start : start + size] for start in range(0, len(places), size)]
    for stored in data.in_order("train", pairs, batches):
        batch = data.on_after_batch_transfer(
            module.trainer.strategy.batch_to_device(stored, module.device), dataloader_idx=0
        )
        moved_B = _moved(module, batch)
        if bool((moved_B > TOLERANCE).any()) or not bool(moved_B.isfinite().all()):
            where = int(moved_B.nan_to_num(torch.inf).argmax())
            raise ValueError(
                f"data.bank: {str(bank.folder)!r}: of pair {int(batch.id_B[where])} at visit "
                f"{int(batch.visit_B[where])} the reference says something else than the bank: that moves "
                f"the loss by {float(moved_B[where]):.3g}, and may by {TOLERANCE:g}. The bank was made with "
                "other pictures, or by other kernels (another device or version), or is damaged: make it anew"
            )
        worst = max(worst, float(moved_B.max()))
    rank_zero_info(
        f"{bank.folder}: {len(places)} pairs asked about again, which moves the loss by at most {worst:.1g}"
    )


@torch.no_grad()
def _moved(module: AlignModule, batch: Batch) -> Tensor:
    """By how much the bank's numbers move the loss of a policy that is the reference, (B,).

    As a share of the loss where that is above 1.
    """
    with module.trainer.precision_plugin.forward_context():
        scored = module.score_reference(batch)
    loss_B = module.loss(scored, batch).loss_B
    moved_B = (module.loss(scored._replace(ref_logp_KB=batch.ref_logp_KB), batch).loss_B - loss_B).abs()
    return moved_B / loss_B.abs().clamp_min(1)
