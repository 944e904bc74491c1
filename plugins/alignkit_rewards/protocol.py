"""What a reward and its server tell each other, in JSON over HTTP. Suffixes: N images; C H W.

POST / with {"images": [a PNG each, in base64], "prompts": [one each]} is answered by {"scores": [a number
each]}. GET / is answered by {"reward": a name, "provenance": {...}}. Every refusal is {"error": a sentence}
with a status of 400 or more. PNG holds 8 bits a channel: that is what is scored.
"""

import base64
import binascii
import io
import json
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from alignkit.data.pictures import picture_size, whole_picture
from alignkit.evaluation.sheet import to_pictures


def request(image_NCHW: Tensor, prompts: Sequence[str]) -> bytes:
    """What is posted: images in [0, 1], rounded to 8 bits."""
    images = [base64.b64encode(_png(picture)).decode("ascii") for picture in to_pictures(image_NCHW.detach())]
    return json.dumps({"images": images, "prompts": list(prompts)}).encode()


def pictures(body: bytes, max_pixels: int) -> tuple[Tensor, list[str]]:
    """Images in [0, 1] and prompts of what was posted. Pixels are counted before any is decoded.

    Raises:
        ValueError: it is something else, or too large.
    """
    try:
        said = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the request is no JSON: {error}") from error
    said = said if isinstance(said, dict) else {}
    texts, codes = _texts(said.get("prompts")), _texts(said.get("images"))
    if not codes or len(texts) != len(codes):
        raise ValueError(
            'the request must be {"images": [...], "prompts": [...]}, as many texts each, one at least'
        )
    try:
        encoded = [base64.b64decode(code, validate=True) for code in codes]
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"images must be in base64: {error}") from error
    sizes = [picture_size(data, f"image {place}", max_pixels) for place, data in enumerate(encoded)]
    if len(set(sizes)) > 1:
        raise ValueError(f"the images of one request must be of one size, got {sorted(set(sizes))[:4]}")
    pixels = sum(height * width for height, width in sizes)
    if pixels > max_pixels:
        raise ValueError(
            f"the images have {pixels} pixels together, more than {max_pixels}; send fewer at once"
        )
    return torch.stack([_image(data, f"image {place}") for place, data in enumerate(encoded)]), texts


def scores(body: bytes, count: int, owner: str) -> list[float]:
    """Scores of what was answered.

    Raises:
        ValueError: they are not as many finite numbers.
    """
    said = parsed(body, owner)
    found = said.get("scores")
    if not isinstance(found, list) or any(type(score) not in (int, float) for score in found):
        raise ValueError(f'{owner} must answer {{"scores": [numbers]}}, got {shortened(body)}')
    if len(found) != count:
        raise ValueError(f"{owner} must answer a score for each of {count} images, got {len(found)}")
    # compared, not converted: a whole number may be too large for a float
    if wrong := [score for score in found if not abs(score) <= sys.float_info.max]:
        raise ValueError(f"{owner} must answer finite scores, got {wrong[0]!r:.80}")
    return [float(score) for score in found]


def parsed(body: bytes, owner: str) -> dict[str, Any]:
    """An object of JSON.

    Raises:
        ValueError: it is something else.
    """
    try:
        said = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{owner} must answer in JSON, got {shortened(body)}") from error
    if not isinstance(said, dict):
        raise ValueError(f"{owner} must answer an object of JSON, got {shortened(body)}")
    return said


def shortened(body: bytes) -> str:
    """The beginning of an answer, for a message."""
    text = body[:200].decode("utf-8", errors="replace")
    return repr(text) + ("..." if len(body) > 200 else "")


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _image(data: bytes, owner: str) -> Tensor:
    byte_HWC = np.asarray(whole_picture(data, owner))
    return torch.from_numpy(byte_HWC.copy()).permute(2, 0, 1).float() / 255


def _texts(found: object) -> list[str]:
    """A list of texts; empty if it is something else."""
    texts = found if isinstance(found, list) else []
    return texts if all(isinstance(text, str) for text in texts) else []
