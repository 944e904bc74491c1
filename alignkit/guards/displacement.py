"""Displacement: winner and loser both get less likely. Suffix: 2 winner and loser; 4 ``window.CHANGES``."""

from typing import Any

import torch
from torch import Tensor

from alignkit.guards.window import Figures


class Displacement:
    """Says whether the policy has got worse at winners and losers alike, for many steps on end.

    A loss of differences is content when the loser's error rises faster than the winner's; both may grow
    without bound, and pictures fall apart while the margin still improves.

    Args:
        window: for how many steps on end; also how many steps the errors are averaged over, exponentially.
        threshold: how far both errors must lie above the reference's, as a share of it.
    """

    def __init__(self, window: int, threshold: float) -> None:
        self.window, self.threshold = window, threshold
        self._average_4 = torch.zeros(4)
        self._steps = torch.zeros((), dtype=torch.int64)

    def to(self, device: torch.device) -> None:
        """Moves to a device."""
        self._average_4, self._steps = self._average_4.to(device), self._steps.to(device)

    def take(self, figures: Figures, taken: Tensor) -> None:
        """Takes in a step, if it was taken."""
        # an average that begins at 0 is too small by a factor, which is the same in all four
        moved_4 = self._average_4 + (figures.change_4 - self._average_4) / self.window
        taken = taken & figures.change_4.isfinite().all()
        self._average_4 = torch.where(taken, moved_4, self._average_4)
        steps = torch.where(self.rise() > self.threshold, self._steps + 1, 0)
        self._steps = torch.where(taken, steps, self._steps)

    def rise(self) -> Tensor:
        """The smaller of both rises above the reference's error, as a share of it; a scalar."""
        change_2, reference_2 = self._average_4.view(2, 2)
        rise_2: Tensor = change_2 / reference_2.clamp(min=torch.finfo(torch.float32).tiny)
        return rise_2.amin()

    def steps(self) -> Tensor:
        """For how many steps on end both lie too far above; a scalar."""
        return self._steps

    def forget(self) -> None:
        """Begins anew."""
        self._average_4, self._steps = torch.zeros_like(self._average_4), torch.zeros_like(self._steps)

    def state_dict(self) -> dict[str, Any]:
        """Averages and steps."""
        return {"average": self._average_4, "steps": self._steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where ``state_dict`` was taken."""
        self._average_4, self._steps = state["average"], state["steps"]
