"""A small stack of Stable Diffusion's shape, and pairs for it.

A UNet of 12.5 million weights on latents of 16 x 16; an autoencoder whose encoder costs 1.25 forwards of it
(1.39 for SD 1.5 at 512 x 512; both by torch's FlopCounterMode); a CLIP text encoder of four layers and
77 tokens; JPEGs of 512 x 512, read at 128 x 128. All weights are random.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedModel

from alignkit.testing.pipelines import tiny_tokenizer

RESOLUTION, PICTURE = 128, 512
TOKENS, WIDTH = 77, 64
BATCH = 4
PAIRS = 64


class Stack(NamedTuple):
    """Where the parts are."""

    pipeline: Path
    pairs: Path


def stack_in(folder: Path) -> Stack:
    """Names of the parts in a folder."""
    return Stack(folder / "pipeline", folder / "pairs.jsonl")


def write_stack(folder: Path) -> Stack:
    """Writes pipeline and pairs."""
    stack = stack_in(folder)
    _write_pipeline(stack.pipeline)
    write_pairs(stack.pairs, pairs=PAIRS, pictures=2 * PAIRS, side=PICTURE)
    return stack


def network(kind: Any, folder: Path, part: str, device: torch.device) -> Any:
    """A network of a pipeline on a device: as it was saved, or with random weights where none were.

    The same random ones at every call.

    Args:
        kind: its class.
        folder: of the pipeline.
        part: its sub-folder.
        device: where it is made, too.
    """
    if any((folder / part).glob("*.safetensors")):
        return kind.from_pretrained(folder, subfolder=part).to(device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), device:
        torch.manual_seed(0)
        if issubclass(kind, PreTrainedModel):
            return kind(kind.config_class.from_pretrained(folder, subfolder=part)).eval()
        return kind.from_config(kind.load_config(folder, subfolder=part)).eval()


def _write_pipeline(folder: Path) -> None:
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer(TOKENS)
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    StableDiffusionPipeline(
        vae=AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(24, 48, 96, 96),
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=8,
            sample_size=RESOLUTION,
        ),
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=UNet2DConditionModel(
            sample_size=RESOLUTION // 8,
            block_out_channels=(64, 128, 256),
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            layers_per_block=1,
            cross_attention_dim=WIDTH,
        ),
        scheduler=DDIMScheduler(
            beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False, steps_offset=1
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


def write_pairs(path: Path, *, pairs: int, pictures: int, side: int) -> None:
    """Writes pairs and their pictures, JPEGs beside them.

    Args:
        path: of the list of pairs.
        pairs: how many.
        pictures: how many; where they are fewer than two for each pair, pairs share them, and prompts.
        side: of a picture, pixels.
    """
    random = np.random.default_rng(0)
    folder = path.with_name("pictures")
    folder.mkdir(parents=True)
    for number in range(pictures):
        coarse = Image.fromarray(random.integers(256, size=(32, 32, 3), dtype=np.uint8))
        picture = coarse.resize((side, side), Image.Resampling.BICUBIC)
        picture.save(folder / f"{number}.jpg", quality=90)
    prompts = ["".join(random.choice(list("abcdefghij "), size=40)) for _ in range(min(pairs, pictures))]
    rows = []
    for number in range(pairs):
        names = [f"pictures/{(2 * number + place) % pictures}.jpg" for place in (0, 1)]
        told = prompts[number % len(prompts)]
        rows.append({"prompt": told, "image_0": names[0], "image_1": names[1], "label_0": number % 2})
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
