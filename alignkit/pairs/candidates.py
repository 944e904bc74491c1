"""Candidates of prompts: drawn, scored, and kept in files with where they come from.

Suffixes: K candidates of a prompt; N images; C H W; L tokens; D width.
"""

import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor, nn

from alignkit.components import Backbone, Reward
from alignkit.evaluation.drawing import check_numbers, drawn
from alignkit.evaluation.judging import judged
from alignkit.evaluation.sheet import to_pictures
from alignkit.pairs.files import is_there, write_table
from alignkit.rollout import Provenance, Request, seed_of


class Generator(NamedTuple):
    """Who draws.

    Args:
        backbone: the model.
        network: its network.
        precision: as for ``drawn``.
        tokens_LD: what a conditioner tells it besides the prompt; None: nothing.
    """

    backbone: Backbone
    network: nn.Module
    precision: str = "32-true"
    tokens_LD: Tensor | None = None

    @torch.no_grad()
    def draw(self, requests: Sequence[Request], provenance: Provenance) -> Tensor:
        """Images in [0, 1] of 8 bits, (N, C, H, W), each of its own seed.

        Raises:
            ValueError: they are no pictures.
        """
        tokens_LD, count = self.tokens_LD, len(requests)
        image_NCHW = drawn(
            self.backbone,
            self.network,
            [request.prompt for request in requests],
            seeds=[seed_of(provenance, request) for request in requests],
            num_steps=provenance.num_steps,
            guidance=provenance.guidance,
            tokens_NLD=None if tokens_LD is None else tokens_LD.expand(count, *tokens_LD.shape),
            precision=self.precision,
        )
        kind = type(self.backbone).__name__
        check_numbers(image_NCHW, owner=kind, guidance=provenance.guidance, precision=self.precision)
        return image_NCHW.to(next(self.network.parameters()).device)


class Order(NamedTuple):
    """What is drawn and judged. Candidates of another order are others.

    Args:
        provenance: who draws, and how.
        audience: a hash of what a conditioner tells; empty without one.
        prompts: what is drawn, each once.
        images_per_prompt: candidates of each prompt.
        batch_size: images that are drawn at once, if a prompt has no more.
        rewards: who judges: settings by name.
        model: what is around the network, and its settings: see ``surroundings``.
    """

    provenance: Provenance
    audience: str
    prompts: tuple[str, ...]
    images_per_prompt: int
    batch_size: int
    rewards: Mapping[str, Any]
    model: Mapping[str, Any]

    def told(self) -> dict[str, Any]:
        """What files say of it."""
        rest = {
            name: value for name, value in self._asdict().items() if name not in ("provenance", "prompts")
        }
        prompts = hashlib.sha256(json.dumps(self.prompts).encode()).hexdigest()
        return {**self.provenance._asdict(), **rest, "prompts": prompts}

    def parts(self) -> list[tuple[str, ...]]:
        """The prompts of each file: as many as make a batch."""
        size = max(1, self.batch_size // self.images_per_prompt)
        return [self.prompts[first : first + size] for first in range(0, len(self.prompts), size)]


class Drawn(NamedTuple):
    """The candidates of a prompt.

    Args:
        prompt: what they should show.
        png_K: the encoded pictures.
        seed_K: what each was drawn from.
        score_K: of each, what every reward says, by its name.
    """

    prompt: str
    png_K: tuple[bytes, ...]
    seed_K: tuple[int, ...]
    score_K: tuple[Mapping[str, float], ...]


class Candidates:
    """The candidates of an order, in files of a few prompts each.

    Args:
        folder: where the files are.
        order: what is drawn and judged.
    """

    def __init__(self, folder: Path, order: Order) -> None:
        self.folder, self.order, self.parts = folder, order, order.parts()

    def path(self, part: int) -> Path:
        """The file of a part."""
        return self.folder / f"part-{part:05d}.parquet"

    def missing(self) -> list[int]:
        """Parts that are not there yet.

        Raises:
            ValueError: there are some of another order.
        """
        told = self.order.told()
        return [part for part in range(len(self.parts)) if not is_there(self.path(part), told)]

    @torch.no_grad()
    def make(self, part: int, generator: Generator, rewards: Mapping[str, Reward]) -> None:
        """Draws and judges the candidates of a part, and writes them."""
        numbers = range(self.order.images_per_prompt)
        requests = [Request(prompt, number) for prompt in self.parts[part] for number in numbers]
        rows: dict[str, list[Any]] = {name: [] for name in ("caption", "number", "seed", "png", *rewards)}
        for first in range(0, len(requests), self.order.batch_size):
            asked = requests[first : first + self.order.batch_size]
            image_NCHW = generator.draw(asked, self.order.provenance)
            rows["caption"] += [request.prompt for request in asked]
            rows["number"] += [request.number for request in asked]
            rows["seed"] += [seed_of(self.order.provenance, request) for request in asked]
            rows["png"] += [_encoded(picture) for picture in to_pictures(image_NCHW)]
            for name, reward in rewards.items():
                rows[name] += judged(reward, image_NCHW, [request.prompt for request in asked]).tolist()
        write_table(self.path(part), [pa.table(rows)], {"provenance": self.order.told()})

    def read(self) -> Iterator[list[Drawn]]:
        """All candidates, one file after the other."""
        for part in range(len(self.parts)):
            rows = pq.read_table(self.path(part)).to_pylist()
            count = self.order.images_per_prompt
            yield [
                _drawn(rows[first : first + count], self.order.rewards)
                for first in range(0, len(rows), count)
            ]


def _drawn(rows: Sequence[Mapping[str, Any]], rewards: Mapping[str, Any]) -> Drawn:
    return Drawn(
        prompt=rows[0]["caption"],
        png_K=tuple(row["png"] for row in rows),
        seed_K=tuple(row["seed"] for row in rows),
        score_K=tuple({name: row[name] for name in rewards} for row in rows),
    )


def _encoded(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
