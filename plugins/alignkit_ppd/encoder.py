"""What is known of a person by a few pairs. Shape suffixes: L rows of an embedding, D their width."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from alignkit.data.pictures import whole_picture
from alignkit.modelcode import refuse_code

HASHED_VALUES = 4096


class LikedPair(NamedTuple):
    """One judgement of a person.

    Args:
        prompt: what both pictures were asked to show.
        preferred: the encoded picture that the person preferred.
        dispreferred: the other one.
    """

    prompt: str
    preferred: bytes
    dispreferred: bytes


class Profile(NamedTuple):
    """What an encoder says of a person.

    Args:
        rows_LD: the embedding, one row per layer of the encoder.
        text: a description in words; empty if the encoder writes none.
        truncated: whether the description was cut off.
    """

    rows_LD: Tensor
    text: str = ""
    truncated: bool = False


class Reader(NamedTuple):
    """A loaded encoder.

    Args:
        read: makes a profile out of a person's pairs; draws nothing.
        fingerprint: identity of the weights.
    """

    read: Callable[[Sequence[LikedPair]], Profile]
    fingerprint: str


class UserEncoder(ABC):
    """Embeds a person by a few pairs. Holds settings only: its model is loaded while it is used."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Its class and settings: embeddings of different names cannot be compared."""

    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """L and D of its embeddings, without loading weights."""

    @abstractmethod
    def loaded(self, device: torch.device) -> AbstractContextManager[Reader]:
        """Loads the model, and lets go of it at the end of the ``with`` block."""


def at_revision(path: str, revision: str | None) -> str:
    """What names a model: its path, and its revision if one was given."""
    return path if revision is None else f"{path}@{revision}"


def load_part(kind: Any, root: str, owner: str, *, revision: str | None, **options: object) -> Any:
    """Loads one part of a model by its class's ``from_pretrained``; an error says which part of which.

    Raises:
        ValueError: it cannot be read, its weights are no safetensors, or it asks for code of its own.
    """
    if issubclass(kind, PreTrainedModel):
        options["use_safetensors"] = True  # a pickle is not even opened
    try:
        settings, _ = PreTrainedConfig.get_config_dict(root, revision=revision)
        refuse_code(settings, root, owner)
        return kind.from_pretrained(root, revision=revision, trust_remote_code=False, **options)
    except OSError as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"{owner}: cannot load the {kind.__name__} of {root!r}: {reason}\n"
            "Give a folder that holds a whole model, or a hub id that this machine can reach"
        ) from error


def opened(data: bytes) -> Image.Image:
    """Decodes a picture of a judgement into RGB."""
    return whole_picture(data, "a judged pair")


def fingerprint_of(model: nn.Module) -> str:
    """A hash of a model's weights, by the first values of each: also of large ones in seconds."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        values = weight.detach().flatten()[:HASHED_VALUES].float().cpu().numpy()
        digest.update(f"{name} {tuple(weight.shape)}".encode() + values.tobytes())
    return digest.hexdigest()
