"""The utility of what winners-only methods imitate: the winners of the pairs, and their losers.

    python benchmarks/claims/ceiling.py

By the majority's taste; means over prompts of the mean over a prompt's pictures. Beside them, what the base
draws for the held-out prompts, from results/.
"""

import io
from collections import defaultdict

import numpy as np
import torch
from arms import BASE, UTILITY, runs_of
from PIL import Image
from torch import Tensor

from alignkit_emoji.reward import MajorityTaste
from alignkit_emoji.source import EmojiPairs


def main() -> None:
    """Prints a table."""
    torch.set_num_threads(1)
    print("| pictures | utility |\n|---|---|")
    base = runs_of([])
    if base is not None:
        print(f"| of the base, held-out prompts | {base.table(BASE, UTILITY).mean():+.3f} |")
    for split, told in (("test", "held-out"), ("train", "training")):
        for side, utility in zip(("winners", "losers"), utilities(split), strict=True):
            print(f"| {side} of the pairs, {told} prompts | {utility:+.3f} |")


def utilities(split: str) -> tuple[float, float]:
    """The mean utility of the winners and of the losers; ties are left out."""
    pairs, taste = EmojiPairs(split, "majority"), MajorityTaste()
    sides: tuple[dict[str, list[Tensor]], ...] = (defaultdict(list), defaultdict(list))
    for record in map(pairs.__getitem__, range(len(pairs))):
        if record.label_0 != 0.5 and record.image_1 is not None:
            in_order = (record.image_0, record.image_1)
            for side, image in zip(sides, in_order if record.label_0 > 0.5 else in_order[::-1], strict=True):
                side[record.prompt].append(decoded(image))
    winners, losers = (
        float(
            np.mean(
                [taste(torch.stack(images), [prompt] * len(images)).mean() for prompt, images in side.items()]
            )
        )
        for side in sides
    )
    return winners, losers


def decoded(image: bytes) -> Tensor:
    """A picture in [0, 1], (C, H, W)."""
    pixels = np.asarray(Image.open(io.BytesIO(image)).convert("RGB"), np.float32)
    return torch.from_numpy(pixels / 255).permute(2, 0, 1)


if __name__ == "__main__":
    main()
