"""Weighting of Adaptive-DPO.

Shape suffixes: S snapshots; A = 1 + S annotators, the live policy first; K = 2 candidates of a prompt, winner
first; B prompts; G prompts of all processes.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from alignkit.components import Weighting
from alignkit.distributed import gathered
from alignkit.types import Batch, Scored, Weights
from alignkit_adaptive_dpo.functional import (
    Minority,
    Units,
    group_rho,
    minority,
    minority_margin,
    minority_weights,
    quadratic_weights,
    shared_scores,
    sigmoid_weights,
    sqrt_weights,
    standardized_scores,
)

Shape = Literal["linear", "quadratic", "sqrt", "sigmoid"]
Margin = Literal["quadratic", "linear", "none"]
Rescale = Literal["none", "stability", "sum"]
SHAPES: Mapping[str, Callable[..., Tensor]] = {
    "linear": minority_weights,
    "quadratic": quadratic_weights,
    "sqrt": sqrt_weights,
    "sigmoid": sigmoid_weights,
}
POWERS = {"quadratic": 2, "linear": 1}


class MinorityAware(Weighting):
    """Pairs count less where snapshots of the policy reject the label and disagree with each other.

    The annotators of a pair are the live policy and averages of its weights, on the same noised pictures.
    For logistic objectives that look at the reference, on pairs. The defaults are those of the released code
    (https://github.com/fanfanffff1/Adaptive-DPO at a64ae01) for SD 1.5. Every statistic over prompts is of
    one step's prompts of all processes; with gradient accumulation, of those that are computed at the same
    time.

    Args:
        rho: size of the annotators' logits: for groups of 16 prompts if normalised, and then scaled to the
            size of the group; otherwise a factor of the margins, about 1e4.
        k: how fast weights fall with the minority score, >= 0.
        b: what keeps a weight finite, > 0: the weight of an innocent pair is 1 / b.
        beta: the objective's beta, with the factor 1/2 as everywhere here: 1000 in the released code.
        shape: how weights fall: "linear" is 1 / (k u + b), "quadratic" 1 / (k u^2 + b), "sqrt"
            1 / (exp(k sqrt(u)) + b), "sigmoid" 1 / (exp(k u) + b).
        margin: of the objective's logit, smaller for suspicious pairs: "quadratic" or "linear" in the score,
            or "none".
        margin_units: "code", as released, where the margin is not multiplied by beta and so has next to no
            effect; or "reward", multiplied by beta / 2.
        rescale: "stability" divides scores by their group's mean stability, "sum" by their sum over a group
            of 16.
        normalize: divides each annotator's margins by their norm over the group.
        snapshots: decays of the averages, each in (0, 1). None at all leaves the live policy alone, and its
            confidence as the score.
        warmup_steps: optimizer steps at which every score is 0.
    """

    uses: ClassVar[frozenset[str]] = frozenset({"logp", "ref_logp"})

    def __init__(
        self,
        rho: float = 15.0,
        k: float = 10.0,
        b: float = 1.0,
        beta: float = 2000.0,
        shape: Shape = "linear",
        margin: Margin = "quadratic",
        margin_units: Units = "code",
        rescale: Rescale = "none",
        normalize: bool = True,
        snapshots: tuple[float, ...] = (0.9999, 0.5),
        warmup_steps: int = 2,
    ) -> None:
        super().__init__()
        for name, value in (("rho", rho), ("b", b), ("beta", beta)):
            if not 0 < value < math.inf:
                raise ValueError(f"MinorityAware: {name} must be positive, got {value}")
        for name, value in (("k", k), ("warmup_steps", warmup_steps)):
            if not 0 <= value < math.inf:
                raise ValueError(f"MinorityAware: {name} must be at least 0, got {value}")
        for name, word, allowed in (
            ("shape", shape, Shape),
            ("margin", margin, Margin),
            ("margin_units", margin_units, Units),
            ("rescale", rescale, Rescale),
        ):
            if word not in get_args(allowed):
                raise ValueError(
                    f"MinorityAware: {name} must be one of {', '.join(get_args(allowed))}, got {word!r}"
                )
        if not all(0 < decay < 1 for decay in snapshots):
            raise ValueError(f"MinorityAware: snapshots must be decays between 0 and 1, got {snapshots}")
        self.rho, self.k, self.b, self.beta = rho, k, b, beta
        self.shape, self.margin, self.margin_units = shape, margin, margin_units
        self.rescale, self.normalize = rescale, normalize
        self.snapshots, self.warmup_steps = tuple(snapshots), warmup_steps

    def forward(self, scored: Scored, batch: Batch) -> Weights:
        margin_AB = _margins(scored)
        group_AG = gathered(margin_AB.T, equal=self.training).T
        found, score_B = self._judged(margin_AB, group_AG)
        if scored.step < self.warmup_steps:
            score_B = torch.zeros_like(score_B)
        weight_B = SHAPES[self.shape](score_B, k=self.k, b=self.b)
        logs = {
            "minority/confidence": found.confidence_B.mean(),
            "minority/stability": found.stability_B.mean(),
            "minority/score": score_B.mean(),
            "minority/weight": weight_B.mean(),
        }
        if self.margin == "none":
            return Weights(weight_B, None, logs)
        shift_B = minority_margin(
            score_B,
            group_AG[0].mean(),
            beta=self.beta,
            power=POWERS[self.margin],
            units=self.margin_units,
        )
        return Weights(weight_B, shift_B, logs | {"minority/margin": shift_B.mean()})

    def _judged(self, margin_AB: Tensor, group_AG: Tensor) -> tuple[Minority, Tensor]:
        """What the annotators say, and the score after rescaling."""
        rho = group_rho(self.rho, num_prompts=group_AG.shape[1]) if self.normalize else self.rho
        judge = partial(minority, rho=rho, normalize=self.normalize)
        found = judge(margin_AB, group_AG=group_AG)
        if self.rescale == "none":
            return found, found.score_B
        group = judge(group_AG)
        if self.rescale == "sum":
            return found, shared_scores(found.score_B, group.score_B)
        alone = judge(margin_AB[:1], group_AG=group_AG[:1])
        return found, standardized_scores(found.score_B, group.stability_B, alone.confidence_B)


def _margins(scored: Scored) -> Tensor:
    """How much more each annotator gained on the winner, (A, B), without gradient."""
    logp_KB, ref_logp_KB = scored.logp_KB, scored.ref_logp_KB
    if logp_KB is None or ref_logp_KB is None:
        raise ValueError(
            "MinorityAware: needs an objective that looks at the reference, such as DiffusionDPO or DMPO"
        )
    if len(logp_KB) != 2:
        raise ValueError(f"MinorityAware: needs two candidates per prompt, winner first, got {len(logp_KB)}")
    logp_AKB = logp_KB.detach()[None]
    if scored.snapshot_logp_SKB is not None:
        logp_AKB = torch.cat([logp_AKB, scored.snapshot_logp_SKB.detach()])
    gain_AKB = logp_AKB - ref_logp_KB.detach()
    return gain_AKB[:, 0] - gain_AKB[:, 1]
