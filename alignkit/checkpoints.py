"""What a run's checkpoints hold of the network that it trained."""

from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

FOLDER, SUFFIX = "checkpoints", ".ckpt"
LAST = Path(FOLDER, "last.ckpt")


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
    """Reads a checkpoint, without running code of it.

    Args:
        path: the file.
        named: what messages call it.
        averaged: whether the weights are those of the run's moving average; without it, where it keeps one.

    Raises:
        ValueError: there is no such file, it cannot be read, or it keeps no average.
    """
    if not path.is_file():
        raise ValueError(
            f"{named}: there is no {str(path)!r}; a run's own stand in RUN/{FOLDER}/, and 'last' is the "
            "latest of them"
        )
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, EOFError, UnpicklingError) as error:
        raise ValueError(
            f"{named}: {path} cannot be read; is it whole, and a checkpoint of a run? Name another one\n"
            f"{str(error).splitlines()[0]}"
        ) from error
    weights: dict[str, Tensor] = {
        name.removeprefix("policy."): weight
        for name, weight in state["state_dict"].items()
        if name.startswith("policy.")
    }
    averages = [part["average"] for part in state["callbacks"].values() if "average" in part]
    if averaged and not averages:
        raise ValueError(f"{named}: {path} holds no moving average; take its weights as they were")
    is_average = bool(averages) if averaged is None else averaged
    return Saved(averages[0] if is_average else weights, state["global_step"], is_average, path.resolve())


def find(run: Path, name: str) -> Path:
    """The checkpoint of a run that a name means: "last", a file's name, or a path."""
    for path in (run / FOLDER / f"{name}{SUFFIX}", run / FOLDER / name):
        if path.is_file():
            return path
    return Path(name)


def kept(run: Path) -> list[Path]:
    """A run's checkpoints, each once, whatever links there are to it."""
    return sorted({path.resolve() for path in (run / FOLDER).glob(f"*{SUFFIX}") if path.is_file()})
