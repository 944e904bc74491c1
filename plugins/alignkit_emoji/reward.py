"""Scores of single images: the exact utilities, and what the shipped judge recognises.

Suffixes: N images, M shipped concepts, D width of the judge's space, C H W.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from alignkit.components import Reward
from alignkit_emoji.judge import Judge
from alignkit_emoji.pictures import load_concepts
from alignkit_emoji.taste import MAJORITY, MINORITY


class MajorityTaste(Reward):
    """The majority's exact utility: colour, no outlines. In deviations of the shipped pictures."""

    differentiable = True

    def forward(self, image_NCHW: Tensor, prompts: Sequence[str]) -> Tensor:
        return MAJORITY.utility(image_NCHW)


class MinorityTaste(Reward):
    """The minority's exact utility: outlines, calm colours. In deviations of the shipped pictures."""

    differentiable = True

    def forward(self, image_NCHW: Tensor, prompts: Sequence[str]) -> Tensor:
        return MINORITY.utility(image_NCHW)


class EmojiFidelity(Reward):
    """How well an image shows its prompt: 100 times the cosine of the judge's embeddings."""

    differentiable = True

    def __init__(self) -> None:
        super().__init__()
        self.judge = Judge()

    def origins(self) -> Mapping[str, str]:
        return self.judge.origins()

    def forward(self, image_NCHW: Tensor, prompts: Sequence[str]) -> Tensor:
        return 100 * (self.judge.embed_images(image_NCHW) * self.judge.embed_texts(prompts)).sum(1)


class EmojiRecognition(Reward):
    """Probability that the judge names the prompt, among the 286 shipped concepts and the prompt itself."""

    differentiable = True
    concept_MD: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.judge = Judge()
        self.concepts = load_concepts()
        self.register_buffer("concept_MD", self.judge.embed_texts(self.concepts), persistent=False)

    def origins(self) -> Mapping[str, str]:
        return self.judge.origins()

    def forward(self, image_NCHW: Tensor, prompts: Sequence[str]) -> Tensor:
        image_ND = self.judge.scale * self.judge.embed_images(image_NCHW)
        right_N = (image_ND * self.judge.embed_texts(prompts)).sum(1)
        is_prompt_NM = torch.tensor([[concept == prompt for concept in self.concepts] for prompt in prompts])
        # the prompt has its own logit, so that one that is no shipped concept counts alike
        others_NM = (image_ND @ self.concept_MD.T).masked_fill(is_prompt_NM.to(image_ND.device), -torch.inf)
        return (right_N - torch.cat([right_N[:, None], others_NM], dim=1).logsumexp(1)).exp()
