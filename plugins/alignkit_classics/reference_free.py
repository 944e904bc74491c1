"""Objectives without a reference. Shape suffixes: K candidates, winner first; B prompts."""

from typing import ClassVar

import torch

from alignkit.components import Objective
from alignkit.functional import preference_logs
from alignkit.types import Batch, Loss, Reads, Scored, required
from alignkit_classics.functional import mapo_logit, mapo_loss, mapo_score, sft_loss
from alignkit_classics.settings import check_no_margin, check_positive, check_weight


class SFT(Objective):
    """Supervised fine-tuning on winners: the denoising loss of Ho et al., 2020.

    Losers are not even loaded.
    """

    uses: ClassVar[frozenset[str]] = frozenset({"logp"})
    reads: ClassVar[Reads] = "winner"

    def forward(self, scored: Scored, batch: Batch) -> Loss:
        check_no_margin(self, scored)
        loss_B = sft_loss(required(scored.logp_KB, self, "logp"))
        return Loss(loss_B)

    def initial_loss(self) -> None:
        return None


class MaPO(Objective):
    """Denoising loss on winners plus a preference without reference (Hong et al., 2024).

    Its logged rewards are ``num_timesteps`` times a bounded score of each image.

    Args:
        beta: weight of the preference, >= 0, as ``--beta_mapo`` of the authors' code; no pull to a reference.
        snr: scale of the errors in the score, > 0, as ``--snr_value`` there.
        num_timesteps: factor of the difference of scores, > 0; the steps of the schedule there.
    """

    uses: ClassVar[frozenset[str]] = frozenset({"logp"})

    def __init__(self, beta: float = 0.1, snr: float = 0.5, num_timesteps: int = 1000) -> None:
        super().__init__()
        check_weight(self, "beta", beta)
        check_positive(self, "snr", snr)
        check_positive(self, "num_timesteps", num_timesteps)
        self.beta = beta
        self.snr = snr
        self.num_timesteps = num_timesteps

    def forward(self, scored: Scored, batch: Batch) -> Loss:
        logp_KB = required(scored.logp_KB, self, "logp")
        loss_B = mapo_loss(
            logp_KB,
            beta=self.beta,
            snr=self.snr,
            num_timesteps=self.num_timesteps,
            margin_B=scored.margin_B,
        )
        logit_B = mapo_logit(
            logp_KB.detach(), snr=self.snr, num_timesteps=self.num_timesteps, margin_B=scored.margin_B
        )
        reward_KB = self.num_timesteps * mapo_score(logp_KB.detach(), snr=self.snr)
        logs = preference_logs(reward_KB, logit_B)
        return Loss(loss_B, logs | {"logit/gradient": torch.sigmoid(-logit_B).mean()})

    def initial_loss(self) -> None:
        return None
