"""FLUX.1 (Black Forest Labs, 2024, https://github.com/black-forest-labs/flux).

Shape suffixes: B prompts; N images; C H W; L tokens; D width.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from diffusers import FluxPipeline, FluxTransformer2DModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5Tokenizer

from alignkit import Text
from alignkit.policy import LoRA
from alignkit_diffusers.adapters import FrozenDtype
from alignkit_diffusers.transformer import PATCH, TransformerPipeline


class Flux(TransformerPipeline):
    """A FLUX.1 pipeline, [dev] or [schnell]: any diffusers folder or hub id of one.

    Its transformer reads what T5 says of a prompt; ``Encoded.extras`` has ``pooled_BD``, the pooled output of
    CLIP. The empty prompt is the encoded "". [dev] was distilled from a guided model, and is told how
    strongly to guide: a setting here, the same for policy, reference and pictures. ``guidance`` of
    ``generate`` is classifier-free guidance besides, which it was not made for: draw with 1.

    Args:
        path: a pipeline folder, a hub id such as "black-forest-labs/FLUX.1-dev", or "package:folder" for a
            folder that an installed package ships; or a single safetensors file
            of all weights, with ``config``.
        lora: trains low-rank adapters instead of all weights.
        caption_dropout: share of visits at which the whole pair is shown the empty prompt; 0, since nothing
            is guided away from it.
        gradient_checkpointing: recomputes activations in the backward pass: less memory, about a fifth
            slower.
        guidance_embedding: what a transformer with a guidance embedding is told, in training and in drawing;
            3.5 in diffusers' pipeline and training script
            (https://github.com/huggingface/diffusers/blob/02a0169/examples/dreambooth/train_dreambooth_flux.py).
            [schnell] has none and is told nothing.
        max_sequence_length: tokens of a prompt that T5 reads, at most 512; 256 of [schnell].
        resolution: side of the pictures that it draws, pixels; a checkpoint does not say it.
        frozen_dtype: how weights that are not trained are held, those of the policy under adapters and those
            of the reference's copy: in what mixed precision computes in, half the memory and the same
            numbers.
        revision: branch, tag or commit of a hub id.
        variant: which of several files of the same weights, such as "fp16".
        config: of a single file, the pipeline folder or hub id that has its settings and tokenizers.
    """

    pipeline = FluxPipeline
    network_class = FluxTransformer2DModel
    encoders: ClassVar = {"text_encoder": CLIPTextModel, "text_encoder_2": T5EncoderModel}
    tokenizers: ClassVar = {"tokenizer": CLIPTokenizer, "tokenizer_2": T5Tokenizer}

    def __init__(
        self,
        path: str,
        lora: LoRA | None = None,
        caption_dropout: float = 0.0,
        gradient_checkpointing: bool = False,
        guidance_embedding: float = 3.5,
        max_sequence_length: int = 512,
        resolution: int = 1024,
        frozen_dtype: FrozenDtype = "float32",
        revision: str | None = None,
        variant: str | None = None,
        config: str | None = None,
    ) -> None:
        super().__init__(
            path,
            lora,
            caption_dropout,
            gradient_checkpointing,
            max_sequence_length,
            frozen_dtype,
            revision=revision,
            variant=variant,
            config=config,
        )
        if not 0 <= guidance_embedding < math.inf:
            raise ValueError(f"Flux: guidance_embedding must be at least 0, got {guidance_embedding}")
        patch = PATCH * self._pixels_per_latent
        if resolution < patch or resolution % patch:
            raise ValueError(f"Flux: resolution must be a multiple of {patch} pixels, got {resolution}")
        self.guidance_embedding, self.resolution = guidance_embedding, resolution
        self._told_guidance: bool = self._config(FluxTransformer2DModel, "transformer")["guidance_embeds"]

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str], device: torch.device) -> Text:
        pooled_BD = self._said(
            "text_encoder", self._tokens("tokenizer", prompts, device), device
        ).pooler_output
        token_BL = self._tokens("tokenizer_2", prompts, device)
        text_BLD = self._said("text_encoder_2", token_BL, device).last_hidden_state
        return Text(text_BLD, {"pooled_BD": pooled_BD})

    def _lengths(self) -> Mapping[str, int]:
        return {**super()._lengths(), "tokenizer_2": self.max_sequence_length}

    def _velocity(
        self, network: nn.Module, x_NCHW: Tensor, sigma_N: Tensor, text_NLD: Tensor, pooled_ND: Tensor
    ) -> Tensor:
        height, width = x_NCHW.shape[-2] // PATCH, x_NCHW.shape[-1] // PATCH
        rows, columns = (torch.arange(side, device=x_NCHW.device) for side in (height, width))
        place_L3 = F.pad(torch.cartesian_prod(rows, columns), (1, 0)).to(x_NCHW.dtype)
        velocity_NLD: Tensor = network(
            F.pixel_unshuffle(x_NCHW, PATCH).flatten(2).transpose(1, 2),
            timestep=sigma_N,  # it multiplies by 1000 itself
            guidance=torch.full_like(sigma_N, self.guidance_embedding) if self._told_guidance else None,
            encoder_hidden_states=text_NLD,
            pooled_projections=pooled_ND,
            txt_ids=place_L3.new_zeros(text_NLD.shape[1], 3),
            img_ids=place_L3,
        ).sample
        return _pictured(velocity_NLD, height)

    def _guided(self, guidance: float) -> Mapping[str, Any]:
        return {
            "guidance_scale": self.guidance_embedding,
            "true_cfg_scale": guidance,
            "height": self.resolution,
            "width": self.resolution,
        }

    def drawing_settings(self, network: nn.Module) -> Mapping[str, str]:
        own = {"guidance_embedding": str(self.guidance_embedding), "resolution": str(self.resolution)}
        return {**super().drawing_settings(network), **own}

    def _unpacked(self, drawn: Tensor) -> Tensor:
        return _pictured(drawn, self.resolution // (PATCH * self._pixels_per_latent))


def _pictured(token_NLD: Tensor, height: int) -> Tensor:
    """The latents whose squares are the given tokens, row by row, (N, C, H, W)."""
    return F.pixel_shuffle(token_NLD.transpose(1, 2).unflatten(2, (height, -1)), PATCH)
