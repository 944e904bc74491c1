"""Objective of DMPO. Shape suffixes: K = 2 candidates of a prompt, winner first; B prompts."""

import math
from typing import ClassVar

from alignkit.components import Objective
from alignkit.functional import implicit_reward, preference_logit, preference_logs
from alignkit.types import Batch, Loss, Scored, required
from alignkit_dmpo.functional import dmpo_loss, dmpo_slope


class DMPO(Objective):
    """Reverse divergence between the policy's preference and the smoothed label (Li et al., 2025).

    Its gradient fades on pairs that the policy gets confidently wrong, where Diffusion-DPO's is largest, and
    it stops at a finite margin. Deviation: the form is found in third-party code, not in the paper itself;
    ``dmpo_loss`` names the sources, and the defaults are theirs.

    Args:
        beta: strength of the pull to the reference, per unit of mean squared error, in the convention of the
            Diffusion-DPO authors' code. 2000, the default, is the paper's value of Diffusion-DPO for SD 1.5
            and that of the third-party DMPO runs, which use 6000 for SDXL.
        alpha: probability that a label is wrong, in (0, 0.5]. The policy stops where its log-odds are
            ``log((1 - alpha) / alpha)``, 4.6 at 0.01.
    """

    uses: ClassVar[frozenset[str]] = frozenset({"logp", "ref_logp"})

    def __init__(self, beta: float = 2000.0, alpha: float = 0.01) -> None:
        super().__init__()
        if not 0 < beta < math.inf:
            raise ValueError(f"DMPO: beta must be positive, got {beta}")
        if not 0 < alpha <= 0.5:
            raise ValueError(f"DMPO: alpha must lie in (0, 0.5], got {alpha}")
        self.beta = beta
        self.alpha = alpha

    def forward(self, scored: Scored, batch: Batch) -> Loss:
        logp_KB = required(scored.logp_KB, self, "logp")
        ref_logp_KB = required(scored.ref_logp_KB, self, "ref_logp").detach()
        loss_B = dmpo_loss(logp_KB, ref_logp_KB, beta=self.beta, alpha=self.alpha, margin_B=scored.margin_B)
        logit_B = preference_logit(logp_KB.detach(), ref_logp_KB, beta=self.beta, margin_B=scored.margin_B)
        logs = preference_logs(implicit_reward(logp_KB, ref_logp_KB, beta=self.beta), logit_B)
        return Loss(loss_B, logs | {"logit/gradient": dmpo_slope(logit_B, alpha=self.alpha).abs().mean()})

    def initial_loss(self) -> float:
        return -0.5 * (
            math.log(4 * self.alpha) + math.log1p(-self.alpha)
        )  # KL of a fair coin to (1 - alpha, alpha)
