"""Pictures as a network wants them. Suffixes: N images; C H W.

Resizing is that of the processors, with antialiasing, but in floating point: a processor rounds to 8 bits
after each of its two passes.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

CLIP_MEAN, CLIP_STD = tuple(OPENAI_CLIP_MEAN), tuple(OPENAI_CLIP_STD)
# numbers of PIL's filters
FILTERS = {2: "bilinear", 3: "bicubic"}


# images in [0, 1] of any size, to what a network sees
Frame = Callable[[Tensor], Tensor]


class Framing(NamedTuple):
    """What a processor does to a picture, differentiably.

    Args:
        mean: of each channel, subtracted.
        std: of each channel, divided by.
        shortest: the shorter edge gets this length; None: ``size`` says.
        size: height and width, whatever the picture's shape; None: ``shortest`` says.
        crop: height and width of the centre that is kept; None: all.
        mode: of ``torch.nn.functional.interpolate``.
    """

    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    shortest: int | None = None
    size: tuple[int, int] | None = None
    crop: tuple[int, int] | None = None
    mode: str = "bicubic"

    def frame(self, image_NCHW: Tensor) -> Tensor:
        """Frames images in [0, 1] of any size."""
        height, width = image_NCHW.shape[-2:]
        if self.size is not None:
            height, width = self.size
        elif self.shortest is not None:
            short = min(height, width)
            height, width = int(self.shortest * height / short), int(self.shortest * width / short)
        # as PIL: first along rows, and what overshoots is cut off before the columns as well
        image_NCHW = resized(image_NCHW, (image_NCHW.shape[-2], width), self.mode).clamp(0, 1)
        image_NCHW = resized(image_NCHW, (height, width), self.mode).clamp(0, 1)
        if self.crop is not None:
            top, left = ((edge - kept) // 2 for edge, kept in zip((height, width), self.crop, strict=True))
            image_NCHW = image_NCHW[..., top : top + self.crop[0], left : left + self.crop[1]]
        return normalized(image_NCHW, self.mean, self.std)


def resized(image_NCHW: Tensor, size: tuple[int, int], mode: str = "bicubic") -> Tensor:
    """Resizes with antialiasing; bicubic ones overshoot a little."""
    if image_NCHW.shape[-2:] == size:
        return image_NCHW
    return F.interpolate(image_NCHW, size=size, mode=mode, antialias=True)


def normalized(image_NCHW: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Subtracts a mean and divides by a deviation, by channel."""
    mean_C11, std_C11 = (torch.tensor(value).to(image_NCHW)[:, None, None] for value in (mean, std))
    return (image_NCHW - mean_C11) / std_C11


def processor_framing(folder: Path, owner: str) -> Framing:
    """Reads what an image processor of transformers says of itself.

    Raises:
        ValueError: there is none, or it does something else.
    """
    said = _said(folder, owner)
    if said is None:
        raise ValueError(
            f"{owner}: {str(folder)!r} says nothing of pictures: it has no preprocessor_config.json; give "
            "the folder or hub id of a processor"
        )
    wrong = [name for name in ("do_resize", "do_normalize", "do_rescale") if said.get(name, True) is False]
    if wrong or said.get("resample", 3) not in tuple(FILTERS):
        got = [f"{name} false" for name in wrong] or [f"resample {said.get('resample')}"]
        raise ValueError(
            f"{owner}: the processor in {str(folder)!r} must resize (bilinear or bicubic), rescale and "
            f"normalize; got {', '.join(got)}"
        )
    try:
        return _framing(said)
    except (LookupError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{owner}: the processor in {str(folder)!r} cannot be read: {error!r}") from error


def _framing(said: dict[str, Any]) -> Framing:
    size, crop = said.get("size", 224), said.get("crop_size", 224)
    edges = size if isinstance(size, dict) else {"shortest_edge": size}
    shortest = edges.get("shortest_edge")
    return Framing(
        mean=tuple(map(float, said.get("image_mean", CLIP_MEAN))),
        std=tuple(map(float, said.get("image_std", CLIP_STD))),
        shortest=None if shortest is None else _length(shortest),
        size=_pair(edges) if "height" in edges else None,
        crop=_pair(crop) if said.get("do_center_crop") else None,
        mode=FILTERS[said.get("resample", 3)],
    )


def _said(folder: Path, owner: str) -> dict[str, Any] | None:
    for name in ("processor_config.json", "preprocessor_config.json"):
        if (folder / name).is_file():
            try:
                said = json.loads((folder / name).read_text(encoding="utf-8"))
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{owner}: {str(folder / name)!r} is no JSON: {error}") from error
            if isinstance(said, dict) and name.startswith("processor"):
                said = said.get("image_processor")
            elif isinstance(said, dict):
                said = said.get("image_processor", said)
            if said is not None and not isinstance(said, dict):
                raise ValueError(f"{owner}: {str(folder / name)!r} must be an object, got {str(said)[:40]}")
            if said is not None:
                return said
    return None


def _pair(size: Any) -> tuple[int, int]:
    height, width = (size["height"], size["width"]) if isinstance(size, dict) else (size, size)
    return _length(height), _length(width)


def _length(edge: Any) -> int:
    """A number of pixels.

    Raises:
        ValueError: it is none.
    """
    if type(edge) is not int or edge < 1:
        raise ValueError(f"{edge!r} is no number of pixels")
    return edge
