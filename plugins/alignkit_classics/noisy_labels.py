"""Objectives of pairs whose labels are wrong at a known rate. Suffixes: K = 2 candidates; B prompts."""

import math
from typing import ClassVar

from alignkit.components import Objective
from alignkit.types import Batch, Loss, Scored
from alignkit_classics.functional import (
    conservative_dpo_loss,
    conservative_dpo_slope,
    robust_dpo_loss,
    robust_dpo_slope,
)
from alignkit_classics.pairwise import pair_logs, scores
from alignkit_classics.settings import check_flip_rate, check_positive


class ConservativeDPO(Objective):
    """Diffusion-DPO with smoothed labels (cDPO, Mitchell, 2023).

    The policy stops where its log-odds are those of a right label.

    Args:
        beta: strength of the pull to the reference, per unit of mean squared error, as in Diffusion-DPO.
        flip_rate: probability that a label is wrong, in [0, 0.5); 0 is Diffusion-DPO.
    """

    uses: ClassVar[frozenset[str]] = frozenset({"logp", "ref_logp"})

    def __init__(self, beta: float = 2000.0, flip_rate: float = 0.1) -> None:
        super().__init__()
        check_positive(self, "beta", beta)
        check_flip_rate(self, flip_rate)
        self.beta = beta
        self.flip_rate = flip_rate

    def forward(self, scored: Scored, batch: Batch) -> Loss:
        logp_KB, ref_logp_KB = scores(self, scored)
        loss_B = conservative_dpo_loss(
            logp_KB, ref_logp_KB, beta=self.beta, flip_rate=self.flip_rate, margin_B=scored.margin_B
        )
        logit_B, logs = pair_logs(logp_KB, ref_logp_KB, self.beta, scored.margin_B)
        slope_B = conservative_dpo_slope(logit_B, flip_rate=self.flip_rate)
        return Loss(loss_B, logs | {"logit/gradient": slope_B.abs().mean()})

    def initial_loss(self) -> float:
        return math.log(2)  # both terms are -log sigmoid(0)


class RobustDPO(Objective):
    """Diffusion-DPO made unbiased for labels that are wrong at a known rate (Chowdhury et al., 2024).

    No logit is large enough for it: its gradient does not fade.

    Args:
        beta: strength of the pull to the reference, per unit of mean squared error, as in Diffusion-DPO.
        flip_rate: probability that a label is wrong, in [0, 0.5); 0 is Diffusion-DPO.
    """

    uses: ClassVar[frozenset[str]] = frozenset({"logp", "ref_logp"})

    def __init__(self, beta: float = 2000.0, flip_rate: float = 0.1) -> None:
        super().__init__()
        check_positive(self, "beta", beta)
        check_flip_rate(self, flip_rate)
        self.beta = beta
        self.flip_rate = flip_rate

    def forward(self, scored: Scored, batch: Batch) -> Loss:
        logp_KB, ref_logp_KB = scores(self, scored)
        loss_B = robust_dpo_loss(
            logp_KB, ref_logp_KB, beta=self.beta, flip_rate=self.flip_rate, margin_B=scored.margin_B
        )
        logit_B, logs = pair_logs(logp_KB, ref_logp_KB, self.beta, scored.margin_B)
        slope_B = robust_dpo_slope(logit_B, flip_rate=self.flip_rate)
        return Loss(loss_B, logs | {"logit/gradient": slope_B.abs().mean()})

    def initial_loss(self) -> float:
        return math.log(2)  # (1 - q - q) log 2 / (1 - 2 q)
