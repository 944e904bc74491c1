"""Exponential averages of trainable weights, and a network that runs with them. Suffix: S snapshots."""

from collections.abc import Iterable, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from alignkit.sharding import placed


class Average:
    """Exponential moving average of named weights.

    Early on its decay is less, so that the start is forgotten: the first update copies the weights, and
    update n + 1 keeps at most ``(1 + n) / (10 + n)``, as diffusers' ``EMAModel`` does.

    Args:
        decay: share of the old average that an update keeps, in (0, 1).
    """

    def __init__(self, decay: float) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"Average: decay must be between 0 and 1, got {decay}")
        self.decay = decay
        self.updates = torch.zeros(())
        self.weights: dict[str, Tensor] = {}

    def start(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Begins anew with the weights as they are."""
        self.weights = {name: weight.detach().clone() for name, weight in weights}
        self.updates = torch.zeros(())

    @torch.no_grad()
    def update(self, weights: Iterable[tuple[str, Tensor]], skipped: Tensor | None = None) -> None:
        """Takes in one step.

        Args:
            weights: those of the step, finite.
            skipped: whether the step changed no weight, and so is none; that is not looked at here, so that
                nothing waits for the device.
        """
        for place, (name, weight) in enumerate(weights):
            if not place:
                share = self._share(weight, skipped)
            own = placed(self.weights[name], weight)
            self.weights[name] = own.lerp_(weight, share.to(weight.device, weight.dtype))

    def _share(self, like: Tensor, skipped: Tensor | None) -> Tensor:
        """How much of a step is taken in, a scalar on the device of a weight; counts the step."""
        exact = torch.promote_types(like.dtype, torch.float32)
        updates = self.updates.to(like.device, exact)
        # a number divided by a tensor would be rounded twice
        early = torch.full_like(updates, 9.0) / (10 + updates)
        share = torch.where(updates == 0, 1.0, early.clamp(min=1 - self.decay))
        taken = torch.ones_like(share) if skipped is None else 1 - skipped.to(share)
        self.updates = updates + taken
        return share * taken

    def state_dict(self) -> dict[str, Any]:
        """Weights and number of updates."""
        return {"average": self.weights, "updates": int(self.updates)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where ``state_dict`` was taken."""
        self.weights, self.updates = state["average"], torch.tensor(float(state["updates"]))


class Averaged(nn.Module):
    """A network with averaged weights in place of its own, which stay as they are."""

    def __init__(self, network: nn.Module, average: Average) -> None:
        super().__init__()
        # not as sub-modules: the weights belong to the policy
        self._parts = (network, average)

    def forward(self, *args: Any, **options: Any) -> Any:
        network, average = self._parts
        if not any(isinstance(weight, DTensor) for weight in average.weights.values()):
            return torch.func.functional_call(network, average.weights, args, options)
        # a sharded network runs with what it gathers, whatever it is called with
        exchange(network, average.weights)
        try:
            return network(*args, **options)
        finally:
            exchange(network, average.weights)


class Snapshots(pl.Callback):
    """Keeps averages of the policy's trainable weights for a weighting that looks at them.

    Args:
        decays: one per average.
    """

    def __init__(self, decays: Sequence[float]) -> None:
        super().__init__()
        self.averages = [Average(decay) for decay in decays]
        self._step = 0

    def networks(self, policy: nn.Module) -> list[nn.Module]:
        """The policy under each average."""
        own = dict(trainable(policy))
        for average in self.averages:
            if not average.weights:
                average.start(trainable(policy))
            average.weights = {name: placed(weight, own[name]) for name, weight in average.weights.items()}
        return [Averaged(policy, average) for average in self.averages]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._follow(trainer, pl_module)  # a checkpoint may be saved after a step and before its averages

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._follow(trainer, pl_module)

    def _follow(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if trainer.global_step == self._step:  # gradients are being accumulated
            return
        self._step = trainer.global_step
        policy, skipped = module.policy, module.skipped
        assert isinstance(policy, nn.Module)
        assert not isinstance(skipped, nn.Module)
        for average in self.averages:
            average.update(trainable(policy), skipped)

    def state_dict(self) -> dict[str, Any]:
        return {"averages": [average.state_dict() for average in self.averages], "step": self._step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for average, state in zip(self.averages, state_dict["averages"], strict=True):
            average.load_state_dict(state)
        self._step = state_dict["step"]


def trainable(network: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The weights that are trained, by name."""
    return [(name, weight) for name, weight in network.named_parameters() if weight.requires_grad]


@torch.no_grad()
def exchange(network: nn.Module, weights: dict[str, Tensor]) -> None:
    """Gives a network the weights, by name, and the weights those of the network."""
    for name, weight in trainable(network):
        if name in weights:
            own = weight.clone()
            weight.copy_(placed(weights[name], weight))
            weights[name] = own
