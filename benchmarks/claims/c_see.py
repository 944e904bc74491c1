"""SEE-DPO against DPO and DPO at beta (1 + gamma): diversity and over-optimisation over 4 times the steps.

Claimed: a self-entropy term keeps images diverse and prevents over-fitting and reward hacking in prolonged
training (Shekhar et al., 2024, abstract).

Arms, 600 steps each, judged every 75: Diffusion-DPO at its beta of claim (a); SEE-DPO at the same beta; as
control, Diffusion-DPO at beta (1 + gamma), since the entropy term also makes the pull to the reference
stronger. Gamma is chosen from 0.01, 0.03, 0.1 and 0.3 after 150 steps, with seed 100 on 57 prompts that were
trained on: the highest diversity among those that keep 90 % of DPO's gain there; if none does, the smallest.
Otherwise as in (a).

Reported: means of the five last judgements, steps 300 to 600; 57 held-out prompts, two pictures each,
training seeds 0 to 4.

Holds if SEE-DPO's diversity is above DPO's and above the control's, its fidelity above DPO's, and its utility
not lower than DPO's by 0.05 or more. Refuted by a difference in diversity that is below 0.01 (the base has
0.23) at the interval's upper end, or in fidelity below 0.5 (the base has 77).
"""

from collections.abc import Sequence

import numpy as np
from arms import DIVERSITY, FIDELITY, UTILITY, Arm, Runs
from choice import Choice, choice, grid, majority, most_diverse
from claim import Claim, Line, all_of
from intervals import Condition, interval
from settings import BETA, DPO

STEPS = tuple(range(75, 601, 75))
LATE = tuple(step for step in STEPS if step >= 300)
GAMMA = "objective.gamma"


def gammas() -> Choice | None:
    """The entropy's weight, at DPO's beta; the first option is DPO itself."""
    label = DPO.made()
    if label is None:
        return None
    options = {"0": DPO.options[label]}
    options |= grid("see", GAMMA, (0.01, 0.03, 0.1, 0.3), objective="SEEDPO", objective__beta=float(label))
    return choice("gamma of SEE-DPO", options, most_diverse, majority)


class SEEDPO(Claim):
    """Claim (c)."""

    letter = "c"
    title = "SEE-DPO loses less diversity and over-optimises less in long training"
    paper = "SEE-DPO (https://arxiv.org/abs/2411.04712)"
    control = "DPO with beta (1 + gamma)"

    def choices(self) -> Sequence[Choice]:
        return tuple(filter(None, (DPO, gammas())))

    def arms(self) -> Sequence[Arm] | None:
        waiting = gammas()
        label = waiting and waiting.made()
        if waiting is None or label is None:
            return None
        beta = float(DPO.made() or 0)
        return all_of(
            Arm("long_dpo", {BETA: beta}, steps=STEPS),
            waiting.options[label]._replace(name="long_see", steps=STEPS),
            Arm("long_stiff", {BETA: beta * (1 + float(label))}, steps=STEPS),
        )

    def conditions(self, runs: Runs) -> Sequence[Condition]:
        late = {
            (name, measure): np.mean([runs.table(name, measure, step=step) for step in LATE], axis=0)
            for name in ("long_dpo", "long_see", "long_stiff")
            for measure in (UTILITY, FIDELITY, DIVERSITY)
        }

        def over(measure: str, other: str = "long_dpo") -> np.ndarray:
            return late["long_see", measure] - late[other, measure]

        return (
            Condition("late diversity, SEE-DPO minus DPO", interval(over(DIVERSITY)), 0.01),
            Condition("late fidelity, SEE-DPO minus DPO", interval(over(FIDELITY)), 0.5),
            Condition("late utility, SEE-DPO minus DPO, plus 0.05", interval(over(UTILITY) + 0.05), 0.0),
            Condition(
                "control: late diversity, SEE-DPO minus DPO at beta (1 + gamma)",
                interval(over(DIVERSITY, "long_stiff")),
                0.01,
            ),
        )

    def remarks(self, runs: Runs) -> Sequence[Condition]:
        def change(measure: str) -> np.ndarray:
            return runs.table("long_dpo", measure) - runs.table("long_dpo", measure, step=150)

        return (
            Condition("DPO over-optimises: fidelity, step 150 minus 600", interval(-change(FIDELITY)), 0.5),
            Condition("DPO: diversity, step 150 minus 600", interval(-change(DIVERSITY)), 0.01),
        )

    def lines(self, runs: Runs) -> Sequence[Line]:
        return (
            Line("SEE-DPO, 600 steps", "long_see"),
            Line("DPO, 600 steps", "long_dpo"),
            Line("DPO at beta (1 + gamma), 600 steps", "long_stiff"),
        )
