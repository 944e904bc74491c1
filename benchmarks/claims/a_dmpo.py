"""DMPO against Diffusion-DPO: utility at equal fidelity, each at its own best beta, with the same budget.

Claimed: the divergence that DMPO minimises points where reinforcement learning does, and gives better
preference scores than Diffusion-DPO (Li et al., 2025, abstract; the win rate "at least 64.6 %" of version 1).

Arms: Diffusion-DPO; DMPO with alpha 0.01; as control, conservative DPO with flip rate 0.01, which fits the
same smoothed label by the other divergence. Each has its own beta, chosen from four or five values a factor
of two apart by the largest gain in the majority's utility that keeps 97 % of the base's fidelity, on 57
prompts that were trained on, with seed 100. Budget: 150 steps of 32 pairs of the majority, AdamW, 5e-5,
weights averaged with decay 0.97.

Reported: 57 held-out prompts, two pictures each, training seeds 0 to 4, intervals over prompts and seeds.

Holds if DMPO's utility is above Diffusion-DPO's and above the control's, and its fidelity not lower than
Diffusion-DPO's by 1 % of the base's or more. Refuted by differences in utility that are below 0.05 standard
deviations at the interval's upper end: then either there is no difference, or the smoothed label made it.
"""

from collections.abc import Sequence

from arms import BASE, FIDELITY, UTILITY, Arm, Runs
from choice import Choice, choice, grid
from claim import Claim, Line, all_of
from intervals import Condition, interval
from settings import BETA, DMPO, DPO, dmpo, dpo, reported

SMOOTHED = choice(
    "beta of conservative DPO, flip rate 0.01",
    grid("smoothed", BETA, (250, 500, 1000, 2000), objective="ConservativeDPO", objective__flip_rate=0.01),
)


class DMPOAgainstDPO(Claim):
    """Claim (a)."""

    letter = "a"
    title = "DMPO gives more utility than Diffusion-DPO at equal fidelity"
    paper = "DMPO (https://arxiv.org/abs/2507.07510)"
    control = "conservative DPO on the same smoothed label: the other divergence"

    def choices(self) -> Sequence[Choice]:
        return DPO, DMPO, SMOOTHED

    def arms(self) -> Sequence[Arm] | None:
        return all_of(dpo(), dmpo(), reported(SMOOTHED, "smoothed"))

    def conditions(self, runs: Runs) -> Sequence[Condition]:
        gains = {name: runs.gain(name) for name in ("dpo", "dmpo", "smoothed")}
        share_SP = (runs.table("dmpo", FIDELITY) - runs.table("dpo", FIDELITY)) / runs.table(
            BASE, FIDELITY
        ).mean()
        return (
            Condition("utility, DMPO minus DPO", interval(gains["dmpo"] - gains["dpo"]), 0.05),
            Condition(
                "fidelity, DMPO minus DPO, plus 1 % of the base's", interval(100 * share_SP + 1), 0.0, " %"
            ),
            Condition(
                "control: utility, DMPO minus conservative DPO",
                interval(gains["dmpo"] - gains["smoothed"]),
                0.05,
            ),
        )

    def remarks(self, runs: Runs) -> Sequence[Condition]:
        won_SP = runs.table("dmpo", UTILITY) > runs.table("dpo", UTILITY)
        return (Condition("share of prompts that DMPO wins, minus 0.5", interval(won_SP - 0.5), 0.0),)

    def lines(self, runs: Runs) -> Sequence[Line]:
        return (
            Line("DMPO", "dmpo"),
            Line("Diffusion-DPO", "dpo"),
            Line("conservative DPO, flip rate 0.01", "smoothed"),
        )
