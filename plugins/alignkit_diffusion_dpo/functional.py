"""Math of Diffusion-DPO. Shape suffixes: K = 2 candidates of a prompt, winner first; B prompts."""

from torch import Tensor

from alignkit.functional import bradley_terry_nll, preference_logit


def diffusion_dpo_loss(
    logp_KB: Tensor, ref_logp_KB: Tensor, *, beta: float, margin_B: Tensor | None = None
) -> Tensor:
    """Cost of the preferences if the policy's gain on the reference were the reward of a Bradley-Terry model.

    Wallace et al., 2023, eq. 14, in the units of the authors' code
    (https://github.com/SalesforceAIResearch/DiffusionDPO/blob/5233e75/train.py#L1125-L1145).

    Args:
        logp_KB: log-likelihood under the policy, nats up to a constant; for noised samples minus the *mean*
            squared error over C, H, W.
        ref_logp_KB: the same under the reference.
        beta: strength of the pull to the reference, > 0, as ``--beta_dpo`` of the authors' code.
        margin_B: log-odds that a preference must exceed, subtracted from the logit.

    Returns:
        ``-log sigmoid(logit - margin)`` in nats, shape (B,), not reduced.
    """
    return bradley_terry_nll(preference_logit(logp_KB, ref_logp_KB, beta=beta, margin_B=margin_B))


def diffusion_dpo_slope(logit_B: Tensor) -> Tensor:
    """Derivative of the loss by the logit, ``-sigmoid(-logit)``: in (-1, 0), shape (B,)."""
    return -(-logit_B).sigmoid()
