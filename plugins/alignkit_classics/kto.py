"""Objectives of likes and dislikes.

Shape suffixes: K candidates of a prompt; B prompts; G prompts of all processes.
"""

from typing import ClassVar

import torch

from alignkit.components import Objective
from alignkit.distributed import gathered
from alignkit.functional import implicit_reward, preference_logs
from alignkit.types import Batch, Loss, Reads, Scored, required
from alignkit_classics.functional import kto_baseline, kto_loss, unpaired_kto_loss
from alignkit_classics.settings import check_no_margin, check_positive, check_weight


class KTO(Objective):
    """Diffusion-KTO where every winner is liked and every loser is not (Li et al., 2024).

    Args:
        beta: strength of the pull to the reference, per unit of mean squared error, with the factor 1/2. The
            authors' code has none: its default of 1000 is 2000 here.
        desirable_weight: factor of liked images, >= 0.
        undesirable_weight: factor of the others, >= 0. The authors draw more likes than dislikes instead.
    """

    uses: ClassVar[frozenset[str]] = frozenset({"logp", "ref_logp"})

    def __init__(
        self, beta: float = 2000.0, desirable_weight: float = 1.0, undesirable_weight: float = 1.0
    ) -> None:
        super().__init__()
        check_positive(self, "beta", beta)
        check_weight(self, "desirable_weight", desirable_weight)
        check_weight(self, "undesirable_weight", undesirable_weight)
        self.beta = beta
        self.desirable_weight, self.undesirable_weight = desirable_weight, undesirable_weight

    def forward(self, scored: Scored, batch: Batch) -> Loss:
        check_no_margin(self, scored)
        logp_KB = required(scored.logp_KB, self, "logp")
        ref_logp_KB = required(scored.ref_logp_KB, self, "ref_logp").detach()
        reward_KB = implicit_reward(logp_KB.detach(), ref_logp_KB, beta=self.beta)
        baseline = kto_baseline(gathered(reward_KB.mean(0), equal=self.training))
        loss_B = kto_loss(
            logp_KB,
            ref_logp_KB,
            beta=self.beta,
            desirable_weight=self.desirable_weight,
            undesirable_weight=self.undesirable_weight,
            baseline=baseline,
        )
        logs = preference_logs(reward_KB, reward_KB[0] - reward_KB[1])
        return Loss(loss_B, logs | {"rewards/baseline": baseline})

    def initial_loss(self) -> float:
        return (self.desirable_weight + self.undesirable_weight) / 4  # the mean of two sigmoid(0)


class UnpairedKTO(Objective):
    """Diffusion-KTO of single images, liked or not (Li et al., 2024).

    Of each pair it sees one image, winner or loser. What it logs under ``rewards`` are means over the liked
    and over the other images of a batch; 0 where there are none.

    Args:
        beta: strength of the pull to the reference, per unit of mean squared error, with the factor 1/2: 2000
            here is the 1000 of the authors' code.
        desirable_weight: factor of liked images, >= 0.
        undesirable_weight: factor of the others, >= 0.
    """

    uses: ClassVar[frozenset[str]] = frozenset({"logp", "ref_logp"})
    reads: ClassVar[Reads] = "either"

    def __init__(
        self, beta: float = 2000.0, desirable_weight: float = 1.0, undesirable_weight: float = 1.0
    ) -> None:
        super().__init__()
        check_positive(self, "beta", beta)
        check_weight(self, "desirable_weight", desirable_weight)
        check_weight(self, "undesirable_weight", undesirable_weight)
        self.beta = beta
        self.desirable_weight, self.undesirable_weight = desirable_weight, undesirable_weight

    def forward(self, scored: Scored, batch: Batch) -> Loss:
        check_no_margin(self, scored)
        logp_B = required(scored.logp_KB, self, "logp")[0]
        ref_logp_B = required(scored.ref_logp_KB, self, "ref_logp")[0].detach()
        label_B = torch.ones_like(ref_logp_B) if batch.label_B is None else batch.label_B
        reward_B = implicit_reward(logp_B.detach(), ref_logp_B, beta=self.beta)
        # of all processes, which need not see as many liked images each
        reward_G, label_G = gathered(torch.stack([reward_B, label_B], 1), equal=self.training).unbind(1)
        baseline = kto_baseline(reward_G)
        loss_B = unpaired_kto_loss(
            logp_B,
            ref_logp_B,
            label_B,
            beta=self.beta,
            desirable_weight=self.desirable_weight,
            undesirable_weight=self.undesirable_weight,
            baseline=baseline,
        )
        liked = (label_G * reward_G).sum() / label_G.sum().clamp(min=1)
        disliked = ((1 - label_G) * reward_G).sum() / (1 - label_G).sum().clamp(min=1)
        logs = {
            "rewards/chosen": liked,
            "rewards/rejected": disliked,
            "rewards/margins": liked - disliked,
            "rewards/baseline": baseline,
            "logit/scale": (reward_B - baseline).abs().mean(),
        }
        return Loss(loss_B, logs)

    def initial_loss(self) -> float | None:
        # sigmoid(0) for every image; which weight it has depends on the label
        return self.desirable_weight / 2 if self.desirable_weight == self.undesirable_weight else None
