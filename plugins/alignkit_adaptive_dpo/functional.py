"""Math of Adaptive-DPO: how likely a pair is a minority sample, and what follows for its weight and margin.

Shape suffixes: A annotators, the live policy first; B prompts; G prompts of the whole group, B or more.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

# pairs per device and step in the released code, for which its rho was chosen
GROUP = 16
Units = Literal["code", "reward"]


class Minority(NamedTuple):
    """What annotators say of each pair, as numbers in [0, 1] without a unit.

    Args:
        confidence_B: how far they are from the label on average: 0 agrees fully, 1 rejects it. The paper's
            name: it is a lack of confidence.
        stability_B: how far they are from each other, at most 1: the paper's name again.
        score_B: the product of both, the minority metric; large is suspicious.
    """

    confidence_B: Tensor
    stability_B: Tensor
    score_B: Tensor


def minority(
    margin_AB: Tensor, *, rho: float, normalize: bool = True, group_AG: Tensor | None = None
) -> Minority:
    """How likely each pair is a minority sample, by annotators that are snapshots of the policy in training.

    With ``y = rho * z / |z|``, the norm being over the prompts of a group and each annotator's own, it is
    ``c = |mean sigmoid(y) - 1|``, ``s = min(1, std y)`` and ``u = c * s``, mean and standard deviation
    (unbiased) being over annotators. Equations 11 to 13 of the paper's earlier version, as its reviewers cite
    them, in the form of the released code, dpo_train_un.py of
    https://github.com/fanfanffff1/Adaptive-DPO at a64ae01.

    Args:
        margin_AB: ``z``, how much more each annotator gained on the winner than on the loser, by the
            reference: ``(logp_w - ref_logp_w) - (logp_l - ref_logp_l)``, in units of *mean* squared error.
            A positive one sides with the label.
        rho: size of ``y``: of all prompts together (the norm) if normalised, otherwise a factor of ``z``.
        normalize: divides by the norm; then a factor of an annotator's margins changes nothing.
        group_AG: margins of all prompts that the norm is taken over; those of ``margin_AB`` if None.

    Returns:
        One figure per prompt. A single annotator cannot disagree with itself: its stability is 1 and its
        score its confidence, as in the released code without averages.
    """
    y_AB = rho * margin_AB
    if normalize:
        norm_A = torch.linalg.vector_norm(margin_AB if group_AG is None else group_AG, dim=1)
        y_AB = y_AB / norm_A.clamp(min=torch.finfo(norm_A.dtype).tiny)[:, None]
    confidence_B = (-y_AB).sigmoid().mean(0)  # 1 - sigmoid(y), exact where that is near 1
    stability_B = y_AB.std(0).clamp(max=1) if len(y_AB) > 1 else torch.ones_like(confidence_B)
    return Minority(confidence_B, stability_B, confidence_B * stability_B)


def group_rho(rho: float, *, num_prompts: int) -> float:
    """Turns a rho for groups of 16, as in the released code, into that of another size.

    DERIVED: of margins of one distribution the norm over G prompts grows as ``sqrt(G)``, so ``y`` shrinks as
    ``1 / sqrt(G)``; ``rho * sqrt(G / 16)`` undoes it, and ``y`` is ``rho / 4`` times the margin by its root
    mean square, whatever the size.

    >>> group_rho(15.0, num_prompts=64)
    30.0
    """
    return float(rho * (num_prompts / GROUP) ** 0.5)


def minority_weights(score_B: Tensor, *, k: float, b: float) -> Tensor:
    """``1 / (k u + b)``, from ``1 / b`` at a score of 0 down to ``1 / (k + b)`` at 1; shape (B,)."""
    return 1 / (k * score_B + b)


def quadratic_weights(score_B: Tensor, *, k: float, b: float) -> Tensor:
    """``1 / (k u^2 + b)``: as ``minority_weights``, and flat near 0; shape (B,)."""
    return 1 / (k * score_B.square() + b)


def sqrt_weights(score_B: Tensor, *, k: float, b: float) -> Tensor:
    """``1 / (exp(k sqrt(u)) + b)``, from ``1 / (1 + b)`` down, steepest near 0; shape (B,)."""
    return 1 / ((k * score_B.sqrt()).exp() + b)


def sigmoid_weights(score_B: Tensor, *, k: float, b: float) -> Tensor:
    """``1 / (exp(k u) + b)``, from ``1 / (1 + b)`` down, a sigmoid of ``-k u`` if b is 1; shape (B,)."""
    return 1 / ((k * score_B).exp() + b)


def minority_margin(
    score_B: Tensor, mean_margin: Tensor, *, beta: float, power: int = 2, units: Units = "code"
) -> Tensor:
    """By how much a preference must exceed what is usual: less, the more suspicious the pair.

    Equation 15 of the earlier version, with the released code's constants.

    Args:
        score_B: minority scores.
        mean_margin: mean of the live policy's margins over the group, without gradient.
        beta: as in ``alignkit.functional.preference_logit``: twice the released code's.
        power: of the score: 2 is the released run's "quadratic", 1 "linear".
        units: "code" is ``-u^power / (beta / 2) + mean_margin``, as released: it is subtracted from the logit
            but is not multiplied by beta, and with margins of 1e-4 changes nothing. "reward", DERIVED, is
            the same times ``beta / 2``: ``-u^power + (beta / 2) * mean_margin``.

    Returns:
        Log-odds to subtract from the logit, shape (B,).
    """
    margin_B = mean_margin - score_B.pow(power) / (beta / 2)
    return margin_B if units == "code" else beta / 2 * margin_B


def weighted_ipo_loss(
    margin_B: Tensor, weight_B: Tensor, shift_B: Tensor, *, beta: float, tau: float
) -> Tensor:
    """The released code's ``loss_type`` "ipo", with weights and margins.

    Args:
        margin_B: ``z`` of the live policy, as in ``minority``.
        weight_B: weights, without gradient.
        shift_B: ``minority_margin``. It is *added* here, as released, where a logistic loss subtracts it.
        beta: as in ``minority_margin``.
        tau: strength of the pull to the reference, 100 in the released code.

    Returns:
        ``w (z + 2 shift / beta - 1 / (2 tau))^2``, shape (B,), not reduced.
    """
    return weight_B * (margin_B + shift_B / (beta / 2) - 1 / (2 * tau)).square()


def standardized_scores(score_B: Tensor, stability_G: Tensor, confidence_B: Tensor) -> Tensor:
    """Scores by the group's mean stability, so that early snapshots that hardly differ count, too.

    Args:
        score_B: minority scores.
        stability_G: stability of the whole group.
        confidence_B: the live policy's alone, taken where that mean is 0.

    Returns:
        Scores of at least 0, without an upper bound; shape (B,).
    """
    mean = stability_G.mean()
    return torch.where(mean > 0, score_B / mean.clamp(min=torch.finfo(mean.dtype).tiny), confidence_B)


def shared_scores(score_B: Tensor, score_G: Tensor) -> Tensor:
    """Scores by their sum over a group of 16, as the released code's ``weight_normalization``.

    DERIVED for other sizes, as in ``group_rho``: by 16 times the mean. A group of zeros stays zero.
    """
    return score_B / (GROUP * score_G.mean()).clamp(min=torch.finfo(score_G.dtype).tiny)
