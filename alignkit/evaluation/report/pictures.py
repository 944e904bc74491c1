"""Pictures within a page: which, how large, and as what. Suffixes: P prompts; S seeds."""

import base64
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from PIL import Image

# sides up to this many pixels stay as they are; larger pictures are scaled down to SIDE
SMALL, SIDE, QUALITY = 128, 256, 80


def fit(
    pictures: Mapping[str, Sequence[Sequence[str]]], folder: Path, costs: Sequence[int], budget: int
) -> dict[int, dict[str, list[str]]]:
    """Data URIs by number of the prompt and model, a list by seed; of as many prompts as there is room for.

    Prompts are evenly spread over all of them, and in their order.

    Args:
        pictures: by model, prompt and seed: paths of PNG files, relative to the folder.
        folder: where they are.
        costs: characters that each prompt takes in the page besides its pictures.
        budget: how many characters there are.

    Raises:
        ValueError: a picture is missing or cannot be read.
    """
    chosen: dict[int, dict[str, list[str]]] = {}
    for prompt in spread_out(len(costs)):
        data = {
            model: [_data_uri(folder, path) for path in paths_PS[prompt]]
            for model, paths_PS in pictures.items()
        }
        # quotes, brackets and commas are characters, too
        budget -= costs[prompt] + sum(
            len(json.dumps(model)) + 4 + sum(len(uri) + 3 for uri in uris) for model, uris in data.items()
        )
        if budget < 0:
            break
        chosen[prompt] = data
    return dict(sorted(chosen.items()))


def spread_out(count: int) -> Iterator[int]:
    """All numbers below a count, so that those of any beginning lie about evenly among all.

    The order is that of van der Corput's sequence: binary digits, read backwards.

    Example:
        >>> list(spread_out(6))
        [0, 4, 2, 1, 5, 3]
    """
    bits = max(1, (count - 1).bit_length())
    for index in range(2**bits):
        number = int(f"{index:0{bits}b}"[::-1], 2)
        if number < count:
            yield number


def _data_uri(folder: Path, path: str) -> str:
    """A picture as it is when it is small, else as WebP."""
    try:
        data = (folder / path).read_bytes()
        opened = Image.open(io.BytesIO(data))
        opened.load()
    except OSError as error:
        raise ValueError(f"report: cannot read the picture {folder / path}: {error}") from error
    kind = (opened.format or "png").lower()
    if max(opened.size) > SMALL:
        picture = opened.convert("RGB")
        picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS, reducing_gap=2.0)
        target, kind = io.BytesIO(), "webp"
        picture.save(target, "WEBP", quality=QUALITY)
        data = target.getvalue()
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
