"""From the names and shapes of ImageReward's checkpoint to transformers' BLIP classes."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

VISION, TEXT = "blip.visual_encoder.", "blip.text_encoder."
# heads of all of BLIP's networks are this wide: 1024 / 16 in ViT-L, 768 / 12 in BERT
HEAD_WIDTH = 64
_VISION = {
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding",
    "patch_embed.proj.weight": "embeddings.patch_embedding.weight",
    "patch_embed.proj.bias": "embeddings.patch_embedding.bias",
    "norm.weight": "post_layernorm.weight",
    "norm.bias": "post_layernorm.bias",
}
_PARTS = {
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn.qkv": "self_attn.qkv",
    "attn.proj": "self_attn.projection",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)\.(weight|bias)")


def vision_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of ``BlipVisionModel``; what has another name than those of BLIP's is left out."""
    found = {}
    for name, weight in _under(weights, VISION).items():
        block = _BLOCK.fullmatch(name)
        if name in _VISION:
            found[_VISION[name]] = weight
        elif block is not None and block[2] in _PARTS:
            found[f"encoder.layers.{block[1]}.{_PARTS[block[2]]}.{block[3]}"] = weight
    return found


def text_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of ``BlipTextModel``, which has BLIP's names."""
    return {
        name: weight for name, weight in _under(weights, TEXT).items() if not name.endswith("position_ids")
    }


def vision_config(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """What ``BlipVisionConfig`` is told, by the shapes of ``vision_weights``.

    Raises:
        KeyError: one of them is missing.
    """
    width, _, patch, _ = weights["embeddings.patch_embedding.weight"].shape
    places = weights["embeddings.position_embedding"].shape[1] - 1
    return {
        "hidden_size": width,
        "intermediate_size": weights["encoder.layers.0.mlp.fc1.weight"].shape[0],
        "num_hidden_layers": _layers(weights, r"encoder\.layers\.(\d+)\..+"),
        "num_attention_heads": width // HEAD_WIDTH,
        "image_size": round(places**0.5) * patch,
        "patch_size": patch,
        "layer_norm_eps": 1e-6,  # not transformers' default: vit.py, norm_layer
    }


def text_config(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """What ``BlipTextConfig`` is told, by the shapes of ``text_weights``.

    Raises:
        KeyError: one of them is missing.
    """
    vocabulary, width = weights["embeddings.word_embeddings.weight"].shape
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "encoder_hidden_size": weights["encoder.layer.0.crossattention.self.key.weight"].shape[1],
        "intermediate_size": weights["encoder.layer.0.intermediate.dense.weight"].shape[0],
        "num_hidden_layers": _layers(weights, r"encoder\.layer\.(\d+)\..+"),
        "num_attention_heads": width // HEAD_WIDTH,  # not transformers' default either: med_config.json
        "max_position_embeddings": weights["embeddings.position_embeddings.weight"].shape[0],
    }


def _under(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): weight for name, weight in weights.items() if name.startswith(prefix)}


def _layers(weights: Mapping[str, Tensor], pattern: str) -> int:
    return 1 + max(int(match[1]) for name in weights if (match := re.fullmatch(pattern, name)))
