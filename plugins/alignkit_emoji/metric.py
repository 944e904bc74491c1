"""Figures over the images of one prompt. Suffixes: N images, D width of the judge's space, C H W."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

from alignkit_emoji.judge import Judge


class EmojiDiversity(Metric):
    """How different the images of one prompt look to the judge: mean cosine distance of all pairs."""

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    sum_D: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.judge = Judge()
        # float64: the distance is a difference of sums that nearly agree
        self.add_state("sum_D", torch.zeros(self.judge.width, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, image_NCHW: Tensor, prompts: Sequence[str]) -> None:
        """Takes in images in [0, 1] that were made for one prompt."""
        if len(set(prompts)) > 1:
            names = ", ".join(repr(prompt) for prompt in sorted(set(prompts)))
            raise ValueError(f"EmojiDiversity: images must be of one prompt, got {names}; reset between")
        with torch.no_grad():
            embedding_ND = F.normalize(self.judge.embed_images(image_NCHW).double(), dim=1)
        self.sum_D = self.sum_D + embedding_ND.sum(0)
        self.count = self.count + len(embedding_ND)

    def compute(self) -> Tensor:
        """The mean over all pairs of two different images."""
        if self.count < 2:
            raise ValueError(f"EmojiDiversity: needs at least 2 images, got {int(self.count)}")
        # |sum of unit vectors|^2 is the count plus twice the cosine of every pair
        cosine = (self.sum_D.square().sum() - self.count) / (self.count * (self.count - 1))
        return (1 - cosine).float()
