"""Shapes of the models that are timed on a GPU, and tiny ones of the same classes.

Settings are those of the config files of stable-diffusion-v1-5/stable-diffusion-v1-5 and
stabilityai/stable-diffusion-xl-base-1.0, and the UNets' numbers of weights are checked. No weights are read:
all are random, made where they are run. Tokenizers know letters alone; text encoders have their real
vocabulary.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from stack import Stack, stack_in, write_pairs
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from alignkit.testing.pipelines import tiny_tokenizer

FULL, LORA = "full", "LoRA"
ENCODERS = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}
# so many pictures are encoded for the cache; pairs share them
PICTURES = 8


class Shape(NamedTuple):
    """A model, and how it is timed.

    Args:
        name: what tables call it.
        backbone: which reads it.
        resolution: of its pictures, pixels.
        batches: pairs of a step.
        wanted: the least of these that promises speak of.
        unet: settings.
        weights: of the UNet.
        vae: settings.
        encoders: settings of text encoders by part.
        tokens: of a prompt.
        tflop: of a pair and step without encoding, by what is trained: 2 per multiplication and addition of
            convolutions, linear layers and attention, torch's FlopCounterMode; None where nobody asks.
        checkpointed: whether its published script recomputes activations in the backward pass.
    """

    name: str
    backbone: str
    resolution: int
    batches: tuple[int, ...]
    wanted: int
    unet: Mapping[str, Any]
    weights: int
    vae: Mapping[str, Any]
    encoders: Mapping[str, Mapping[str, Any]]
    tokens: int
    tflop: Mapping[str, float] | None
    checkpointed: bool

    @property
    def folder(self) -> str:
        """A name of it in a path."""
        return self.name.lower().replace(" ", "_")


_VAE = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
}
_CLIP_L = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
}
_CLIP_G = {
    "vocab_size": 49408,
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
    "hidden_act": "gelu",
}
_ADDED = {"addition_embed_type": "text_time"}

SD15 = Shape(
    name="SD 1.5",
    backbone="StableDiffusion",
    resolution=512,
    batches=(1, 2, 4, 8, 16, 32),
    wanted=16,
    unet={
        "sample_size": 64,
        "block_out_channels": (320, 640, 1280, 1280),
        "layers_per_block": 2,
        "attention_head_dim": 8,
        "cross_attention_dim": 768,
    },
    weights=859_520_964,
    vae={**_VAE, "sample_size": 512, "scaling_factor": 0.18215},
    encoders={"text_encoder": _CLIP_L},
    tokens=77,
    tflop={FULL: 6.420, LORA: 5.042},
    checkpointed=False,
)
SDXL = Shape(
    name="SDXL",
    backbone="StableDiffusionXL",
    resolution=1024,
    batches=(1, 2, 4, 8),
    wanted=4,
    unet={
        "sample_size": 128,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 2,
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        **_ADDED,
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
    weights=2_567_463_684,
    vae={**_VAE, "sample_size": 1024, "scaling_factor": 0.13025},
    encoders={"text_encoder": _CLIP_L, "text_encoder_2": _CLIP_G},
    tokens=77,
    tflop={FULL: 53.98, LORA: 41.78},
    checkpointed=True,
)

_TINY_UNET = {
    "sample_size": 8,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "attention_head_dim": 2,
    "norm_num_groups": 4,
}
_TINY_VAE = {
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "block_out_channels": (8, 8),
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 4,
    "sample_size": 16,
}
_TINY_TEXT = {
    "vocab_size": 54,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "projection_dim": 16,
}
TINY = (
    SD15._replace(
        resolution=16,
        batches=(1, 2),
        wanted=2,
        unet={**_TINY_UNET, "cross_attention_dim": 16},
        weights=52_004,
        vae=_TINY_VAE,
        encoders={"text_encoder": _TINY_TEXT},
        tokens=16,
        tflop=None,
    ),
    SDXL._replace(
        resolution=16,
        batches=(2,),
        wanted=2,
        unet={
            **_TINY_UNET,
            "cross_attention_dim": 32,
            **_ADDED,
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 6 * 8 + 16,
        },
        weights=56_420,
        vae=_TINY_VAE,
        encoders={"text_encoder": _TINY_TEXT, "text_encoder_2": _TINY_TEXT},
        tokens=16,
        tflop=None,
    ),
)


def write_shape(shape: Shape, folder: Path, pairs: int) -> Stack:
    """Writes a pipeline without weights, and pairs.

    Args:
        shape: its shape.
        folder: where.
        pairs: how many.

    Raises:
        ValueError: the UNet has another number of weights than its original.
    """
    stack = stack_in(folder)
    tokenizer = tiny_tokenizer(shape.tokens)
    marks = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    parts: dict[str, Any] = {"scheduler": _scheduler()}
    with torch.device("meta"):
        parts |= {"unet": UNet2DConditionModel(**shape.unet), "vae": AutoencoderKL(**shape.vae)}
        for part, settings in shape.encoders.items():
            config = CLIPTextConfig(**settings, max_position_embeddings=shape.tokens, **marks)
            parts[part] = ENCODERS[part](config)
            parts[part.replace("text_encoder", "tokenizer")] = tokenizer
    weights = sum(weight.numel() for weight in parts["unet"].parameters())
    if weights != shape.weights:
        raise ValueError(f"{shape.name}: the UNet has {weights} weights in place of {shape.weights}")
    for part, value in parts.items():
        if part.startswith("text_encoder"):
            value.config.save_pretrained(stack.pipeline / part)
        elif part.startswith("tokenizer"):
            value.save_pretrained(stack.pipeline / part)
        else:
            value.save_config(stack.pipeline / part)
    _whole(parts).save_config(stack.pipeline)
    write_pairs(stack.pairs, pairs=pairs, pictures=PICTURES, side=shape.resolution)
    return stack


def _whole(parts: Mapping[str, Any]) -> Any:
    if "text_encoder_2" in parts:
        return StableDiffusionXLPipeline(**parts, add_watermarker=False)
    nothing = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return StableDiffusionPipeline(**parts, **nothing)


def _scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
