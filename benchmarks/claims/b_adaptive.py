"""Adaptive-DPO with wrong labels and with real minority users, against DPO, robust DPO and clean labels.

Claimed: minority samples cost Diffusion-DPO up to half of its gain; Adaptive-DPO finds and discounts them,
and at 30 % flipped labels does as well as training on clean ones (Zhang et al., 2025, abstract and secondary
sources).

Arms: Diffusion-DPO, robust DPO told the true rate, and Adaptive-DPO with its released settings, each at 10,
20 and 30 % flipped labels of the majority; Diffusion-DPO and Adaptive-DPO without flips (robust DPO at rate 0
is DPO); all three on everybody's labels, 30 % of which are of a minority with another taste (robust DPO is
told 0.3). Which labels are flipped depends on the training seed and is the same for the three methods.
Control: Adaptive-DPO at 20 % with its weights given to other pairs of the batch. One beta for all,
Diffusion-DPO's of claim (a), chosen on clean labels: the methods differ in how they treat suspicious pairs.
Budget as in (a).

Reported: the majority's utility on 57 held-out prompts, two pictures each, training seeds 0 to 4.

Holds if Adaptive-DPO's utility is above DPO's in the mean of the three rates, and with minority users, and at
20 % above that of its shuffled weights. Refuted by a difference that is below 0.05 standard deviations at the
interval's upper end.
"""

from collections.abc import Sequence

import numpy as np
from arms import Arm, Runs
from choice import Choice
from claim import Claim, Line
from intervals import Condition, interval
from settings import BETA, DPO, dpo

RATES = (0.1, 0.2, 0.3)
PEOPLE = 0.3


class AdaptiveDPO(Claim):
    """Claim (b)."""

    letter = "b"
    title = "Adaptive-DPO keeps the gain where labels are wrong or of a minority"
    paper = "Adaptive-DPO (https://arxiv.org/abs/2503.16921)"
    control = "the same weights, given to other pairs"

    def choices(self) -> Sequence[Choice]:
        return (DPO,)

    def arms(self) -> Sequence[Arm] | None:
        clean, label = dpo(), DPO.made()
        if clean is None or label is None:
            return None
        beta = float(label)
        plain = {BETA: beta}
        adaptive = plain | {"weighting": "MinorityAware", "weighting.beta": beta}
        arms = [clean, Arm("flip0_adaptive", adaptive)]
        for rate in RATES:
            robust = {"objective": "RobustDPO", BETA: beta, "objective.flip_rate": rate}
            for method, settings in (("dpo", plain), ("robust", robust), ("adaptive", adaptive)):
                arms.append(Arm(f"flip{100 * rate:g}_{method}", settings, flip_rate=rate))
        shuffled = plain | {
            "weighting": {"class_path": "controls.ShuffledMinority", "init_args": {"beta": beta}}
        }
        arms.append(Arm("flip20_shuffled", shuffled, flip_rate=0.2))
        everybody = {"data.train.users": "all"}
        robust = {"objective": "RobustDPO", BETA: beta, "objective.flip_rate": PEOPLE}
        arms += [
            Arm("people_dpo", plain | everybody),
            Arm("people_robust", robust | everybody),
            Arm("people_adaptive", adaptive | everybody),
        ]
        return arms

    def conditions(self, runs: Runs) -> Sequence[Condition]:
        over_SP = np.mean([_over(runs, f"flip{100 * rate:g}") for rate in RATES], axis=0)
        control_SP = runs.gain("flip20_adaptive") - runs.gain("flip20_shuffled")
        return (
            Condition("utility at 10 to 30 % flips, Adaptive-DPO minus DPO", interval(over_SP), 0.05),
            Condition(
                "utility with minority users, Adaptive-DPO minus DPO", interval(_over(runs, "people")), 0.05
            ),
            Condition(
                "control: utility at 20 %, Adaptive-DPO minus its shuffled weights",
                interval(control_SP),
                0.05,
            ),
        )

    def remarks(self, runs: Runs) -> Sequence[Condition]:
        clean_SP = runs.gain("dpo")
        robust_SP = np.mean([_over(runs, f"flip{100 * rate:g}", "robust") for rate in RATES], axis=0)
        return (
            Condition("what 30 % flips cost DPO", interval(clean_SP - runs.gain("flip30_dpo")), 0.05),
            Condition(
                "utility, Adaptive-DPO at 30 % minus DPO on clean labels, plus 0.05",
                interval(runs.gain("flip30_adaptive") - clean_SP + 0.05),
                0.0,
            ),
            Condition(
                "utility on clean labels, Adaptive-DPO minus DPO, plus 0.05",
                interval(runs.gain("flip0_adaptive") - clean_SP + 0.05),
                0.0,
            ),
            Condition("utility at 10 to 30 % flips, robust DPO minus DPO", interval(robust_SP), 0.05),
            Condition(
                "utility with minority users, robust DPO minus DPO",
                interval(_over(runs, "people", "robust")),
                0.05,
            ),
        )

    def lines(self, runs: Runs) -> Sequence[Line]:
        told = {"dpo": "DPO", "robust": "robust DPO", "adaptive": "Adaptive-DPO"}
        lines = [
            Line("Adaptive-DPO, 30 % flipped", "flip30_adaptive"),
            Line("DPO, 30 % flipped", "flip30_dpo"),
        ]
        lines.append(Line("robust DPO, 30 % flipped", "flip30_robust"))
        for rate in (20, 10):
            lines += [
                Line(f"{name}, {rate} % flipped", f"flip{rate}_{method}") for method, name in told.items()
            ]
        return (
            *lines,
            Line("Adaptive-DPO with shuffled weights, 20 % flipped", "flip20_shuffled"),
            Line("DPO, clean", "dpo"),
            Line("Adaptive-DPO, clean", "flip0_adaptive"),
            *(Line(f"{name}, with minority users", f"people_{method}") for method, name in told.items()),
        )


def _over(runs: Runs, case: str, method: str = "adaptive") -> np.ndarray:
    """A method's gain above DPO's in one case, (S, P)."""
    return runs.gain(f"{case}_{method}") - runs.gain(f"{case}_dpo")
