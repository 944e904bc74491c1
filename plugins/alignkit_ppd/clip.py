"""A light user encoder. Shape suffixes: N = 2 P pictures of P pairs; L layers; D width of a layer."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import AutoImageProcessor, CLIPConfig, CLIPModel

from alignkit.folders import located_folder
from alignkit_ppd.encoder import (
    LikedPair,
    Profile,
    Reader,
    UserEncoder,
    at_revision,
    fingerprint_of,
    load_part,
    opened,
)


class ClipDifference(UserEncoder):
    """Knows a person by what distinguishes winners from losers in the eyes of a CLIP.

    One row per layer of its vision model: the class token's state of the winner minus that of the loser,
    averaged over the pairs. What a pair has in common, its subject above all, cancels; a person who chose
    otherwise throughout is the opposite row, and one without a taste tends to zero, which is nobody.

    Args:
        path: folder or hub id of a CLIP, such as "openai/clip-vit-large-patch14", or "package:folder" for a
            folder that an installed package ships.
        revision: a hub id's branch, tag or commit.
    """

    def __init__(self, path: str, revision: str | None = None) -> None:
        self.path, self.revision = path, revision
        self._root = located_folder(path, marker="config.json", kind="model", owner="ClipDifference")

    @property
    def name(self) -> str:
        return f"ClipDifference({at_revision(self.path, self.revision)})"

    def shape(self) -> tuple[int, int]:
        vision = self._part(CLIPConfig).vision_config
        return vision.num_hidden_layers, vision.hidden_size

    @contextmanager
    def loaded(self, device: torch.device) -> Iterator[Reader]:
        clip = self._part(CLIPModel, dtype=torch.float32)
        model = clip.vision_model.eval().to(device)
        # the same numbers whether torchvision is installed or not
        processor = self._part(AutoImageProcessor, backend="pil")
        yield Reader(partial(_profile, model, processor), fingerprint_of(model))

    def _part(self, kind: Any, **options: object) -> Any:
        return load_part(kind, self._root, "ClipDifference", revision=self.revision, **options)


@torch.no_grad()
def _profile(model: Any, processor: Any, pairs: Sequence[LikedPair]) -> Profile:
    pictures = [pair.preferred for pair in pairs] + [pair.dispreferred for pair in pairs]
    pixels_NCHW = processor([opened(data) for data in pictures], return_tensors="pt").pixel_values
    states = model(pixel_values=pixels_NCHW.to(model.device), output_hidden_states=True).hidden_states
    # the first of the states is the input of the first layer, whose class token no picture has touched
    class_LND: Tensor = torch.stack([state[:, 0] for state in states[1:]])
    winner_LPD, loser_LPD = class_LND.chunk(2, dim=1)
    return Profile((winner_LPD - loser_LPD).mean(1).cpu())
