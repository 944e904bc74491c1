"""Objective of SEE-DPO. Shape suffixes: K = 2 candidates of a prompt, winner first; B prompts."""

import math
from typing import ClassVar

import torch

from alignkit.components import Objective
from alignkit.functional import implicit_reward, preference_logs
from alignkit.types import Batch, Loss, Scored, required
from alignkit_see_dpo.functional import entropy_term, see_dpo_logit, see_dpo_loss


class SEEDPO(Objective):
    """Diffusion-DPO whose reward also pays for the policy's entropy (Shekhar et al., 2024).

    It asks for more of a winner that the policy finds unlikely than of one that it finds likely already.
    Deviation: the form is derived from the paper's description; ``see_dpo_logit`` says how.

    Args:
        beta: strength of the pull to the reference, per unit of mean squared error, in the convention of the
            Diffusion-DPO authors' code. The default is the paper's value of Diffusion-DPO for SD 1.5; that
            of SEE-DPO is not known.
        gamma: weight of the entropy by that of the divergence, >= 0; 0 is Diffusion-DPO. The paper's is not
            known. Its term compares two different images and does not cancel as the margin does: keep
            ``entropy/ratio``, of the batch of a process, well below 1 at the end of training.
    """

    uses: ClassVar[frozenset[str]] = frozenset({"logp", "ref_logp"})

    def __init__(self, beta: float = 2000.0, gamma: float = 0.003) -> None:
        super().__init__()
        if not 0 < beta < math.inf:
            raise ValueError(f"SEEDPO: beta must be positive, got {beta}")
        if not 0 <= gamma < math.inf:
            raise ValueError(f"SEEDPO: gamma must be at least 0, got {gamma}")
        self.beta = beta
        self.gamma = gamma

    def forward(self, scored: Scored, batch: Batch) -> Loss:
        logp_KB = required(scored.logp_KB, self, "logp")
        ref_logp_KB = required(scored.ref_logp_KB, self, "ref_logp").detach()
        settings = {"beta": self.beta, "gamma": self.gamma}
        loss_B = see_dpo_loss(logp_KB, ref_logp_KB, margin_B=scored.margin_B, **settings)
        logit_B = see_dpo_logit(logp_KB.detach(), ref_logp_KB, margin_B=scored.margin_B, **settings)
        # rewards without gamma: margins and accuracies that can be compared between runs
        reward_KB = implicit_reward(logp_KB.detach(), ref_logp_KB, beta=self.beta)
        entropy = entropy_term(logp_KB.detach(), **settings).abs().mean()
        margin = (reward_KB[0] - reward_KB[1]).abs().mean()
        logs = preference_logs(reward_KB, logit_B) | {
            "logit/gradient": torch.sigmoid(-logit_B).mean(),
            "entropy/scale": entropy,
            "entropy/ratio": entropy / margin.clamp(min=torch.finfo(margin.dtype).tiny),
        }
        return Loss(loss_B, logs)

    def initial_loss(self) -> float | None:
        return None if self.gamma else math.log(2)
