"""Stable Diffusion 1.x and 2.x: any diffusers folder or hub id of a ``StableDiffusionPipeline``.

Shape suffixes: K candidates of a prompt, best first; B prompts; N = K*B or a number of images; C H W; L
tokens; D width.
"""

import copy
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.training_utils import _collate_lora_metadata
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from alignkit import Backbone, Batch, Encoded, Key, Moments, Schedule
from alignkit.noise import bernoulli, posterior
from alignkit.policy import LoRA, Outside, has_adapters

PREDICTION_TYPES = ("epsilon", "v_prediction")
# the name under which attention processors get a conditioner's tokens
TOKENS = "tokens_NLD"


class StableDiffusion(Backbone):
    """A Stable Diffusion 1.x or 2.x pipeline with its own prediction type, epsilon or v.

    Args:
        path: a pipeline folder, a hub id such as "stable-diffusion-v1-5/stable-diffusion-v1-5", or
            "package:folder" for a folder that an installed package ships.
        lora: trains low-rank adapters instead of all weights.
        caption_dropout: share of visits at which the whole pair is shown the empty prompt; 0.2 in the
            Diffusion-DPO authors' script,
            https://github.com/SalesforceAIResearch/DiffusionDPO/blob/5233e75/train.py.
        gradient_checkpointing: recomputes activations in the backward pass: less memory, about a fifth
            slower.
    """

    def __init__(
        self,
        path: str,
        lora: LoRA | None = None,
        caption_dropout: float = 0.2,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if not 0 <= caption_dropout <= 1:
            raise ValueError(f"StableDiffusion: caption_dropout must be from 0 to 1, got {caption_dropout}")
        self.path, self.lora = path, lora
        self.caption_dropout, self.gradient_checkpointing = caption_dropout, gradient_checkpointing
        self._root = _located(path)
        scheduler = _loaded(DDPMScheduler, self._root, "scheduler")
        if scheduler.config.prediction_type not in PREDICTION_TYPES:
            raise ValueError(
                f"StableDiffusion: prediction_type of {path!r} must be one of {', '.join(PREDICTION_TYPES)}, "
                f"got {scheduler.config.prediction_type!r}"
            )
        self.prediction_type = scheduler.config.prediction_type
        alpha_bar_T = scheduler.alphas_cumprod.double()
        self.schedule = Schedule(alpha_bar_T.sqrt().float(), (1 - alpha_bar_T).sqrt().float())
        self._scheduler = DDIMScheduler.from_config(scheduler.config, clip_sample=False)
        self._tokenizer = _loaded(CLIPTokenizer, self._root, "tokenizer")
        self._text_encoder: Outside[CLIPTextModel] = Outside(
            _loaded(CLIPTextModel, self._root, "text_encoder", torch_dtype=torch.float32)
        )
        self._vae: Outside[AutoencoderKL] = Outside(
            _loaded(AutoencoderKL, self._root, "vae", torch_dtype=torch.float32)
        )

    @torch.no_grad()
    def encode(self, batch: Batch, *, key: Key) -> Encoded:
        candidates = len(batch.image_KBCHW)
        dropped = bernoulli(key, "caption_dropout", self.caption_dropout).tolist()
        prompts = tuple("" if drop else prompt for drop, prompt in zip(dropped, batch.prompts, strict=True))
        moments = self.encode_images(batch.image_KBCHW.flatten(0, 1))
        mean_KBCHW = moments.mean_NCHW.unflatten(0, (candidates, -1))
        std_KBCHW = moments.std_NCHW.unflatten(0, (candidates, -1))
        text_BLD, extras = self.encode_prompts(prompts, batch.image_KBCHW.device)
        latent_KBCHW = posterior(key, mean_KBCHW, std_KBCHW)
        return Encoded(latent_KBCHW, text_BLD, extras, mean_KBCHW, prompts)

    @torch.no_grad()
    def encode_images(self, image_NCHW: Tensor) -> Moments:
        # half precision makes this autoencoder overflow: black pictures and NaN latents
        with torch.autocast(image_NCHW.device.type, enabled=False):
            vae = self._vae.on(image_NCHW.device)
            distribution = vae.encode(image_NCHW.float()).latent_dist
            factor = vae.config.scaling_factor
            return Moments(distribution.mean * factor, distribution.std * factor)

    @torch.no_grad()
    def encode_prompts(
        self, prompts: Sequence[str], device: torch.device
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        token_BL = self._tokenizer(
            list(prompts),
            padding="max_length",
            max_length=self._tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids.to(device)
        with torch.autocast(device.type, enabled=False):
            return self._text_encoder.on(device)(token_BL).last_hidden_state, {}

    @torch.no_grad()
    def decode(self, latent_NCHW: Tensor) -> Tensor:
        vae = self._vae.on(latent_NCHW.device)
        image_NCHW: Tensor = vae.decode(latent_NCHW.float() / vae.config.scaling_factor).sample
        return (image_NCHW / 2 + 0.5).clamp(0, 1)

    def build_policy(self) -> nn.Module:
        unet = _loaded(UNet2DConditionModel, self._root, "unet", torch_dtype=torch.float32)
        if self.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        if self.lora is not None:
            unet.requires_grad_(False)
            unet.add_adapter(
                LoraConfig(
                    r=self.lora.rank,
                    lora_alpha=self.lora.alpha,
                    target_modules=list(self.lora.targets),
                    init_lora_weights="gaussian",
                )
            )
        policy: nn.Module = unet.train()
        return policy

    def build_reference(self, policy: nn.Module) -> nn.Module:
        return copy.deepcopy(policy)

    def predict(self, network: nn.Module, x_KBCHW: Tensor, t_KB: Tensor, encoded: Encoded) -> Tensor:
        candidates = len(x_KBCHW)
        text_NLD = encoded.text_BLD.repeat(candidates, 1, 1)
        x_NCHW, t_N = x_KBCHW.flatten(0, 1), t_KB.flatten()
        tokens_BLD = encoded.tokens_BLD
        told = None if tokens_BLD is None else {TOKENS: tokens_BLD.repeat(candidates, 1, 1)}
        prediction_NCHW: Tensor = network(
            x_NCHW, t_N, encoder_hidden_states=text_NLD, cross_attention_kwargs=told
        ).sample
        return prediction_NCHW.view_as(x_KBCHW)

    @torch.no_grad()
    def generate(
        self,
        network: nn.Module,
        prompts: Sequence[str],
        *,
        seeds: Sequence[int],
        num_steps: int,
        guidance: float,
        tokens_NLD: Tensor | None = None,
    ) -> Tensor:
        device = next(network.parameters()).device
        pipeline = StableDiffusionPipeline(
            vae=self._vae.on(device),
            text_encoder=self._text_encoder.on(device),
            tokenizer=self._tokenizer,
            unet=network,
            scheduler=self._scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.set_progress_bar_config(disable=True)
        # seeded on the CPU, so that the same seed gives the same picture on every device
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        if tokens_NLD is not None and guidance > 1:  # the unprompted half of a guided step comes first
            tokens_NLD = torch.cat([torch.zeros_like(tokens_NLD), tokens_NLD])
        drawn = pipeline(
            list(prompts),
            num_inference_steps=num_steps,
            guidance_scale=guidance,
            generator=generators,
            output_type="latent",
            cross_attention_kwargs=None if tokens_NLD is None else {TOKENS: tokens_NLD.to(device)},
        )
        latent_NCHW: Tensor = drawn.images.float()
        return latent_NCHW

    def save(self, network: nn.Module, folder: Path) -> None:
        if has_adapters(network):
            layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(network))
            # without its metadata the file loses lora_alpha wherever it differs from the rank
            metadata = _collate_lora_metadata({"unet": network})
            StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=layers, **metadata)
            network = _merged(network)
        network.save_pretrained(folder / "unet")  # type: ignore[operator]

    def load(self, folder: Path) -> nn.Module:
        network: nn.Module = _loaded(UNet2DConditionModel, str(folder), "unet", torch_dtype=torch.float32)
        return network.eval()


def _merged(network: Any) -> nn.Module:
    """A copy with its adapters added to the weights they adapt, and gone."""
    merged = copy.deepcopy(network)
    merged.fuse_lora()
    merged.unload_lora()
    plain: nn.Module = merged
    return plain


def _located(path: str) -> str:
    """Where a pipeline is: a local folder, or a hub id as it stands."""
    if match := re.fullmatch(r"([A-Za-z_]\w*):(\w[\w/.-]*)", path):
        try:
            path = str(files(match[1]) / match[2])
        except ModuleNotFoundError:
            raise ValueError(
                f"StableDiffusion: path {path!r}: no package {match[1]!r} is installed"
            ) from None
    elif re.fullmatch(r"[\w.-]+/[\w.-]+", path) and not Path(path).exists():
        return path
    if not (Path(path) / "model_index.json").is_file():
        raise ValueError(
            f"StableDiffusion: path {path!r} is no pipeline folder (it has no model_index.json). "
            "Give a folder that save_pretrained wrote, a hub id like 'owner/name', or 'package:folder'"
        )
    return path


def _loaded(kind: Any, root: str, part: str, **options: object) -> Any:
    """Loads one part of a pipeline by its class's ``from_pretrained``; an error says which part of which."""
    try:
        return kind.from_pretrained(root, subfolder=part, **options)
    except OSError as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"StableDiffusion: cannot load the {part} of {root!r}: {reason}\n"
            "Give a folder that holds a whole pipeline, or a hub id that this machine can reach"
        ) from error
