"""Contestants without a framework: the loop of published scripts, and the floor.

    bare.py FOLDER peer    # decode, encode pictures and prompts, stacked forwards, reads five numbers a step
    bare.py FOLDER floor   # what no exact step leaves out: forwards, backward, optimizer

Both are written from what those scripts do, and take data, order, noise and levels of noise from alignkit, so
that all train the same.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline
from stack import BATCH, RESOLUTION, stack_in
from torch import Tensor, nn
from turns import Turns

from alignkit import Batch, Key
from alignkit.data.dataset import PairDataset, collate
from alignkit.data.loader import ResumableLoader
from alignkit.noise import integers, normal
from alignkit_sources.jsonlines import JSONLines

# beta small: it multiplies what errors are rounded by, to 3e-5 of the loss at 2000
BETA, LR, CLIP = 250.0, 1e-5, 1.0
# large, so that Adam makes no whole steps of what gradients of nearly 0 are rounded by
EPS = 1e-5
# of the floor: so many batches come again and again
PREPARED = 8


class Inputs(NamedTuple):
    """What the networks are given: winners, then losers."""

    x_NCHW: Tensor
    t_N: Tensor
    noise_NCHW: Tensor
    text_NLD: Tensor


class Loop:
    """Diffusion-DPO on one device.

    Args:
        folder: of the stack.
    """

    def __init__(self, folder: Path) -> None:
        stack = stack_in(folder)
        self._pipeline = StableDiffusionPipeline.from_pretrained(stack.pipeline)
        self._pairs = PairDataset(JSONLines(str(stack.pairs)), RESOLUTION)
        self.policy = self._network(stack.pipeline)
        self._reference = self._network(stack.pipeline).requires_grad_(False)

    def batches(self) -> Iterator[Batch]:
        """In the order in which alignkit reads them."""
        loader = ResumableLoader(self._pairs, BATCH, seed=0, rank=0, world_size=1, collate_fn=collate)
        while True:
            yield from loader

    @torch.no_grad()
    def inputs(self, batch: Batch) -> Inputs:
        """Encodes pictures and prompts, and noises the latents."""
        pipe, key = self._pipeline, Key(0, batch.id_B, batch.visit_B)
        assert batch.image_KBCHW is not None
        moments = pipe.vae.encode(batch.image_KBCHW.flatten(0, 1)).latent_dist
        shape = tuple(moments.mean.shape[1:])
        drawn_NCHW = normal(key, "posterior", shape).repeat(2, 1, 1, 1)
        latent_NCHW = (moments.mean + moments.std * drawn_NCHW) * pipe.vae.config.scaling_factor
        t_N = integers(key, "step", pipe.scheduler.config.num_train_timesteps).repeat(2)
        noise_NCHW = normal(key, "noise", shape).repeat(2, 1, 1, 1)
        told = pipe.tokenizer(
            list(batch.prompts),
            padding="max_length",
            max_length=pipe.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        text_NLD = pipe.text_encoder(told.input_ids)[0].repeat(2, 1, 1)
        return Inputs(pipe.scheduler.add_noise(latent_NCHW, noise_NCHW, t_N), t_N, noise_NCHW, text_NLD)

    def loss(self, inputs: Inputs) -> tuple[Tensor, dict[str, Tensor]]:
        """Diffusion-DPO's, and what its scripts log."""
        error_KB = self._error(self.policy, inputs)
        with torch.no_grad():
            ref_error_KB = self._error(self._reference, inputs)
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

    @staticmethod
    def _error(network: nn.Module, inputs: Inputs) -> Tensor:
        said_NCHW = network(inputs.x_NCHW, inputs.t_N, inputs.text_NLD).sample
        return (said_NCHW - inputs.noise_NCHW).square().mean(dim=(1, 2, 3)).view(2, -1)

    @staticmethod
    def _network(folder: Path) -> nn.Module:
        network: nn.Module = StableDiffusionPipeline.from_pretrained(folder).unet
        return network


def run_peer(loop: Loop, turns: Turns) -> None:
    """All is encoded at every step, and five numbers are read."""
    optimizer = torch.optim.AdamW(loop.policy.parameters(), lr=LR, eps=EPS)
    read = {"loss": 0.0}
    batches = loop.batches()
    while True:
        turns.next(read["loss"], loop.policy)
        loss, logs = loop.loss(loop.inputs(next(batches)))
        loss.backward()
        nn.utils.clip_grad_norm_(loop.policy.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        read = {name: value.item() for name, value in logs.items()}


def run_floor(loop: Loop, turns: Turns) -> None:
    """Nothing is encoded or read."""
    optimizer = torch.optim.AdamW(loop.policy.parameters(), lr=LR, eps=EPS, fused=True)
    batches = loop.batches()
    prepared = [loop.inputs(next(batches)) for _ in range(PREPARED)]
    loss, step = torch.zeros(()), 0
    while True:
        turns.next(loss, loop.policy)
        loss, _ = loop.loss(prepared[step % PREPARED])
        loss.backward()
        nn.utils.clip_grad_norm_(loop.policy.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        step += 1


if __name__ == "__main__":
    {"peer": run_peer, "floor": run_floor}[sys.argv[2]](Loop(Path(sys.argv[1])), Turns())
