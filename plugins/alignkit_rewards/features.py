"""Embeddings of published models. Suffixes: N images; D width; C H W."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import AutoModel

from alignkit import Features
from alignkit_rewards.clip import Pictures, load_pictures, origins
from alignkit_rewards.framing import processor_framing
from alignkit_rewards.places import model
from alignkit_rewards.weights import load

DINO = ("dinov2", "dinov2_with_registers", "dinov3_vit")


class CLIPFeatures(Features):
    """What a CLIP sees: mostly what is shown, and its style.

    Args:
        path: folder or hub id of the model, with its preprocessor_config.json.
        revision: a hub id's branch, tag or commit; the known hub ids are pinned to a commit (``places.py``).
    """

    def __init__(self, path: str = "openai/clip-vit-large-patch14", revision: str | None = None) -> None:
        super().__init__()
        self.pictures, self._places = load_pictures(path, revision, "CLIPFeatures")

    def origins(self) -> Mapping[str, str]:
        return origins(self._places)

    def forward(self, image_NCHW: Tensor) -> Tensor:
        feature_ND: Tensor = self.pictures(image_NCHW)
        return feature_ND


class DINOFeatures(Features):
    """What a DINOv2 or DINOv3 sees: shapes and layout more than a CLIP, as no text has taught it.

    The class token of the last layer, after its norm (Oquab et al., 2023, https://arxiv.org/abs/2304.07193).

    Args:
        path: folder or hub id of the model, with its preprocessor_config.json.
        revision: a hub id's branch, tag or commit; the known hub ids are pinned to a commit (``places.py``).
    """

    def __init__(self, path: str = "facebook/dinov2-base", revision: str | None = None) -> None:
        super().__init__()
        place = model(path, revision=revision, owner="DINOFeatures")
        network = load(AutoModel, place, DINO, "DINOFeatures")
        self.pictures = Pictures(network, _class_token, processor_framing(place.root, "DINOFeatures").frame)
        self._places = {"model": place}

    def origins(self) -> Mapping[str, str]:
        return origins(self._places)

    def forward(self, image_NCHW: Tensor) -> Tensor:
        feature_ND: Tensor = self.pictures(image_NCHW)
        return feature_ND


def _class_token(network: Any, pixel_NCHW: Tensor) -> Tensor:
    token_ND: Tensor = network(pixel_values=pixel_NCHW).last_hidden_state[:, 0]
    return token_ND
