"""Objective of Diffusion-DPO. Shape suffixes: K = 2 candidates of a prompt, winner first; B prompts."""

import math
from typing import ClassVar

from alignkit.components import Objective
from alignkit.functional import implicit_reward, preference_logit, preference_logs
from alignkit.types import Batch, Loss, Scored, required
from alignkit_diffusion_dpo.functional import diffusion_dpo_loss, diffusion_dpo_slope


class DiffusionDPO(Objective):
    """Logistic loss on how much more the policy gained on the winner (Wallace et al., 2023, eq. 14).

    Args:
        beta: strength of the pull to the reference, per unit of mean squared error, in the convention of the
            authors' code. The paper trains SD 1.5 with 2000, the default, and SDXL with 5000; the authors'
            launchers use 5000 for both. diffusers' SD script has no factor 1/2: half as much there is the
            same.
    """

    uses: ClassVar[frozenset[str]] = frozenset({"logp", "ref_logp"})

    def __init__(self, beta: float = 2000.0) -> None:
        super().__init__()
        if not 0 < beta < math.inf:
            raise ValueError(f"DiffusionDPO: beta must be positive, got {beta}")
        self.beta = beta

    def forward(self, scored: Scored, batch: Batch) -> Loss:
        logp_KB = required(scored.logp_KB, self, "logp")
        ref_logp_KB = required(scored.ref_logp_KB, self, "ref_logp").detach()
        loss_B = diffusion_dpo_loss(logp_KB, ref_logp_KB, beta=self.beta, margin_B=scored.margin_B)
        logit_B = preference_logit(logp_KB.detach(), ref_logp_KB, beta=self.beta, margin_B=scored.margin_B)
        logs = preference_logs(implicit_reward(logp_KB, ref_logp_KB, beta=self.beta), logit_B)
        return Loss(loss_B, logs | {"logit/gradient": diffusion_dpo_slope(logit_B).abs().mean()})

    def initial_loss(self) -> float:
        return math.log(2)  # -log sigmoid(0)
