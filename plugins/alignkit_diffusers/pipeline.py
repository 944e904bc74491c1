"""What diffusers pipelines of an autoencoder, text encoders and one denoising network share.

Shape suffixes: K candidates of a prompt, best first; B prompts; N = K*B or a number of images; C H W; L
tokens; D width.
"""

import copy
import hashlib
import json
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKL
from diffusers.training_utils import _collate_lora_metadata
from peft.tuners.lora import LoraLayer
from peft.utils import get_peft_model_state_dict
from torch import Tensor, nn

from alignkit import Backbone, Moments, PromptLimit
from alignkit.averages import trainable
from alignkit.devices import sent
from alignkit.policy import LoRA, Outside, has_adapters
from alignkit.weightless import is_weightless
from alignkit_diffusers.adapters import DTYPES, FrozenDtype, add_adapters, check_targets, hold_frozen
from alignkit_diffusers.loading import PipelineFolder, opened


class PipelineBackbone(Backbone):
    """A pipeline of an autoencoder, text encoders and one network that is trained.

    The autoencoder and the text encoders run in float32, and are loaded when they are first asked: training
    on cached latents and prompts loads neither.

    Args:
        path: a pipeline folder, a hub id such as "stable-diffusion-v1-5/stable-diffusion-v1-5", or
            "package:folder" for a folder that an installed package ships; or a single safetensors file
            of all weights, with ``config``.
        lora: trains low-rank adapters instead of all weights.
        caption_dropout: share of visits at which the whole pair is shown the empty prompt.
        gradient_checkpointing: recomputes activations in the backward pass: less memory, about a fifth
            slower.
        frozen_dtype: how weights that are not trained are held, those of the policy under adapters and those
            of the reference's copy: in what mixed precision computes in, half the memory and the same
            numbers.
        revision: branch, tag or commit of a hub id.
        variant: which of several files of the same weights, such as "fp16".
        config: of a single file, the pipeline folder or hub id that has its settings and tokenizers.

    Class attributes:
        pipeline: the diffusers class that a family's folders are of.
        network_class: the diffusers class of the network that is trained.
        network_part: its sub-folder in a pipeline and in a run, and its prefix in files of adapters.
        encoders: sub-folders of the text encoders, with their classes.
        tokenizers: sub-folders of the tokenizers, with their classes.
    """

    pipeline: ClassVar[Any]
    network_class: ClassVar[Any]
    network_part: ClassVar[str]
    encoders: ClassVar[Mapping[str, Any]]
    tokenizers: ClassVar[Mapping[str, Any]]
    _scheduler: Any

    def __init__(
        self,
        path: str,
        lora: LoRA | None,
        caption_dropout: float,
        gradient_checkpointing: bool,
        frozen_dtype: FrozenDtype,
        *,
        revision: str | None,
        variant: str | None,
        config: str | None,
    ) -> None:
        super().__init__()
        self._name = type(self).__name__
        if not 0 <= caption_dropout <= 1:
            raise ValueError(f"{self._name}: caption_dropout must be from 0 to 1, got {caption_dropout}")
        self.path, self.lora = path, lora
        self.caption_dropout, self.gradient_checkpointing = caption_dropout, gradient_checkpointing
        if frozen_dtype not in DTYPES:
            raise ValueError(
                f"{self._name}: frozen_dtype must be one of {', '.join(DTYPES)}, got {frozen_dtype!r}"
            )
        self.frozen_dtype = frozen_dtype
        self.store = opened(path, revision=revision, variant=variant, config=config, owner=self._name)
        self._index = self.store.index
        network = self._index.get(self.network_part) or [None, None]
        if network[1] != self.network_class.__name__:
            raise ValueError(
                f"{self._name}: path {path!r} is a {self._index.get('_class_name')}; this backbone reads "
                f"pipelines with a {self.network_part} of class {self.network_class.__name__}, such as a "
                f"{self.pipeline.__name__}"
            )
        self._check_parts()
        if lora is not None:
            outline = self._config(self.network_class, self.network_part)
            check_targets(lora, self.network_class, outline, owner=self._name)
        vae = self._config(AutoencoderKL, "vae")
        self._factor: float = vae["scaling_factor"]
        self._shift: float = vae["shift_factor"] or 0.0
        self._pixels_per_latent: int = 2 ** (len(vae["block_out_channels"]) - 1)
        self._frozen_parts: dict[str, Outside[Any]] = {}
        self._token_makers: dict[str, Any] = {}

    @abstractmethod
    def _check_parts(self) -> None:
        """Refuses a pipeline of another family, by ``self._index``."""

    def _absent(self, parts: Iterable[str]) -> list[str]:
        """Those parts that the pipeline does not have."""
        return [part for part in parts if not (self._index.get(part) or [None])[0]]

    @abstractmethod
    def _asked(self, prompts: Sequence[str], guidance: float, device: torch.device) -> dict[str, Any]:
        """How the family's pipeline is told prompts and guidance: embeddings, of ``conditions``."""

    @abstractmethod
    def _asked_besides(self, tokens_NLD: Tensor | None, guidance: float) -> dict[str, Any]:
        """How the family's pipeline is told a conditioner's tokens."""

    def extra_parts(self) -> dict[str, Any]:
        """What the family's pipeline wants besides networks, autoencoder, tokenizers and scheduler."""
        return {}

    def _unpacked(self, drawn: Tensor) -> Tensor:
        """Latents, (N, C, H, W), of what the family's pipeline draws."""
        return drawn

    def origins(self) -> Mapping[str, str]:
        return self.store.origins()

    def encoder_hashes(self) -> Mapping[str, str]:
        parts = ("vae", *self.encoders, *self.tokenizers)
        hashes = {part: self.store.part_hash(part) for part in parts if not self._absent([part])}
        return {**hashes, "reading of prompts": json.dumps({"family": self._name, **self._reading()})}

    def _reading(self) -> Mapping[str, Any]:
        """Settings that change what is said of a prompt."""
        return {}

    def drawing_settings(self, network: nn.Module) -> Mapping[str, str]:
        told = {
            "network sha256": hashlib.sha256(_plain(network.config).encode()).hexdigest(),
            "scheduler": _plain(self._scheduler.config),
            "frozen_dtype": self.frozen_dtype,
        }
        # their strength is no weight
        scales = {name: it.scaling for name, it in network.named_modules() if isinstance(it, LoraLayer)}
        return {**told, "scales of adapters": _plain(scales)} if scales else told

    def prompt_limit(self) -> PromptLimit:
        lengths = self._lengths()
        part = max(lengths, key=lambda part: lengths[part])
        tokenizer = self._tokenizer(part)
        return PromptLimit(lambda prompt: len(tokenizer(prompt, verbose=False).input_ids), lengths[part])

    def _lengths(self) -> Mapping[str, int]:
        """How many tokens are read of a prompt, by tokenizer."""
        return {part: self._tokenizer(part).model_max_length for part in self.tokenizers}

    @torch.no_grad()
    def encode_images(self, image_NCHW: Tensor) -> Moments:
        # half precision makes these autoencoders overflow: black pictures and NaN latents
        with torch.autocast(image_NCHW.device.type, enabled=False):
            vae = self._frozen(AutoencoderKL, "vae", image_NCHW.device)
            distribution = vae.encode(image_NCHW.float()).latent_dist
        mean_NCHW = (distribution.mean - self._shift) * self._factor
        std_NCHW = distribution.std * self._factor
        if not is_weightless():
            self._check_finite(mean_NCHW, std_NCHW)
        return Moments(mean_NCHW, std_NCHW)

    @torch.no_grad()
    def decode(self, latent_NCHW: Tensor) -> Tensor:
        with torch.autocast(latent_NCHW.device.type, enabled=False):
            vae = self._frozen(AutoencoderKL, "vae", latent_NCHW.device)
            image_NCHW: Tensor = vae.decode(latent_NCHW.float() / self._factor + self._shift).sample
        return (image_NCHW / 2 + 0.5).clamp(0, 1)

    def build_policy(self) -> nn.Module:
        policy: nn.Module = self.built()
        if self.lora is not None:
            hold_frozen(policy, DTYPES[self.frozen_dtype])
        return policy

    def build_reference(self, policy: nn.Module) -> nn.Module:
        reference = copy.deepcopy(policy)
        if self.lora is None:  # of adapters, the policy holds what is frozen as it should be
            hold_frozen(reference.requires_grad_(False), DTYPES[self.frozen_dtype])
        return reference

    def frozen(self) -> Mapping[str, nn.Module]:
        device = torch.empty(0).device
        kinds = {"vae": AutoencoderKL, **self.encoders}
        return {part: self._frozen(kind, part, device) for part, kind in kinds.items()}

    def release(self) -> None:
        for part in self._frozen_parts.values():
            part.on(torch.device("cpu"))

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
        # prompts are encoded here, so that they may be cached, and an empty one is that of training
        pipeline = self.pipeline(
            vae=self._frozen(AutoencoderKL, "vae", device),
            scheduler=self._scheduler,
            **{self.network_part: network},
            **dict.fromkeys((*self.encoders, *self.tokenizers)),
            **self.extra_parts(),
        )
        pipeline.set_progress_bar_config(disable=True)
        # seeded on the CPU, so that the same seed gives the same picture on every device
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        asked, dtype = self._asked(prompts, guidance, device), DTYPES[self.frozen_dtype]
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            drawn = pipeline(
                **asked,
                **self._asked_besides(tokens_NLD, guidance),
                num_inference_steps=num_steps,
                generator=generators,
                output_type="latent",
            )
        return self._unpacked(drawn.images.float())

    def save(self, network: nn.Module, folder: Path) -> None:
        if has_adapters(network):
            # under peft's names: in a file that has diffusers' older ones for some layers and peft's for
            # others, diffusers takes the first to be of all
            layers = get_peft_model_state_dict(network)
            # without its metadata the file loses lora_alpha wherever it differs from the rank
            metadata = _collate_lora_metadata({self.network_part: network})
            self.pipeline.save_lora_weights(
                folder, **{f"{self.network_part}_lora_layers": layers}, **metadata
            )
            network = self._merged(network)
        network.save_pretrained(folder / self.network_part)  # type: ignore[operator]

    def load(self, folder: Path) -> nn.Module:
        run = PipelineFolder(self._name, str(folder))
        network: nn.Module = run.network(self.network_class, self.network_part)
        return network.eval()

    def built(self) -> Any:
        """The network with the adapters that it is to have, in float32."""
        network = self._network(self.network_class, self.network_part)
        if self.gradient_checkpointing:
            network.enable_gradient_checkpointing()
        if self.lora is not None:
            add_adapters(network, self.lora)
        return network.train()

    def _merged(self, network: nn.Module) -> nn.Module:
        """A network with a policy's adapters added to the weights they adapt, and gone.

        To the weights as they are stored, which the policy may hold in half precision.
        """
        merged = self.built()
        merged.load_state_dict(dict(trainable(network)), strict=False)
        merged.fuse_lora()
        merged.unload_lora()
        plain: nn.Module = merged
        return plain

    def _check_finite(self, *latents: Tensor) -> None:
        """Refuses latents that would turn every weight into NaN."""
        finite_N = torch.stack([latent_NCHW.isfinite().flatten(1).all(1) for latent_NCHW in latents]).all(0)
        if not finite_N.all():
            places = ", ".join(str(place) for place in (~finite_N).nonzero().flatten().tolist())
            raise ValueError(
                f"{self._name}: latents of {len(finite_N)} pictures are not finite at place {places} (the "
                "first is 0; all winners come before all losers): check those pictures, and the vae of "
                f"{self.path!r}, which runs in float32"
            )

    def _said(self, encoder: str, token_BL: Tensor, device: torch.device) -> Any:
        """What a text encoder says of tokens, with the hidden states of all its layers."""
        with torch.autocast(device.type, enabled=False):
            network = self._frozen(self.encoders[encoder], encoder, device)
            return network(token_BL, output_hidden_states=True)

    def _tokenizer(self, part: str) -> Any:
        """A tokenizer, loaded when it is first asked for."""
        if part not in self._token_makers:
            self._token_makers[part] = self._loaded(self.tokenizers[part], part)
        return self._token_makers[part]

    def _tokens(self, tokenizer: str, prompts: Sequence[str], device: torch.device) -> Tensor:
        """Numbers of the prompts' tokens, (B, L): padded, and cut off, to what the text encoder reads."""
        length, maker = self._lengths()[tokenizer], self._tokenizer(tokenizer)
        token_BL: Tensor = maker(
            list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        ).input_ids
        return sent(token_BL, device)

    def _frozen(self, kind: Any, part: str, device: torch.device) -> Any:
        """A part that is never trained, in float32 on the device; loaded when it is first asked for."""
        if part not in self._frozen_parts:
            # what is loaded under inference mode could not be moved to another device outside of it
            with torch.inference_mode(False):
                self._frozen_parts[part] = Outside(self._network(kind, part))
        return self._frozen_parts[part].on(device)

    def _config(self, kind: Any, part: str) -> dict[str, Any]:
        """What a part's config.json says, and its class where the file is silent."""
        return self.store.config(kind, part)

    def _network(self, kind: Any, part: str) -> Any:
        """A part with weights, or its shapes where only those are wanted."""
        read = self.store.outline if is_weightless() else self.store.network
        return read(kind, part)

    def _loaded(self, kind: Any, part: str) -> Any:
        """A part without weights."""
        return self.store.plain(kind, part)


def _plain(settings: Any) -> str:
    """Settings as text; what diffusers notes of its own, such as its version, is left out."""
    told = {name: value for name, value in settings.items() if not name.startswith("_")}
    return json.dumps(told, sort_keys=True, default=str)
