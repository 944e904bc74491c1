"""Math of SEE-DPO. Shape suffixes: K = 2 candidates of a prompt, winner first; B prompts."""

import math
from typing import NamedTuple

from torch import Tensor

from alignkit.functional import bradley_terry_nll, preference_logit


def see_dpo_logit(
    logp_KB: Tensor, ref_logp_KB: Tensor, *, beta: float, gamma: float, margin_B: Tensor | None = None
) -> Tensor:
    """Log-odds of the preference under a reward that also pays for the policy's entropy.

    DERIVED: the paper's equations could not be read. Of ``E[r] - beta KL(p || p_ref) + beta gamma H(p)`` the
    optimum is ``p_ref^(1 / (1 + gamma)) exp(r / (beta (1 + gamma))) / Z``; its reward, ``beta [(1 + gamma)
    log p - log p_ref]`` up to a constant of the prompt, takes the place of Diffusion-DPO's.

    Args:
        logp_KB: log-likelihood under the policy, nats up to a constant; for noised samples minus the *mean*
            squared error over C, H, W. Winner and loser must share their noise level.
        ref_logp_KB: the same under the reference.
        beta: strength of the pull to the reference, > 0, as ``--beta_dpo`` of the Diffusion-DPO authors'
            code.
        gamma: weight of the entropy by that of the divergence, >= 0.
        margin_B: log-odds that a preference must exceed; zero if None.

    Returns:
        ``(beta / 2) [(1 + gamma) (logp_w - logp_l) - (ref_logp_w - ref_logp_l)] - margin``, shape (B,).
    """
    logit_B = preference_logit(logp_KB, ref_logp_KB, beta=beta, margin_B=margin_B)
    return logit_B + entropy_term(logp_KB, beta=beta, gamma=gamma)


def entropy_term(logp_KB: Tensor, *, beta: float, gamma: float) -> Tensor:
    """What the entropy adds to the logit, ``(beta / 2) gamma (logp_w - logp_l)``; shape (B,)."""
    return (beta / 2) * gamma * (logp_KB[0] - logp_KB[1])


def see_dpo_loss(
    logp_KB: Tensor, ref_logp_KB: Tensor, *, beta: float, gamma: float, margin_B: Tensor | None = None
) -> Tensor:
    """Cost of the preferences under the entropy-regularised reward, ``-log sigmoid(see_dpo_logit)``.

    Args:
        logp_KB: as in ``see_dpo_logit``.
        ref_logp_KB: as in ``see_dpo_logit``.
        beta: as in ``see_dpo_logit``.
        gamma: as in ``see_dpo_logit``; 0 is Diffusion-DPO.
        margin_B: as in ``see_dpo_logit``.

    Returns:
        Cost in nats, shape (B,), not reduced.
    """
    logit_B = see_dpo_logit(logp_KB, ref_logp_KB, beta=beta, gamma=gamma, margin_B=margin_B)
    return bradley_terry_nll(logit_B)


def see_step_loss(logp_KB: Tensor, ref_logp_KB: Tensor, *, beta: float, gamma: float, clip: float) -> Tensor:
    """SEE-DPO of one denoising step, as in SPO and D3PO: likelihood ratios are clipped, the entropy is not.

    DERIVED, like the rest. The two terms are split because a clipped ``(1 + gamma) logp - ref_logp`` would
    not be 0 at the reference: with the constants of a narrow Gaussian it saturates there, and teaches
    nothing.

    Args:
        logp_KB: log-likelihood of the step that each candidate took, *mean* over C, H, W, nats up to a
            constant that winner and loser share.
        ref_logp_KB: the same under the reference.
        beta: strength of the pull to the reference, > 0, with the factor 1/2: the 10 of SPO's code
            (https://github.com/RockeyCoss/SPO at 27a8642) is 20 here.
        gamma: as in ``see_dpo_logit``; 0 is SPO and D3PO.
        clip: likelihood ratios stay within ``1 - clip`` and ``1 + clip``; in (0, 1), 0.1 in SPO and D3PO.

    Returns:
        Cost in nats, shape (B,), not reduced.
    """
    # clamping the logarithm is the logarithm of the clamped ratio, without leaving its scale
    gain_KB = (logp_KB - ref_logp_KB).clamp(math.log1p(-clip), math.log1p(clip))
    return bradley_terry_nll(
        (beta / 2) * (gain_KB[0] - gain_KB[1]) + entropy_term(logp_KB, beta=beta, gamma=gamma)
    )


class Strength(NamedTuple):
    """The two settings of SEE-DPO.

    Args:
        beta: pull to the reference.
        gamma: weight of the entropy by that of the divergence.
    """

    beta: float
    gamma: float


def from_entropy_weight(beta: float, entropy: float) -> Strength:
    """Settings of ``E[r] - beta KL(p || p_ref) + entropy H(p)``, where the entropy's weight is absolute.

    >>> from_entropy_weight(beta=2000.0, entropy=20.0)
    Strength(beta=2000.0, gamma=0.01)
    """
    return Strength(beta, entropy / beta)


def from_flattened_reference(beta: float, exponent: float) -> Strength:
    """Settings of plain DPO, of its own beta, against ``p_ref^exponent``, an exponent in (0, 1].

    >>> from_flattened_reference(beta=2500.0, exponent=0.8)
    Strength(beta=2000.0, gamma=0.25)
    """
    return Strength(beta * exponent, 1 / exponent - 1)


def from_h_dpo(beta: float, alpha: float) -> Strength:
    """Settings of H-DPO (Omura et al., 2024, https://arxiv.org/abs/2411.07595).

    Its argument is ``alpha beta (logp_w - logp_l) - beta (ref_logp_w - ref_logp_l)``. It mostly studies an
    alpha below 1, which sharpens; that is a negative gamma.

    >>> from_h_dpo(beta=2000.0, alpha=1.25)
    Strength(beta=2000.0, gamma=0.25)
    """
    return Strength(beta, alpha - 1)
