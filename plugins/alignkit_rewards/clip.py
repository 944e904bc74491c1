"""What the rewards around a CLIP share. Suffixes: N images; L tokens; D width; C H W."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPModel, CLIPTokenizer

from alignkit_rewards.framing import Frame, processor_framing
from alignkit_rewards.places import Place, model, settings
from alignkit_rewards.weights import load

# what config.json says of a CLIP
CLIP = ("clip",)
TOKENIZER = "tokenizer_config.json"
AT_ONCE = 32


class Clip(nn.Module):
    """Compares pictures with texts.

    Args:
        network: the model.
        tokenizer: of its texts.
        framing: what is done to its pictures.
    """

    def __init__(self, network: CLIPModel, tokenizer: CLIPTokenizer, framing: Frame) -> None:
        super().__init__()
        self.network, self.tokenizer, self.framing = network, tokenizer, framing

    @property
    def scale(self) -> Tensor:
        """By what its training multiplied cosines: about 100 in published models."""
        scale: Tensor = self.network.logit_scale
        return scale.exp()

    def cosines(self, image_NCHW: Tensor, texts: Sequence[str]) -> Tensor:
        """Of each picture and its text, (N,), in float32, where the pictures are; differentiable.

        Raises:
            ValueError: there are not as many of both.
        """
        check_pairs(image_NCHW, texts)
        text_ND = self.texts(texts).to(image_NCHW.device)
        return (self.images(image_NCHW) * text_ND).sum(1)

    def images(self, image_NCHW: Tensor) -> Tensor:
        """Embeds images in [0, 1] of any size, (N, D), of length 1."""
        return embedded(partial(seen, self.network), image_NCHW, self.framing, self.network)

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Embeds texts, (N, D), of length 1, each different one once.

        What is longer than the model's positions (77 tokens with both marks in published ones) is cut off.
        """
        distinct = list(dict.fromkeys(texts))
        tokens = self.tokenizer(
            distinct,
            padding=True,
            truncation=True,
            max_length=self.network.config.text_config.max_position_embeddings,
            return_tensors="pt",
        ).to(self.network.device)
        parts = zip(tokens.input_ids.split(AT_ONCE), tokens.attention_mask.split(AT_ONCE), strict=True)
        text_ND = torch.cat([self._text(token_NL, mask_NL) for token_NL, mask_NL in parts])
        place = {text: index for index, text in enumerate(distinct)}
        return text_ND[[place[text] for text in texts]]

    def _text(self, token_NL: Tensor, mask_NL: Tensor) -> Tensor:
        read = self.network.text_model(input_ids=token_NL, attention_mask=mask_NL).pooler_output
        return F.normalize(self.network.text_projection(read).float(), dim=1)


class Pictures(nn.Module):
    """Embeds pictures.

    Args:
        network: the model.
        embed: what it makes of framed pictures, (N, D).
        framing: what is done to its pictures.
    """

    def __init__(self, network: Any, embed: Callable[[Any, Tensor], Tensor], framing: Frame) -> None:
        super().__init__()
        self.network, self.embed, self.framing = network, embed, framing

    def forward(self, image_NCHW: Tensor) -> Tensor:
        """Embeds images in [0, 1] of any size, (N, D), of length 1, in float32; differentiable."""
        return embedded(partial(self.embed, self.network), image_NCHW, self.framing, self.network)


def embedded(embed: Callable[[Tensor], Tensor], image_NCHW: Tensor, framing: Frame, network: Any) -> Tensor:
    """Embeddings of length 1, (N, D), in float32, where the pictures are; computed where the network is."""
    return in_parts(
        lambda part: F.normalize(embed(framed(image_NCHW[part], framing, network)).float(), dim=1), image_NCHW
    )


def seen(network: Any, pixel_NCHW: Tensor) -> Tensor:
    """A CLIP's embeddings of framed pictures, (N, D), of any length."""
    image_ND: Tensor = network.visual_projection(network.vision_model(pixel_values=pixel_NCHW).pooler_output)
    return image_ND


def framed(image_NCHW: Tensor, framing: Frame, network: Any) -> Tensor:
    """Pictures as a network of transformers wants them, of its type and on its device."""
    return framing(image_NCHW.to(network.device).float()).to(network.dtype)


def check_pairs(image_NCHW: Tensor, prompts: Sequence[str]) -> None:
    """Refuses prompts that torch would repeat silently.

    Raises:
        ValueError: there is not one for each image.
    """
    if len(image_NCHW) != len(prompts):
        raise ValueError(f"a reward needs a prompt for each of {len(image_NCHW)} images, got {len(prompts)}")


def in_parts(compute: Callable[[slice], Tensor], image_NCHW: Tensor) -> Tensor:
    """Something of every picture, a few at a time: so that memory does not grow with their number."""
    firsts = range(0, len(image_NCHW), AT_ONCE)
    return torch.cat([compute(slice(first, first + AT_ONCE)) for first in firsts]).to(image_NCHW.device)


def load_clip(
    path: str, revision: str | None, processor: str, processor_revision: str | None, owner: str
) -> tuple[Clip, dict[str, Place]]:
    """Loads a CLIP, and says where from.

    Raises:
        ValueError: something of it is not there, or is something else.
    """
    place = model(path, revision=revision, owner=owner)
    beside = settings(processor, marker=TOKENIZER, revision=processor_revision, owner=f"{owner}: processor")
    clip = Clip(
        load(CLIPModel, place, CLIP, owner),
        tokenizer_of(CLIPTokenizer, beside, owner),
        processor_framing(beside.root, owner).frame,
    )
    return clip, {"model": place, "processor": beside}


def load_pictures(path: str, revision: str | None, owner: str) -> tuple[Pictures, dict[str, Place]]:
    """Loads the part of a CLIP that sees pictures, and says where from.

    Raises:
        ValueError: something of it is not there, or is something else.
    """
    place = model(path, revision=revision, owner=owner)
    network = load(CLIPModel, place, CLIP, owner)
    del network.text_model, network.text_projection  # half a gigabyte of ViT-L/14
    pictures = Pictures(network, seen, processor_framing(place.root, owner).frame)
    return pictures, {"clip": place}


def tokenizer_of(kind: Any, place: Place, owner: str) -> Any:
    """Loads a tokenizer of a class of transformers.

    Raises:
        ValueError: it has no vocabulary.
    """
    tokenizer = kind.from_pretrained(place.root)
    # where there is no file transformers gives a tokenizer that knows its marks alone
    if len(tokenizer) - len(set(tokenizer.all_special_ids)) < 2:
        raise ValueError(
            f"{owner}: {place.named!r} has no vocabulary of a {kind.__name__}; give another folder or hub id"
        )
    return tokenizer


def origins(places: Mapping[str, Place]) -> dict[str, str]:
    """What a record says of several places, by what each is."""
    return {name: said for part, place in places.items() for name, said in place.origins(part).items()}
