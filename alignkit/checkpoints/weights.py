"""What a run's checkpoints hold of the network that it trained."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn

from alignkit.checkpoints.folder import loaded


class Saved(NamedTuple):
    """The trained weights of a checkpoint.

    Args:
        weights: by name within the policy.
        step: optimizer steps done.
        averaged: whether they are a moving average.
        path: the file, and not a link to it.
    """

    weights: Mapping[str, Tensor]
    step: int
    averaged: bool
    path: Path

    def put_into(self, network: nn.Module, named: str) -> None:
        """Gives a network these weights.

        Args:
            network: with what is trained of it marked by ``requires_grad``.
            named: what messages call the checkpoint.

        Raises:
            ValueError: it is of another network.
        """
        wanted = {name for name, weight in network.named_parameters() if weight.requires_grad}
        if wanted != self.weights.keys():
            odd = wanted ^ self.weights.keys()
            raise ValueError(
                f"{named}: {self.path} is not of this run's network; {len(odd)} names differ, such as "
                f"{min(odd)}"
            )
        network.load_state_dict(dict(self.weights), strict=False)


def saved(path: Path, named: str, *, averaged: bool | None = None) -> Saved:
    """Reads what a checkpoint holds of a network; of a damaged "last", the newest good one beside it.

    Args:
        path: the file.
        named: what messages call it.
        averaged: whether the weights are those of the run's moving average; without it, where it keeps one.

    Raises:
        ValueError: there is no such file, it is damaged, or it keeps no average.
    """
    path, state = loaded(path, named)
    weights: dict[str, Tensor] = {
        name.removeprefix("policy."): weight
        for name, weight in state["state_dict"].items()
        if name.startswith("policy.")
    }
    averages = [part["average"] for part in state["callbacks"].values() if "average" in part]
    if averaged and not averages:
        raise ValueError(f"{named}: {path} holds no moving average; take its weights as they were")
    is_average = bool(averages) if averaged is None else averaged
    return Saved(averages[0] if is_average else weights, state["global_step"], is_average, path)
