"""Losses of the known alternatives to Diffusion-DPO.

Shape suffixes: K candidates of a prompt, winner first, 2 unless said; B prompts.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from alignkit.functional import bradley_terry_nll, implicit_reward, preference_logit


def sft_loss(logp_KB: Tensor) -> Tensor:
    """Supervised fine-tuning: how unlikely the winner is. There may be a winner alone.

    Args:
        logp_KB: log-likelihood under the policy; for noised samples minus the *mean* squared error over
            C, H, W.

    Returns:
        ``-logp_w``, the denoising loss on winners, shape (B,), not reduced.
    """
    return -logp_KB[0]


def hinge_loss(
    logp_KB: Tensor, ref_logp_KB: Tensor, *, beta: float, margin_B: Tensor | None = None
) -> Tensor:
    """How far the logit is below 1: the loss of SLiC (Zhao et al., 2023) on the logit of Diffusion-DPO.

    RSO (Liu et al., 2023, https://arxiv.org/abs/2309.06657) takes log-likelihoods against a reference, as
    here; SLiC has none.

    Args:
        logp_KB: log-likelihood under the policy, nats up to a constant; for noised samples minus the *mean*
            squared error over C, H, W.
        ref_logp_KB: the same under the reference.
        beta: strength of the pull to the reference, > 0, as ``--beta_dpo`` of the Diffusion-DPO authors'
            code.
        margin_B: log-odds that a preference must exceed, subtracted from the logit.

    Returns:
        ``max(0, 1 - logit)``, shape (B,), not reduced.
    """
    return F.relu(1 - preference_logit(logp_KB, ref_logp_KB, beta=beta, margin_B=margin_B))


def hinge_slope(logit_B: Tensor) -> Tensor:
    """Derivative of the hinge loss by the logit: -1 below 1, else 0; shape (B,)."""
    return -(logit_B < 1).to(logit_B.dtype)


def conservative_dpo_loss(
    logp_KB: Tensor, ref_logp_KB: Tensor, *, beta: float, flip_rate: float, margin_B: Tensor | None = None
) -> Tensor:
    """Cross entropy to a label that is wrong at a known rate (Mitchell, 2023, eq. 3).

    https://ericmitchell.ai/cdpo.pdf, by way of the author's code
    (https://github.com/eric-mitchell/direct-preference-optimization/blob/f8b8c0f/trainers.py#L70-L87).

    Args:
        logp_KB: as in ``hinge_loss``.
        ref_logp_KB: as in ``hinge_loss``.
        beta: as in ``hinge_loss``.
        flip_rate: probability that a label is wrong, in [0, 0.5); 0 is Diffusion-DPO.
        margin_B: as in ``hinge_loss``.

    Returns:
        Nats, shape (B,), not reduced. Lowest where the logit is ``log((1 - flip_rate) / flip_rate)``.
    """
    logit_B = preference_logit(logp_KB, ref_logp_KB, beta=beta, margin_B=margin_B)
    return (1 - flip_rate) * bradley_terry_nll(logit_B) + flip_rate * bradley_terry_nll(-logit_B)


def conservative_dpo_slope(logit_B: Tensor, *, flip_rate: float) -> Tensor:
    """Derivative by the logit, ``sigmoid(logit) - (1 - flip_rate)``; shape (B,)."""
    return torch.sigmoid(logit_B) - (1 - flip_rate)


def robust_dpo_loss(
    logp_KB: Tensor, ref_logp_KB: Tensor, *, beta: float, flip_rate: float, margin_B: Tensor | None = None
) -> Tensor:
    """An unbiased estimate, from labels that are wrong at a known rate, of the loss on right labels.

    Chowdhury et al., 2024, https://arxiv.org/abs/2403.00409. The second term is *subtracted*, unlike in
    ``conservative_dpo_loss``: so its gradient at wrong pairs is larger than that of Diffusion-DPO, not
    smaller, and the loss of one pair may be negative.

    Args:
        logp_KB: as in ``hinge_loss``.
        ref_logp_KB: as in ``hinge_loss``.
        beta: as in ``hinge_loss``.
        flip_rate: as in ``conservative_dpo_loss``.
        margin_B: as in ``hinge_loss``.

    Returns:
        ``[(1 - q) L(logit) - q L(-logit)] / (1 - 2 q)`` with ``L`` the loss of Diffusion-DPO and ``q`` the
        flip rate; nats, shape (B,), not reduced. Its mean over flips at that rate is ``L``.
    """
    logit_B = preference_logit(logp_KB, ref_logp_KB, beta=beta, margin_B=margin_B)
    kept_B, flipped_B = bradley_terry_nll(logit_B), bradley_terry_nll(-logit_B)
    return ((1 - flip_rate) * kept_B - flip_rate * flipped_B) / (1 - 2 * flip_rate)


def robust_dpo_slope(logit_B: Tensor, *, flip_rate: float) -> Tensor:
    """Derivative by the logit: below ``-flip_rate / (1 - 2 flip_rate)`` everywhere; shape (B,)."""
    return -torch.sigmoid(-logit_B) - flip_rate / (1 - 2 * flip_rate)


def ipo_loss(logp_KB: Tensor, ref_logp_KB: Tensor, *, tau: float) -> Tensor:
    """Squared distance of the difference of gains to a finite target (Azar et al., 2023, eq. 17).

    https://arxiv.org/abs/2310.12036.

    Args:
        logp_KB: as in ``hinge_loss``.
        ref_logp_KB: as in ``hinge_loss``.
        tau: strength of the pull to the reference, > 0, per unit of *mean* squared error and without a
            factor 1/2: ``beta / 2`` of the other losses is about as strong.

    Returns:
        ``[(logp_w - ref_logp_w) - (logp_l - ref_logp_l) - 1 / (2 tau)]^2``, shape (B,), not reduced.
    """
    # a beta of 2 cancels the 1/2 of the logit
    return (preference_logit(logp_KB, ref_logp_KB, beta=2.0) - 1 / (2 * tau)).square()


def kto_baseline(reward: Tensor) -> Tensor:
    """What an average sample gains, of at least 0 and without gradient: the reference point of KTO.

    Args:
        reward: implicit rewards, of all samples of all processes.

    Returns:
        A scalar in units of the reward.
    """
    return reward.detach().mean().clamp(min=0)


def unpaired_kto_loss(
    logp_B: Tensor,
    ref_logp_B: Tensor,
    label_B: Tensor,
    *,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
    baseline: Tensor | None = None,
) -> Tensor:
    """What a like or a dislike falls short of its full utility (Li et al., 2024).

    Diffusion-KTO, https://arxiv.org/abs/2404.04465, with its sigmoid utility, in the units of the authors'
    code (https://github.com/jacklishufan/diffusion-kto/blob/226bbd0/train_kto_sd_v1.5.py#L1451-L1492).

    Args:
        logp_B: log-likelihood of each sample under the policy, as in ``hinge_loss``.
        ref_logp_B: the same under the reference.
        label_B: 1 where the sample is liked, 0 where it is not, between them where that is uncertain.
        beta: strength of the pull to the reference, > 0, as in ``hinge_loss``. The authors' code has no
            factor 1/2: its 1000 is 2000 here.
        desirable_weight: factor of liked samples.
        undesirable_weight: factor of the others.
        baseline: reward from which gains and losses are counted, a scalar without gradient; that of these
            samples, ``kto_baseline``, if None.

    Returns:
        ``desirable_weight (1 - sigmoid(reward - baseline))`` of liked samples, ``undesirable_weight
        (1 - sigmoid(baseline - reward))`` of the others, shape (B,), not reduced.
    """
    reward_B = implicit_reward(logp_B, ref_logp_B, beta=beta)
    gain_B = reward_B - (kto_baseline(reward_B) if baseline is None else baseline)
    # 1 - sigmoid(x) as sigmoid(-x): exact for large x
    liked_B = desirable_weight * torch.sigmoid(-gain_B)
    disliked_B = undesirable_weight * torch.sigmoid(gain_B)
    return label_B * liked_B + (1 - label_B) * disliked_B


def kto_loss(
    logp_KB: Tensor,
    ref_logp_KB: Tensor,
    *,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
    baseline: Tensor | None = None,
) -> Tensor:
    """Diffusion-KTO where every prompt has a like and a dislike: the mean of the two losses.

    Args:
        logp_KB: rows: desirable, undesirable; else as in ``hinge_loss``.
        ref_logp_KB: the same under the reference.
        beta: as in ``unpaired_kto_loss``.
        desirable_weight: as in ``unpaired_kto_loss``.
        undesirable_weight: as in ``unpaired_kto_loss``.
        baseline: as in ``unpaired_kto_loss``; that of both rows if None.

    Returns:
        Mean over the two of ``unpaired_kto_loss``, shape (B,), not reduced over prompts.

    Raises:
        ValueError: there are not two candidates.
    """
    if len(logp_KB) != 2:
        raise ValueError(f"kto_loss: needs two candidates per prompt, liked first, got {len(logp_KB)}")
    label_KB = torch.ones_like(logp_KB)
    label_KB[1] = 0
    loss_KB = unpaired_kto_loss(
        logp_KB,
        ref_logp_KB,
        label_KB,
        beta=beta,
        desirable_weight=desirable_weight,
        undesirable_weight=undesirable_weight,
        baseline=baseline,
    )
    return loss_KB.mean(0)


def mapo_score(logp_KB: Tensor, *, snr: float) -> Tensor:
    """How likely a sample is, bounded: ``x / (exp(x) - 1)`` with ``x = snr * error``, 1 for no error.

    Args:
        logp_KB: minus the *mean* squared error over C, H, W, <= 0; any shape.
        snr: scale of the errors, > 0.

    Returns:
        A value in (0, 1] per sample, lower where the error is larger.
    """
    x_KB = -snr * logp_KB
    # 0 / 0 at 0, and its gradient loses all digits near it: the first terms of the series of Bernoulli
    # numbers, exact to 1e-14 below 0.1
    square_KB = x_KB.square()
    near_KB = 1 - x_KB / 2 + square_KB / 12 * (1 - square_KB / 60 * (1 - square_KB / 42))
    far_KB = x_KB.clamp(min=0.1)
    return torch.where(x_KB < 0.1, near_KB, far_KB / torch.expm1(far_KB))


def mapo_logit(
    logp_KB: Tensor, *, snr: float = 0.5, num_timesteps: int = 1000, margin_B: Tensor | None = None
) -> Tensor:
    """Log-odds, according to the policy alone, that the first candidate is the better one.

    Args:
        logp_KB: as in ``mapo_score``.
        snr: as in ``mapo_score``.
        num_timesteps: steps of the schedule, the factor of the difference.
        margin_B: log-odds that a preference must exceed, subtracted from the logit.

    Returns:
        ``num_timesteps * (score_w - score_l) - margin``, shape (B,).

    Raises:
        ValueError: there are not two candidates.
    """
    if len(logp_KB) != 2:
        raise ValueError(f"mapo_logit: needs two candidates per prompt, winner first, got {len(logp_KB)}")
    score_KB = mapo_score(logp_KB, snr=snr)
    logit_B = num_timesteps * (score_KB[0] - score_KB[1])
    return logit_B if margin_B is None else logit_B - margin_B


def mapo_loss(
    logp_KB: Tensor,
    *,
    beta: float,
    snr: float = 0.5,
    num_timesteps: int = 1000,
    margin_B: Tensor | None = None,
) -> Tensor:
    """Supervised fine-tuning and a preference for the winner, without a reference (Hong et al., 2024).

    MaPO, https://arxiv.org/abs/2406.06424, in the units of the authors' code
    (https://github.com/mapo-t2i/mapo/blob/374b3d3/utils.py#L286-L301).

    Args:
        logp_KB: log-likelihood under the policy: minus the *mean* squared error over C, H, W.
        beta: weight of the preference, >= 0, as ``--beta_mapo`` of the authors' code. It is no pull to a
            reference.
        snr: as in ``mapo_score``.
        num_timesteps: as in ``mapo_logit``.
        margin_B: as in ``mapo_logit``.

    Returns:
        ``-logp_w - beta log sigmoid(mapo_logit)``, shape (B,), not reduced.
    """
    logit_B = mapo_logit(logp_KB, snr=snr, num_timesteps=num_timesteps, margin_B=margin_B)
    return sft_loss(logp_KB) + beta * bradley_terry_nll(logit_B)
