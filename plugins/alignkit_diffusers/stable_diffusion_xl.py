"""Stable Diffusion XL (Podell et al., 2023, https://arxiv.org/abs/2307.01952), without its refiner.

Shape suffixes: K candidates of a prompt, best first; B prompts; N = K*B; C H W; L tokens; D width.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import StableDiffusionXLPipeline
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from alignkit import Encoded
from alignkit.policy import Outside
from alignkit_diffusers.unet import UNetPipeline, tokenized

TOKENIZERS = ("tokenizer", "tokenizer_2")
TEXT_ENCODERS = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}


class StableDiffusionXL(UNetPipeline):
    """A Stable Diffusion XL base pipeline: any diffusers folder or hub id of one.

    ``Encoded.extras`` has ``pooled_BD``, what the second text encoder says of the whole prompt, and
    ``time_ids_B6``: height and width of the original, top and left of the crop, height and width of the
    target, in pixels. They are those of a square picture that was neither resized nor cropped: the batch's
    resolution, 0, 0, and the batch's resolution, as in the Diffusion-DPO authors' script.

    The empty prompt is the checkpoint's own, everywhere: zeros in place of every embedding where its
    ``model_index.json`` says ``force_zeros_for_empty_prompt``, as that of SDXL base does, else the encoded
    "". Zeros are what its pipeline guides against, and what the framework that it was trained with drops
    captions to (``GeneralConditioner`` of
    https://github.com/Stability-AI/generative-models/blob/0ad7de9/sgm/modules/encoders/modules.py).
    Deviation: the Diffusion-DPO authors' script drops captions to the encoded "", which inference never
    looks at.
    """

    pipeline = StableDiffusionXLPipeline

    def _load_texts(self) -> None:
        index = self._index()
        absent = [part for part in (*TOKENIZERS, *TEXT_ENCODERS) if not (index.get(part) or [None])[0]]
        if absent:  # SD 1.x has one of each, the refiner only the second ones
            raise ValueError(
                f"StableDiffusionXL: path {self.path!r} is no base pipeline of SDXL: it has no "
                f"{', '.join(absent)}"
            )
        self._zeros = bool(index.get("force_zeros_for_empty_prompt", True))
        self._tokenizers = [self._loaded(CLIPTokenizer, part) for part in TOKENIZERS]
        self._text_encoders = [
            Outside(self._loaded(kind, part, torch_dtype=torch.float32))
            for part, kind in TEXT_ENCODERS.items()
        ]

    @torch.no_grad()
    def encode_prompts(
        self, prompts: Sequence[str], device: torch.device
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        said = []
        with torch.autocast(device.type, enabled=False):
            for tokenizer, encoder in zip(self._tokenizers, self._text_encoders, strict=True):
                said.append(
                    encoder.on(device)(tokenized(tokenizer, prompts, device), output_hidden_states=True)
                )
        text_BLD = torch.cat([part.hidden_states[-2] for part in said], dim=-1)
        pooled_BD = said[1].text_embeds
        if self._zeros:
            told_B = torch.tensor([float(prompt != "") for prompt in prompts], device=device)
            text_BLD, pooled_BD = text_BLD * told_B[:, None, None], pooled_BD * told_B[:, None]
        return text_BLD, {"pooled_BD": pooled_BD}

    def _of_pictures(self, image_KBCHW: Tensor) -> Mapping[str, Tensor]:
        return {"time_ids_B6": _time_ids(image_KBCHW[0])}

    def _added(self, x_KBCHW: Tensor, encoded: Encoded) -> dict[str, Any]:
        candidates = len(x_KBCHW)
        time_ids_B6 = encoded.extras.get("time_ids_B6")
        if time_ids_B6 is None:  # prompts without a picture: as the pipeline, one of the size that is drawn
            time_ids_B6 = _time_ids(x_KBCHW[0], scale=self._pixels_per_latent)
        conditions = {
            "text_embeds": encoded.extras["pooled_BD"].repeat(candidates, 1),
            "time_ids": time_ids_B6.repeat(candidates, 1),
        }
        return {"added_cond_kwargs": conditions}

    def _asked(self, prompts: Sequence[str], device: torch.device) -> dict[str, Any]:
        # encoded here, so that an empty prompt is the same one as in training
        text_NLD, extras = self.encode_prompts(prompts, device)
        return {"prompt_embeds": text_NLD, "pooled_prompt_embeds": extras["pooled_BD"]}

    def _parts(self, device: torch.device) -> dict[str, Any]:
        first, second = (encoder.on(device) for encoder in self._text_encoders)
        return {
            "text_encoder": first,
            "text_encoder_2": second,
            "tokenizer": self._tokenizers[0],
            "tokenizer_2": self._tokenizers[1],
            "force_zeros_for_empty_prompt": self._zeros,
            "add_watermarker": False,
        }


def _time_ids(image_BCHW: Tensor, scale: int = 1) -> Tensor:
    """What SDXL is told of the size of pictures that were neither resized nor cropped, float32, (B, 6)."""
    height, width = (scale * side for side in image_BCHW.shape[-2:])
    size_6 = torch.tensor([height, width, 0, 0, height, width], device=image_BCHW.device).float()
    return size_6.expand(len(image_BCHW), -1)
