"""Objectives of pairs against a reference. Shape suffixes: K = 2 candidates, winner first; B prompts."""

from typing import ClassVar

from torch import Tensor

from alignkit.components import Objective
from alignkit.functional import implicit_reward, preference_logit, preference_logs
from alignkit.types import Batch, Loss, Scored, required
from alignkit_classics.functional import hinge_loss, hinge_slope, ipo_loss
from alignkit_classics.settings import check_no_margin, check_positive


class HingeDPO(Objective):
    """Hinge loss on the logit of Diffusion-DPO (SLiC, Zhao et al., 2023; RSO, Liu et al., 2023).

    A pair stops teaching once its logit reaches 1.

    Args:
        beta: strength of the pull to the reference, per unit of mean squared error, as in Diffusion-DPO.
    """

    uses: ClassVar[frozenset[str]] = frozenset({"logp", "ref_logp"})

    def __init__(self, beta: float = 2000.0) -> None:
        super().__init__()
        check_positive(self, "beta", beta)
        self.beta = beta

    def forward(self, scored: Scored, batch: Batch) -> Loss:
        logp_KB, ref_logp_KB = scores(self, scored)
        loss_B = hinge_loss(logp_KB, ref_logp_KB, beta=self.beta, margin_B=scored.margin_B)
        logit_B, logs = pair_logs(logp_KB, ref_logp_KB, self.beta, scored.margin_B)
        return Loss(loss_B, logs | {"logit/gradient": hinge_slope(logit_B).abs().mean()})

    def initial_loss(self) -> float:
        return 1.0  # max(0, 1 - 0)


class IPO(Objective):
    """Regression of the difference of gains to a finite target (Azar et al., 2023).

    Its logged rewards are ``tau`` times the gains, so the target of ``rewards/margins`` is 1/2. Its gradient
    by the errors is small, ``1 / tau`` at the reference: lower the optimizer's ``eps`` with it.

    Args:
        tau: strength of the pull to the reference, per unit of mean squared error; about half the beta of
            the logistic losses. The default is half of Diffusion-DPO's for SD 1.5.
    """

    uses: ClassVar[frozenset[str]] = frozenset({"logp", "ref_logp"})

    def __init__(self, tau: float = 1000.0) -> None:
        super().__init__()
        check_positive(self, "tau", tau)
        self.tau = tau

    def forward(self, scored: Scored, batch: Batch) -> Loss:
        check_no_margin(self, scored)
        logp_KB, ref_logp_KB = scores(self, scored)
        _, logs = pair_logs(logp_KB, ref_logp_KB, 2 * self.tau)
        return Loss(ipo_loss(logp_KB, ref_logp_KB, tau=self.tau), logs)

    def initial_loss(self) -> float:
        return (1 / (2 * self.tau)) ** 2


def scores(objective: Objective, scored: Scored) -> tuple[Tensor, Tensor]:
    """Log-likelihoods under policy and reference, the latter without gradient."""
    logp_KB = required(scored.logp_KB, objective, "logp")
    return logp_KB, required(scored.ref_logp_KB, objective, "ref_logp").detach()


def pair_logs(
    logp_KB: Tensor, ref_logp_KB: Tensor, beta: float, margin_B: Tensor | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """The logit, without gradient, and what every objective of pairs logs."""
    logit_B = preference_logit(logp_KB.detach(), ref_logp_KB, beta=beta, margin_B=margin_B)
    return logit_B, preference_logs(implicit_reward(logp_KB, ref_logp_KB, beta=beta), logit_B)
