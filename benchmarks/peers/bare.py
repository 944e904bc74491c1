"""Contestants without a framework: the loop of published scripts, and the floor.

    bare.py FOLDER peer    # decode, encode pictures and prompts, stacked forwards, reads five numbers a step
    bare.py FOLDER floor   # what no exact step leaves out: forwards, backward, optimizer

Both are written from what those scripts do, and take data, order, noise and levels of noise from alignkit, so
that all train the same.
"""

import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from stack import BATCH, RESOLUTION, network, stack_in
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer
from turns import Turns

from alignkit import Batch, Key
from alignkit.compiling import Compile, Compiled
from alignkit.data.dataset import PairDataset, collate
from alignkit.data.loader import ResumableLoader
from alignkit.noise import integers, normal
from alignkit.policy import LoRA
from alignkit_diffusers.adapters import add_adapters, hold_frozen
from alignkit_sources.jsonlines import JSONLines

# beta small: it multiplies what errors are rounded by, to 3e-5 of the loss at 2000
BETA, LR, CLIP = 100.0, 1e-5, 1.0
# large, so that Adam makes no whole steps of what gradients of nearly 0 are rounded by
EPS = 1e-5
# of the floor: so many batches come again and again
PREPARED = 8
ENCODERS = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}
CPU = torch.device("cpu")


class Pacer(Protocol):
    """Who is asked before each step."""

    def next(self, loss: Tensor | float, policy: nn.Module | None) -> None:
        """Returns when the step may begin; told the loss of the last one."""


class Setting(NamedTuple):
    """How a loop trains.

    Args:
        device: where.
        dtype: what networks compute in; weights that are trained are float32.
        batch_size: pairs of a step.
        resolution: of pictures, pixels.
        workers: processes that read.
        lora: trains adapters.
        checkpointed: recomputes activations in the backward pass.
        halved: frozen networks are held in ``dtype`` and run without autocast, as in those scripts; else the
            reference runs as the policy does.
        compile: how policy and reference are compiled.
        accumulated: micro-steps of an update.
        prepared: batches of the floor.
    """

    device: torch.device = CPU
    dtype: torch.dtype = torch.float32
    batch_size: int = BATCH
    resolution: int = RESOLUTION
    workers: int = 0
    lora: bool = False
    checkpointed: bool = False
    halved: bool = False
    compile: Compile | None = None
    accumulated: int = 1
    prepared: int = PREPARED


class Inputs(NamedTuple):
    """What the networks are given: winners, then losers; ``told`` is what SDXL's want besides."""

    x_NCHW: Tensor
    t_N: Tensor
    noise_NCHW: Tensor
    text_NLD: Tensor
    told: Mapping[str, Any]


class Loop:
    """Diffusion-DPO on one device.

    Args:
        folder: of the stack.
        setting: how it trains.
    """

    def __init__(self, folder: Path, setting: Setting = Setting()) -> None:  # noqa: B008
        stack = stack_in(folder)
        self.setting, self._folder = setting, stack.pipeline
        self._pairs = PairDataset(JSONLines(str(stack.pairs)), setting.resolution)
        self._vae = self._frozen(AutoencoderKL, "vae")
        parts = [part for part in ENCODERS if (stack.pipeline / part).exists()]
        self._encoders = [self._frozen(ENCODERS[part], part) for part in parts]
        self._tokenizers = [
            CLIPTokenizer.from_pretrained(stack.pipeline, subfolder=part.replace("text_encoder", "tokenizer"))
            for part in parts
        ]
        self._scheduler = DDIMScheduler.from_pretrained(stack.pipeline, subfolder="scheduler")
        self.compiled = Compiled(setting.compile)
        self.policy: Any = self._unet().train()
        if setting.checkpointed:
            self.policy.enable_gradient_checkpointing()
        self._reference: Any = self.policy
        if setting.lora:
            add_adapters(self.policy, LoRA())
            hold_frozen(self.policy, setting.dtype)
        else:
            self._reference = self._unet().requires_grad_(False)
            if setting.halved:
                self._reference.to(setting.dtype)
            else:
                hold_frozen(self._reference, setting.dtype)

    @property
    def trained(self) -> list[nn.Parameter]:
        """The weights that are trained."""
        return [weight for weight in self.policy.parameters() if weight.requires_grad]

    def batches(self) -> Iterator[Batch]:
        """In the order in which alignkit reads them."""
        loader = ResumableLoader(
            self._pairs,
            self.setting.batch_size,
            seed=0,
            rank=0,
            world_size=1,
            num_workers=self.setting.workers,
            persistent_workers=self.setting.workers > 0,
            collate_fn=collate,
        )
        while True:
            yield from loader

    @torch.no_grad()
    def inputs(self, batch: Batch) -> Inputs:
        """Encodes pictures and prompts, and noises the latents."""
        device, dtype = self.setting.device, self.setting.dtype
        key = Key(0, batch.id_B.to(device), batch.visit_B.to(device))
        assert batch.image_KBCHW is not None
        image_NCHW = batch.image_KBCHW.flatten(0, 1).to(device, dtype)
        moments = self._vae.encode(image_NCHW).latent_dist
        shape = tuple(moments.mean.shape[1:])
        drawn_NCHW = normal(key, "posterior", shape).repeat(2, 1, 1, 1)
        latent_NCHW = (moments.mean + moments.std * drawn_NCHW) * self._vae.config.scaling_factor
        t_N = integers(key, "step", self._scheduler.config.num_train_timesteps).repeat(2)
        noise_NCHW = normal(key, "noise", shape).repeat(2, 1, 1, 1)
        text_NLD, told = self._said(batch.prompts)
        return Inputs(
            self._scheduler.add_noise(latent_NCHW, noise_NCHW, t_N), t_N, noise_NCHW, text_NLD, told
        )

    def loss(self, inputs: Inputs) -> tuple[Tensor, dict[str, Tensor]]:
        """Diffusion-DPO's, and what its scripts log."""
        self.compiled.begin()
        with self._autocast():
            error_KB = self._error(self.compiled("policy", self.policy), inputs)
        with torch.no_grad(), self._asked() as reference:
            ref_error_KB = self._error(self.compiled("reference", reference), inputs)
        gain_B = (ref_error_KB - error_KB)[0] - (ref_error_KB - error_KB)[1]
        loss = -F.logsigmoid(BETA / 2 * gain_B).mean()
        logs = {
            "loss": loss,
            "winner": error_KB[0].mean(),
            "loser": error_KB[1].mean(),
            "reference": ref_error_KB.mean(),
            "accuracy": (gain_B > 0).float().mean(),
        }
        return loss, logs

    def let_go(self) -> None:
        """Frees what encodes."""
        del self._vae, self._encoders
        if self.setting.device.type == "cuda":
            torch.cuda.empty_cache()

    def _said(self, prompts: tuple[str, ...]) -> tuple[Tensor, dict[str, Any]]:
        """What is said of prompts, for winners and losers, and what SDXL's UNet wants besides."""
        device, said = self.setting.device, []
        for tokenizer, encoder in zip(self._tokenizers, self._encoders, strict=True):
            tokens = tokenizer(
                list(prompts),
                padding="max_length",
                max_length=tokenizer.model_max_length,
                truncation=True,
                return_tensors="pt",
            )
            said.append(encoder(tokens.input_ids.to(device), output_hidden_states=len(self._encoders) > 1))
        if len(said) == 1:
            return said[0][0].repeat(2, 1, 1), {}
        text_NLD = torch.cat([part.hidden_states[-2] for part in said], dim=-1).repeat(2, 1, 1)
        side = self.setting.resolution
        time_ids_6 = torch.tensor([side, side, 0, 0, side, side], device=device, dtype=text_NLD.dtype)
        pooled_ND = said[1].text_embeds.repeat(2, 1)
        added = {"text_embeds": pooled_ND, "time_ids": time_ids_6.expand(len(pooled_ND), -1)}
        return text_NLD, {"added_cond_kwargs": added}

    def _error(self, run: Any, inputs: Inputs) -> Tensor:
        dtype = inputs.x_NCHW.dtype
        if self.setting.halved and not torch.is_autocast_enabled(self.setting.device.type):
            dtype = self.setting.dtype
        said_NCHW = run(inputs.x_NCHW.to(dtype), inputs.t_N, inputs.text_NLD, **inputs.told).sample
        error_NCHW = (said_NCHW.float() - inputs.noise_NCHW).square()
        return error_NCHW.mean(dim=(1, 2, 3)).view(2, -1)

    @contextmanager
    def _asked(self) -> Iterator[nn.Module]:
        """The reference: with adapters it is the policy without them."""
        if not self.setting.lora:
            with self._autocast(enabled=not self.setting.halved):
                yield self._reference
            return
        self.policy.disable_adapters()
        try:
            with self._autocast():
                yield self.policy
        finally:
            self.policy.enable_adapters()

    def _autocast(self, *, enabled: bool = True) -> AbstractContextManager[Any]:
        setting = self.setting
        return torch.autocast(
            setting.device.type, setting.dtype, enabled=enabled and setting.dtype != torch.float32
        )

    def _frozen(self, kind: Any, part: str) -> Any:
        found = network(kind, self._folder, part, self.setting.device).requires_grad_(False)
        return found if self.setting.dtype == torch.float32 else found.to(self.setting.dtype)

    def _unet(self) -> Any:
        return network(UNet2DConditionModel, self._folder, "unet", self.setting.device)


def run_peer(loop: Loop, turns: Pacer) -> None:
    """All is encoded at every step, and five numbers are read."""
    trained, accumulated = loop.trained, loop.setting.accumulated
    optimizer = torch.optim.AdamW(trained, lr=LR, eps=EPS)
    read, step = {"loss": 0.0}, 0
    batches = loop.batches()
    while True:
        turns.next(read["loss"], loop.policy)
        loss, logs = loop.loss(loop.inputs(next(batches)))
        (loss / accumulated).backward()
        step += 1
        if step % accumulated == 0:
            nn.utils.clip_grad_norm_(trained, CLIP)
            optimizer.step()
            optimizer.zero_grad()
        read = {name: value.item() for name, value in logs.items()}


def run_floor(loop: Loop, turns: Pacer) -> None:
    """Nothing is encoded or read."""
    trained = loop.trained
    optimizer = torch.optim.AdamW(trained, lr=LR, eps=EPS, fused=True)
    batches = loop.batches()
    prepared = [loop.inputs(next(batches)) for _ in range(loop.setting.prepared)]
    loop.let_go()
    loss, step = torch.zeros(()), 0
    while True:
        turns.next(loss, loop.policy)
        loop.compiled.zero_grad(optimizer)
        loss, _ = loop.loss(prepared[step % len(prepared)])
        loss.backward()
        nn.utils.clip_grad_norm_(trained, CLIP)
        optimizer.step()
        step += 1


if __name__ == "__main__":
    {"peer": run_peer, "floor": run_floor}[sys.argv[2]](Loop(Path(sys.argv[1])), Turns())
