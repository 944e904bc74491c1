"""What a base drew, kept for other runs that begin from it and draw the same."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from alignkit.components import Backbone
from alignkit.evaluation.identity import key_of, surroundings
from alignkit.evaluation.manifest import drawing_environment
from alignkit.files import write_tensors
from alignkit.policy import fingerprint

PICTURES = "pictures"


def kept(folder: Path, key: str, draw: Callable[[], Tensor]) -> Tensor:
    """Pictures of 8 bits, from a folder; drawn, and put there, if they are not there or cannot be read."""
    path = folder / f"{key}.safetensors"
    try:
        return load_file(path)[PICTURES].float() / 255
    except (OSError, SafetensorError, KeyError):
        image = draw()
        with suppress(OSError):  # of a full disk, or another run that writes the same
            write_tensors(path, {PICTURES: (image * 255).round().to(torch.uint8)}, {})
        return image


def key(
    backbone: Backbone,
    network: nn.Module,
    device: torch.device,
    prompts: Sequence[str],
    options: Mapping[str, Any],
    batch_size: int,
) -> str:
    """What pictures follow from: weights, adapters apart, what is around them, settings, prompts, machine.

    Args:
        backbone: that draws.
        network: with it.
        device: where.
        prompts: of what.
        options: how.
        batch_size: how many at once.
    """
    weights = {name: weight for name, weight in network.named_parameters() if "lora_" not in name}
    return key_of(
        fingerprint(weights),
        surroundings(backbone, network),
        drawing_environment(str(device), batch_size),
        list(prompts),
        dict(options),
    )
