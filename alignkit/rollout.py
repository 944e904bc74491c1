"""Candidates that a network made: generated, stored with where they come from, served to a sampler.

Shape suffixes: N images; C H W.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

import alignkit
from alignkit.components import Backbone
from alignkit.files import write_tensors
from alignkit.types import Moments


class Recipe(NamedTuple):
    """How candidates are generated.

    Args:
        images_per_prompt: how many of each prompt.
        num_steps: steps of the backbone's sampling method per image.
        guidance: weight of classifier-free guidance; 1 switches it off.
        batch_size: images that are generated at once.
        chunk_size: images per file, a multiple of the batch size: what a killed run has to make again.
    """

    images_per_prompt: int = 1
    num_steps: int = 20
    guidance: float = 1.0
    batch_size: int = 32
    chunk_size: int = 32


class Provenance(NamedTuple):
    """Where candidates come from. Those that differ in any of it are not the same.

    Args:
        round: number of the round, from 0.
        generator: fingerprint of the network, as ``Reference`` gives it.
        backbone: class of the model around it.
        sampler: sampling method.
        num_steps: its steps per image.
        guidance: weight of classifier-free guidance.
        seed: the run's; each image has its own, see ``seed_of``.
        precision: the trainer's.
    """

    round: int
    generator: str
    backbone: str
    sampler: str
    num_steps: int
    guidance: float
    seed: int
    precision: str


class Request(NamedTuple):
    """One image: for whom, and which of the prompt's images it is, from 0."""

    prompt: str
    number: int


def seed_of(provenance: Provenance, request: Request) -> int:
    """The seed of one image, a hash of the run's seed, the round, the prompt and the image's number."""
    return hashed_seed(provenance.seed, provenance.round, *request)


def hashed_seed(*named: str | int) -> int:
    """A seed of 63 bits that depends on what it is named by, and on nothing else."""
    digest = hashlib.blake2b(json.dumps(named).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def as_read(image_NCHW: Tensor) -> Tensor:
    """Images in [0, 1] as they come back from a file of 8 bits per channel, in [-1, 1]."""
    return (image_NCHW.clamp(0, 1) * 255).round() / 127.5 - 1


class Rollouts:
    """The candidates of one round, as an autoencoder's moments, in files of a fixed composition.

    The composition follows from prompts and sizes alone, so that whoever resumes, with however many
    processes, makes the files that are missing, and makes them as they would have been.

    Args:
        folder: where the files are.
        prompts: for whom candidates are made.
        recipe: how many, and how they are split over files.
        provenance: where they come from.
    """

    def __init__(
        self, folder: Path, prompts: Sequence[str], *, recipe: Recipe, provenance: Provenance
    ) -> None:
        self.folder, self.provenance, self._recipe = folder, provenance, recipe
        distinct, count, size = sorted(set(prompts)), recipe.images_per_prompt, recipe.chunk_size
        requests = [Request(prompt, number) for prompt in distinct for number in range(count)]
        self.chunks = [requests[start : start + size] for start in range(0, len(requests), size)]
        self._first = {prompt: place * count for place, prompt in enumerate(distinct)}
        self._opened: dict[int, Any] = {}

    def path(self, chunk: int) -> Path:
        """The file of a chunk."""
        return self.folder / f"part-{chunk:05d}.safetensors"

    def fault(self, chunk: int) -> str:
        """What is wrong with the file of a chunk; empty if nothing is."""
        try:
            with safe_open(self.path(chunk), "pt") as file:
                told = file.metadata()
            found, requests = json.loads(told["provenance"]), json.loads(told["requests"])
        except FileNotFoundError:
            return "is missing"
        except (SafetensorError, OSError, TypeError, KeyError, ValueError) as error:
            return f"cannot be read ({error})"
        for name, value in self.provenance._asdict().items():
            if found.get(name) != value:
                return f"is of another {name}: {found.get(name)!r}, not {value!r}"
        if requests != [list(request) for request in self.chunks[chunk]]:
            return "is of other prompts"
        return ""

    def generate(self, chunk: int, backbone: Backbone, network: nn.Module, precision: Any) -> None:
        """Makes the candidates of a chunk and stores them, all or none.

        They are decoded, rounded to 8 bits and encoded again, so that they differ from real images by what
        they show, and not by what an autoencoder does.

        Args:
            chunk: number of the chunk.
            backbone: the model.
            network: who generates.
            precision: gives the context that the network runs in.
        """
        parts = []
        for start in range(0, len(self.chunks[chunk]), self._recipe.batch_size):
            requests = self.chunks[chunk][start : start + self._recipe.batch_size]
            with precision.forward_context():
                latent_NCHW = backbone.generate(
                    network,
                    [request.prompt for request in requests],
                    seeds=[seed_of(self.provenance, request) for request in requests],
                    num_steps=self.provenance.num_steps,
                    guidance=self.provenance.guidance,
                )
            parts.append(backbone.encode_images(as_read(backbone.decode(latent_NCHW))))
        told = {
            "provenance": json.dumps(self.provenance._asdict()),
            "requests": json.dumps(self.chunks[chunk]),
            "versions": json.dumps({"alignkit": alignkit.__version__, "torch": torch.__version__}),
        }
        mean_NCHW, std_NCHW = (torch.cat(part) for part in zip(*parts, strict=True))
        write_tensors(self.path(chunk), {"mean": mean_NCHW, "std": std_NCHW}, told)

    def moments(self, requests: Sequence[Request]) -> Moments:
        """Reads candidates, in the order asked for.

        Raises:
            ValueError: there are none for such a prompt, or the file that holds them is not this round's.
        """
        rows = [self._row(request) for request in requests]
        mean_NCHW, std_NCHW = (torch.cat(part) for part in zip(*rows, strict=True))
        return Moments(mean_NCHW, std_NCHW)

    def _row(self, request: Request) -> tuple[Tensor, Tensor]:
        if request.prompt not in self._first or request.number >= self._recipe.images_per_prompt:
            raise ValueError(
                f"{self.folder} holds no image {request.number} for {request.prompt!r}: images are generated "
                "for the training prompts of the run"
            )
        chunk, row = divmod(self._first[request.prompt] + request.number, self._recipe.chunk_size)
        if chunk not in self._opened:
            if fault := self.fault(chunk):
                raise ValueError(f"{self.path(chunk)} {fault}")
            self._opened[chunk] = safe_open(self.path(chunk), "pt")
        file = self._opened[chunk]
        return file.get_slice("mean")[row : row + 1], file.get_slice("std")[row : row + 1]
