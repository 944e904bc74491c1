"""The shipped pictures: one concept drawn by four design teams. Suffixes: N pictures, C H W."""

import io
from collections.abc import Collection
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor

FOLDER = Path(str(files("alignkit_emoji")))
SETS = ("noto", "twemoji", "fluent", "openmoji")
PROMPT_GROUPS = ("Animals & Nature", "Food & Drink")


class Pictures(NamedTuple):
    """Drawings in memory, grouped by concept: the four sets of one concept are neighbours.

    Args:
        image_NCHW: uint8, 32x32 RGB on white.
        concepts: name of each picture's concept, such as "red apple".
        sets: name of each picture's set, in the order of ``SETS``.
        png: the encoded pictures, as they are shipped.
    """

    image_NCHW: Tensor
    concepts: tuple[str, ...]
    sets: tuple[str, ...]
    png: tuple[bytes, ...]


def decode_image(data: bytes) -> Tensor:
    """Decodes a JPEG or PNG into uint8 CHW."""
    return torch.from_numpy(np.array(Image.open(io.BytesIO(data)).convert("RGB"))).permute(2, 0, 1)


def load_pictures(groups: Collection[str] = PROMPT_GROUPS) -> Pictures:
    """Reads the shipped pictures of the given Unicode groups; all of them when ``groups`` is empty."""
    tables = [pq.read_table(FOLDER / "data" / f"{name}.parquet").to_pylist() for name in SETS]
    rows = [
        (row["concept"], name, row["png"])
        for same in zip(*tables, strict=True)
        for name, row in zip(SETS, same, strict=True)
        if not groups or row["group"] in groups
    ]
    concepts, sets, png = zip(*rows, strict=True)
    return Pictures(torch.stack([decode_image(data) for data in png]), concepts, sets, png)


def load_concepts(groups: Collection[str] = PROMPT_GROUPS) -> tuple[str, ...]:
    """Names of the concepts of the given Unicode groups, in the order of the pictures."""
    rows = pq.read_table(FOLDER / "data" / f"{SETS[0]}.parquet", columns=["concept", "group"]).to_pylist()
    return tuple(row["concept"] for row in rows if not groups or row["group"] in groups)
