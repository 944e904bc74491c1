"""Stable Diffusion XL (Podell et al., 2023, https://arxiv.org/abs/2307.01952), without its refiner.

Shape suffixes: K candidates of a prompt, best first; B prompts; N = K*B; C H W; L tokens; D width.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers import StableDiffusionXLPipeline
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from alignkit import Batch, Encoded, Text
from alignkit.devices import sent
from alignkit_diffusers.unet import UNetPipeline


class StableDiffusionXL(UNetPipeline):
    """A Stable Diffusion XL base pipeline: any diffusers folder or hub id of one.

    ``Encoded.extras`` has ``pooled_BD``, what the second text encoder says of the whole prompt, and
    ``time_ids_BK6``: height and width of each candidate's original, top and left of its crop, height and
    width of the target, in pixels. The first four are ``Batch.frame_KB4``; without it those of a square
    picture that was neither resized nor cropped, the batch's resolution, 0, 0, as the Diffusion-DPO authors'
    script says of all. Pictures are drawn as such.

    The empty prompt is the checkpoint's own, everywhere: zeros in place of every embedding where its
    ``model_index.json`` says ``force_zeros_for_empty_prompt``, as that of SDXL base does, else the encoded
    "". Zeros are what its pipeline guides against, and what the framework that it was trained with drops
    captions to (``GeneralConditioner`` of
    https://github.com/Stability-AI/generative-models/blob/0ad7de9/sgm/modules/encoders/modules.py).
    Deviation: the Diffusion-DPO authors' script drops captions to the encoded "", which inference never
    looks at.
    """

    pipeline = StableDiffusionXLPipeline
    encoders: ClassVar = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}
    tokenizers: ClassVar = {"tokenizer": CLIPTokenizer, "tokenizer_2": CLIPTokenizer}

    def _check_parts(self) -> None:
        absent = self._absent((*self.tokenizers, *self.encoders))
        if absent:  # SD 1.x has one of each, the refiner only the second ones
            raise ValueError(
                f"StableDiffusionXL: path {self.path!r} is no base pipeline of SDXL: it has no "
                f"{', '.join(absent)}"
            )

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str], device: torch.device) -> Text:
        said = [
            self._said(encoder, self._tokens(tokenizer, prompts, device), device)
            for tokenizer, encoder in zip(self.tokenizers, self.encoders, strict=True)
        ]
        text_BLD = torch.cat([part.hidden_states[-2] for part in said], dim=-1)
        pooled_BD = said[1].text_embeds
        if self._zeros:
            told_B = sent(torch.tensor([float(prompt != "") for prompt in prompts]), device)
            text_BLD, pooled_BD = text_BLD * told_B[:, None, None], pooled_BD * told_B[:, None]
        return Text(text_BLD, {"pooled_BD": pooled_BD})

    def picture_conditions(self, batch: Batch, latent_KBCHW: Tensor) -> Mapping[str, Tensor]:
        if batch.frame_KB4 is None:
            return {"time_ids_BK6": self._whole(latent_KBCHW)}
        frame_BK4 = batch.frame_KB4.transpose(0, 1).to(latent_KBCHW.device).float()
        return {"time_ids_BK6": torch.cat([frame_BK4, self._whole(latent_KBCHW)[..., 4:]], dim=-1)}

    def _added(self, x_KBCHW: Tensor, encoded: Encoded) -> dict[str, Any]:
        candidates = len(x_KBCHW)
        time_ids_BK6 = encoded.extras.get("time_ids_BK6")
        if time_ids_BK6 is None:  # prompts without a picture: as the pipeline, one of the size that is drawn
            time_ids_BK6 = self._whole(x_KBCHW)
        # a sampler may ask about several points of each candidate that was read, or make candidates itself
        points = candidates // time_ids_BK6.shape[1]
        conditions = {
            "text_embeds": encoded.extras["pooled_BD"].repeat(candidates, 1),
            "time_ids": time_ids_BK6.transpose(0, 1).repeat_interleave(points, dim=0).flatten(0, 1),
        }
        return {"added_cond_kwargs": conditions}

    def _asked(self, prompts: Sequence[str], guidance: float, device: torch.device) -> dict[str, Any]:
        text_NLD, extras = self.conditions(prompts, device)
        asked = {
            "prompt_embeds": text_NLD,
            "pooled_prompt_embeds": extras["pooled_BD"],
            "guidance_scale": guidance,
        }
        if guidance > 1:
            text_NLD, extras = self.conditions([""] * len(prompts), device)
            asked["negative_prompt_embeds"] = text_NLD
            asked["negative_pooled_prompt_embeds"] = extras["pooled_BD"]
        return asked

    def extra_parts(self) -> dict[str, Any]:
        return {"force_zeros_for_empty_prompt": self._zeros, "add_watermarker": False}

    def _reading(self) -> Mapping[str, Any]:
        return {"empty prompt is zeros": self._zeros}

    @property
    def _zeros(self) -> bool:
        return bool(self._index.get("force_zeros_for_empty_prompt", True))

    def _whole(self, latent_KBCHW: Tensor) -> Tensor:
        """What SDXL is told of pictures that were neither resized nor cropped, float32, (B, K, 6)."""
        height, width = (self._pixels_per_latent * side for side in latent_KBCHW.shape[-2:])
        size_6 = sent(torch.tensor([height, width, 0, 0, height, width]).float(), latent_KBCHW.device)
        return size_6.expand(latent_KBCHW.shape[1], latent_KBCHW.shape[0], -1)
