"""What was drawn and scored. Shape suffixes: P prompts; S seeds; D width of the features."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Prompt(NamedTuple):
    """What is drawn.

    Args:
        text: what the model is told.
        category: a suite's own, such as "Animals"; empty where there is none.
    """

    text: str
    category: str = ""


class Scores(NamedTuple):
    """What judges say of one model's pictures.

    Args:
        reward_PS: the score of every picture, by the class name of the reward.
        feature_PSD: embeddings of length 1, where somebody looked at differences.
    """

    reward_PS: Mapping[str, NDArray[np.float64]]
    feature_PSD: NDArray[np.float64] | None = None


class Results(NamedTuple):
    """Pictures of several models of the same prompts, from the same noise.

    Args:
        prompts: what was drawn.
        seeds: of the pictures of each prompt.
        scores: by the name of the model; the first is what the others are compared with.
    """

    prompts: tuple[Prompt, ...]
    seeds: tuple[int, ...]
    scores: Mapping[str, Scores]
