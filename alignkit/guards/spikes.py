"""Spikes: steps far above the latest ones. Suffixes: W steps of the window; 2 loss and gradient norm."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from alignkit.guards.window import Figures


class Spread(NamedTuple):
    """Mean and standard deviation of the latest steps."""

    mean_2: Tensor
    std_2: Tensor


class Spikes:
    """Says of a step whether its loss or its gradient norm is far above those of the latest steps.

    The rule of OLMo-core's ``SkipStepOptimizer``: 6 standard deviations over 128 steps, and nothing until
    half of them are there
    (https://github.com/allenai/OLMo-core/blob/067267cab2aecb935b1dab1dbfcecc1a5754b1e0/src/olmo_core/optim/skip_step_optimizer.py).
    Deviation: only what lies above is one, and a step whose update was left out is not among the latest.

    Args:
        window: how many steps are the latest.
        sigmas: how many standard deviations above their mean is far.
    """

    def __init__(self, window: int, sigmas: float) -> None:
        self.window, self.sigmas = window, sigmas
        self._latest_W2, self._count = torch.zeros(window, 2), torch.zeros((), dtype=torch.int64)

    def to(self, device: torch.device) -> None:
        """Moves to a device."""
        self._latest_W2, self._count = self._latest_W2.to(device), self._count.to(device)

    def judge(self, figures: Figures) -> tuple[Tensor, Spread]:
        """Whether it is one, and against what."""
        place_W = torch.arange(self.window, device=self._count.device)
        count = self._count.clamp(max=self.window)
        there_W1 = (place_W < count)[:, None]
        mean_2 = self._latest_W2.sum(0) / count.clamp(min=1)
        square_2 = torch.where(there_W1, self._latest_W2 - mean_2, 0).square().sum(0)
        std_2 = (square_2 / (count - 1).clamp(min=1)).sqrt()
        far_2 = torch.stack([figures.loss, figures.norm]) - mean_2 > self.sigmas * std_2
        return far_2.any() & (count >= max(2, self.window // 2)), Spread(mean_2, std_2)

    def take(self, figures: Figures, taken: Tensor) -> None:
        """Makes it one of the latest, if it was taken."""
        place_W = torch.arange(self.window, device=self._count.device)
        written_W1 = ((place_W == self._count % self.window) & taken)[:, None]
        self._latest_W2 = torch.where(written_W1, torch.stack([figures.loss, figures.norm]), self._latest_W2)
        self._count = self._count + taken

    def forget(self) -> None:
        """Begins anew."""
        self._latest_W2, self._count = torch.zeros_like(self._latest_W2), torch.zeros_like(self._count)

    def state_dict(self) -> dict[str, Any]:
        """The latest steps."""
        return {"latest": self._latest_W2, "count": self._count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where ``state_dict`` was taken; a window of another size begins anew."""
        if len(state["latest"]) == self.window:
            self._latest_W2, self._count = state["latest"], state["count"]
