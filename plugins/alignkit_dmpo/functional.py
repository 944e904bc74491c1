"""Math of DMPO. Shape suffixes: K = 2 candidates of a prompt, winner first; B prompts."""

import math

import torch.nn.functional as F
from torch import Tensor

from alignkit.functional import preference_logit


def dmpo_loss(
    logp_KB: Tensor, ref_logp_KB: Tensor, *, beta: float, alpha: float, margin_B: Tensor | None = None
) -> Tensor:
    """Reverse Kullback-Leibler divergence from the label, smoothed by alpha, to the policy's preference.

    With ``p = sigmoid(logit - margin)``, the policy's probability that the winner is the better one, it is
    ``KL((p, 1 - p) || (1 - alpha, alpha))``. Diffusion-DPO is the forward divergence, without smoothing.

    The paper (Li et al., 2025) could be read in its abstract and introduction only. The form is that of
    third-party code: the branch ``dmpo`` of
    https://github.com/AIDC-AI/Diffusion-SDPO/blob/84fb241/train.py, which is ``exo_pair`` of
    https://github.com/huggingface/trl (EXO, Ji et al., 2024, eq. 16) on the logit of Diffusion-DPO; it
    agrees with the abstract. Not confirmed against the paper's own equation.

    Args:
        logp_KB: log-likelihood under the policy, nats up to a constant; for noised samples minus the *mean*
            squared error over C, H, W.
        ref_logp_KB: the same under the reference.
        beta: strength of the pull to the reference, > 0, as ``--beta_dpo`` of the Diffusion-DPO authors'
            code.
        alpha: probability that the label is wrong, in (0, 0.5].
        margin_B: log-odds that a preference must exceed, subtracted from the logit.

    Returns:
        Divergence in nats, >= 0, shape (B,), not reduced. Zero where the logit is ``log((1 - alpha) /
        alpha)``.
    """
    logit_B = preference_logit(logp_KB, ref_logp_KB, beta=beta, margin_B=margin_B)
    # logsigmoid and sigmoid(-u), not log(p) and 1 - p: exact for large logits; the logs of alpha as Python
    # floats, since a bfloat16 1 - alpha would round to 1. Nothing is detached: with constant weights the
    # gradient would be zero
    winner_B = logit_B.sigmoid() * (F.logsigmoid(logit_B) - math.log1p(-alpha))
    loser_B = (-logit_B).sigmoid() * (F.logsigmoid(-logit_B) - math.log(alpha))
    return winner_B + loser_B


def dmpo_slope(logit_B: Tensor, *, alpha: float) -> Tensor:
    """Derivative of the loss by the logit, derived here; shape (B,).

    It is ``p (1 - p) (logit - log((1 - alpha) / alpha))``.
    """
    return logit_B.sigmoid() * (-logit_B).sigmoid() * (logit_B - math.log1p(-alpha) + math.log(alpha))
