"""Objective of Acme. Shape suffixes: K candidates of a prompt, best first; B prompts."""

from alignkit import Batch, Loss, Objective, Scored
from alignkit.functional import preference_logit
from alignkit.types import required


class AcmeHinge(Objective):
    """Hinge loss: what the preference's log-odds lack to one.

    Args:
        beta: strength of the pull to the reference, > 0, per unit of mean squared error.
    """

    uses = frozenset({"logp", "ref_logp"})

    def __init__(self, beta: float = 2000.0) -> None:
        super().__init__()
        if not beta > 0:
            raise ValueError(f"AcmeHinge: beta must be positive, got {beta}")
        self.beta = beta

    def forward(self, scored: Scored, batch: Batch) -> Loss:
        logp_KB = required(scored.logp_KB, self, "logp")
        ref_logp_KB = required(scored.ref_logp_KB, self, "ref_logp").detach()
        logit_B = preference_logit(logp_KB, ref_logp_KB, beta=self.beta, margin_B=scored.margin_B)
        return Loss((1 - logit_B).relu(), {"logit/scale": logit_B.detach().abs().mean()})

    def initial_loss(self) -> float:
        return 1.0
