"""What is seen of one optimizer step, over its micro-batches and all processes. Suffix: B prompts."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from alignkit.distributed import gathered
from alignkit.types import Batch

# the trained loss, and what displacement is seen by, as ``AlignModule`` reports them
CHANGES = ("winner_mse_change", "loser_mse_change", "ref_winner_mse", "ref_loser_mse")


class MicroBatch(NamedTuple):
    """Whose samples they were, and their loss; on the device."""

    id_B: Tensor
    prompts: tuple[str, ...]
    loss: Tensor


class Figures(NamedTuple):
    """Scalars of a step, on the device, the same on every process.

    Args:
        loss: mean over its micro-batches and processes.
        norm: L2 norm of the gradient, before it is clipped.
        change_4: means of ``CHANGES``; NaN where the objective reads no pair or no reference.
    """

    loss: Tensor
    norm: Tensor
    change_4: Tensor


class Window:
    """The micro-batches since the last optimizer step."""

    def __init__(self) -> None:
        self.batches: list[MicroBatch] = []
        self._sum: Tensor | None = None

    def add(self, batch: Batch, seen: dict[str, Tensor]) -> None:
        """Takes in a micro-batch, and what the module reports of it."""
        loss = seen["trained"].float()
        blank = torch.full_like(loss, torch.nan)
        figures_5 = torch.stack([loss, *(seen.get(name, blank) for name in CHANGES)])
        self.batches.append(MicroBatch(batch.id_B, batch.prompts, loss))
        self._sum = figures_5 if self._sum is None else self._sum + figures_5

    def close(self, norm: Tensor) -> tuple[Figures, tuple[MicroBatch, ...]]:
        """Begins anew; returns what was seen until now."""
        assert self._sum is not None
        mean_5 = self._sum / len(self.batches)
        # one exchange for all; what is not a number anywhere is none in the mean, and not in the largest
        all_P6 = gathered(torch.cat([mean_5, norm.float()[None]])[None])
        batches = tuple(self.batches)
        self.batches, self._sum = [], None
        loss, *_ = mean_P5 = all_P6[:, :5].mean(0)
        return Figures(loss, all_P6[:, 5].amax(), mean_P5[1:]), batches

    def state_dict(self) -> dict[str, Any]:
        """What this process has seen until now."""
        if self._sum is None:
            return {}
        told = [(batch.id_B.tolist(), list(batch.prompts), batch.loss.item()) for batch in self.batches]
        return {"batches": told, "sum": self._sum}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Goes on where ``state_dict`` was taken."""
        if not state:
            return
        self._sum = state["sum"].to(device)
        self.batches = [
            MicroBatch(torch.tensor(ids, device=device), tuple(prompts), torch.tensor(loss, device=device))
            for ids, prompts, loss in state["batches"]
        ]
