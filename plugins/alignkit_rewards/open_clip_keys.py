"""From the names of open_clip's weights to those of transformers' ``CLIPModel``."""

import re
from collections.abc import Mapping

from torch import Tensor

_TOP = {
    "logit_scale": "logit_scale",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
}
# kept as inputs x outputs, where a linear layer keeps outputs x inputs
_TRANSPOSED = {"text_projection": "text_projection.weight", "visual.proj": "visual_projection.weight"}
_BLOCK = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)")
_PARTS = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}


def to_transformers(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Renames, transposes and splits weights; returns them, and the names that it does not know."""
    found: dict[str, Tensor] = {}
    unknown: list[str] = []
    for name, weight in weights.items():
        block = _BLOCK.fullmatch(name)
        if name in _TOP:
            found[_TOP[name]] = weight
        elif name in _TRANSPOSED:
            found[_TRANSPOSED[name]] = weight.T.contiguous()
        elif block is None:
            unknown.append(name)
        else:
            tower = "vision_model" if block[1] else "text_model"
            within = _block(block[3], weight)
            unknown += [] if within else [name]
            found |= {f"{tower}.encoder.layers.{block[2]}.{part}": value for part, value in within.items()}
    return found, unknown


def _block(name: str, weight: Tensor) -> dict[str, Tensor]:
    if match := re.fullmatch(r"attn\.in_proj_(weight|bias)", name):
        names = (f"self_attn.{part}_proj.{match[1]}" for part in "qkv")
        return {part: value.contiguous() for part, value in zip(names, weight.chunk(3), strict=True)}
    part, _, kind = name.rpartition(".")
    return {f"{_PARTS[part]}.{kind}": weight} if part in _PARTS else {}
