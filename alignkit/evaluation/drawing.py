"""Pictures as they are kept and judged: from seeds of their own, with 8 bits a channel.

Suffixes: N images; C H W; L tokens; D width.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from alignkit.components import Backbone
from alignkit.rollout import hashed_seed

# what a network runs in, by the names that Lightning gives them
PRECISIONS = MappingProxyType(
    {"32-true": torch.float32, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
)
# how many pictures are decoded at once: an autoencoder takes far more memory than the network
DECODED = 2


def picture_seed(prompt: str, number: int) -> int:
    """The seed of a prompt's picture of some number, whatever else is drawn, and by whichever model."""
    return hashed_seed(prompt, number)


@torch.no_grad()
def drawn(
    backbone: Backbone,
    network: nn.Module,
    prompts: Sequence[str],
    *,
    seeds: Sequence[int],
    num_steps: int,
    guidance: float,
    tokens_NLD: Tensor | None = None,
    precision: str = "32-true",
) -> Tensor:
    """Draws an image in [0, 1] for each prompt, (N, C, H, W), on the CPU, rounded to 8 bits.

    Args:
        backbone: the model.
        network: its network.
        prompts: what is drawn.
        seeds: of each image its own.
        num_steps: steps of the backbone's sampling method.
        guidance: weight of classifier-free guidance; 1 switches it off.
        tokens_NLD: what a conditioner tells besides.
        precision: one of ``PRECISIONS``.
    """
    dtype, device = PRECISIONS[precision], next(network.parameters()).device.type
    with torch.autocast(device, dtype=dtype, enabled=dtype != torch.float32):
        latent_NCHW = backbone.generate(
            network,
            prompts,
            seeds=seeds,
            num_steps=num_steps,
            guidance=guidance,
            tokens_NLD=tokens_NLD,
        )
    parts = [backbone.decode(some_NCHW).float().cpu() for some_NCHW in latent_NCHW.split(DECODED)]
    return (torch.cat(parts).clamp(0, 1) * 255).round() / 255


def check_numbers(image_NCHW: Tensor, *, owner: str, guidance: float, precision: str) -> None:
    """Refuses pictures that are none.

    Raises:
        ValueError: a value is infinite or no number.
    """
    if not image_NCHW.isfinite().all():
        raise ValueError(
            f"{owner}: draws pictures of values that are no numbers; are its weights sound? Or it does not "
            f"bear --guidance {guidance:g} or --precision {precision}"
        )


def read_picture(path: Path) -> Tensor:
    """Reads a picture as ``drawn`` gave it, (C, H, W).

    Raises:
        ValueError: it cannot be read.
    """
    try:
        with Image.open(path) as picture:
            byte_HWC = np.array(picture.convert("RGB"))
    except OSError as error:
        raise ValueError(
            f"{path}: cannot be read: {error}\nDelete it, and call this again: it will be drawn again"
        ) from error
    return torch.from_numpy(byte_HWC).permute(2, 0, 1).float() / 255


def file_name(text: str, most: int = 120) -> str:
    """What a text may be called in a file system, in so many bytes.

    Example:
        >>> file_name("A red/green apple?"), file_name("...")
        ('A-red-green-apple', 'picture')
    """
    plain = re.sub(r"[^\w.=,+-]+", "-", text).encode()[:most].decode(errors="ignore")
    return plain.strip("-.") or "picture"
