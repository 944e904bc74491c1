"""How different images look, by their embeddings. Suffixes: P prompts; S seeds; D width of the features."""

import numpy as np
from numpy.typing import NDArray


def diversity(feature_PSD: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean cosine distance of all pairs of images of one prompt, (P,).

    Args:
        feature_PSD: embeddings of length 1.

    Raises:
        ValueError: there are less than two images of a prompt.
    """
    count = feature_PSD.shape[1]
    if count < 2:
        raise ValueError(f"diversity: needs at least 2 images of a prompt, got {count}")
    # |sum of unit vectors|^2 is the count plus twice the cosine of every pair
    length_P = np.square(feature_PSD.sum(1)).sum(1)
    distance_P: NDArray[np.float64] = 1 - (length_P - count) / (count * (count - 1))
    return distance_P


def vendi(feature_PSD: NDArray[np.float64]) -> NDArray[np.float64]:
    """Vendi score of the images of one prompt, (P,): how many different ones they amount to, from 1 to S.

    The exponential of the entropy of the eigenvalues of K / S, with cosines as the kernel K: Friedman and
    Dieng, "The Vendi Score", 2023, definition 3.1.

    Args:
        feature_PSD: embeddings of length 1.

    Raises:
        ValueError: there are less than two images of a prompt.
    """
    count = feature_PSD.shape[1]
    if count < 2:
        raise ValueError(f"vendi: needs at least 2 images of a prompt, got {count}")
    share_PS = np.linalg.eigvalsh(feature_PSD @ feature_PSD.swapaxes(1, 2) / count).clip(min=0)
    # an eigenvalue of 0 adds nothing: x log x goes to 0 there
    score_P: NDArray[np.float64] = np.exp(-(share_PS * np.log(np.where(share_PS > 0, share_PS, 1))).sum(1))
    return score_P


def displacement(feature_PSD: NDArray[np.float64], base_PSD: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean cosine distance of images to those of the same prompt and seed by another model, (P,)."""
    distance_P: NDArray[np.float64] = 1 - (feature_PSD * base_PSD).sum(2).mean(1)
    return distance_P
