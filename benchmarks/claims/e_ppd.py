"""PPD: unseen users from four pairs, against pooled DPO, the wrong user and nobody; tastes between two.

Claimed: one model that is told four judged pairs of a user it has not seen draws what that user likes: 76 %
of the time better than the base; tastes can be interpolated (Dang et al., 2025, abstract).

Arms: PPD (ppd.yaml: people of two opposed groups, eight of whom training has not seen, 300 steps); pooled
Diffusion-DPO on the same people's pairs, at the beta of claim (a), 300 steps. PPD's learning rate is chosen
from 1e-4, 3e-4 and 1e-3 by the mean gain of both groups in their own utility that keeps 97 % of the base's
fidelity, on 57 prompts that were trained on, told of the unseen users, with seed 100. Controls: told of the
other group's users; told of nobody.

Reported: for either group its own utility of what was drawn for its unseen members, the mean of both groups;
57 held-out prompts, two pictures each, training seeds 0 to 4; and mixtures of a majority's and a minority's
member at 0, 25, 50, 75 and 100 %.

Holds if PPD's own utility is above the base's, above pooled DPO's, and above what is drawn for the other
group; if the difference of both utilities grows from each mixture to the next; and if told of nobody the
pictures are the base's (displacement below 0.001). Refuted by a difference that is below 0.05 (0.02 between
mixtures) at the interval's upper end.
"""

from collections.abc import Sequence

import numpy as np
from arms import DISPLACEMENT, MINORITY, UTILITY, Arm, Runs
from choice import Choice, both_groups, choice, most_useful
from claim import Claim, Line, all_of
from intervals import Condition, interval
from settings import BETA, DPO, PPD_SETTINGS

STEPS = (300,)
SHARES = ("minority", "mix 0.25", "mix 0.5", "mix 0.75", "majority")
OWN = (("majority", UTILITY), ("minority", MINORITY))
WRONG = (("minority", UTILITY), ("majority", MINORITY))


PPD = choice(
    "learning rate of PPD",
    {
        f"{lr:g}": Arm(f"ppd_{lr:g}", PPD_SETTINGS | {"optimizer.lr": lr}, config="ppd.yaml", steps=STEPS)
        for lr in (1e-4, 3e-4, 1e-3)
    },
    most_useful,
    both_groups,
)


class PPDUnseen(Claim):
    """Claim (e)."""

    letter = "e"
    title = "PPD draws what an unseen user likes, from four of their pairs"
    paper = "PPD (https://arxiv.org/abs/2501.06655)"
    control = "the other group's users; nobody; pooled DPO"

    def choices(self) -> Sequence[Choice]:
        return PPD, DPO

    def arms(self) -> Sequence[Arm] | None:
        chosen, label = PPD.made(), DPO.made()
        if chosen is None or label is None:
            return None
        everybody = {BETA: float(label), "data.train.users": "all", "data.train.user_split": "train"}
        pooled = Arm("pooled_dpo", everybody, steps=STEPS)
        return all_of(PPD.options[chosen]._replace(name="ppd"), pooled)

    def conditions(self, runs: Runs) -> Sequence[Condition]:
        own_SP = _mean(runs, "ppd", OWN)
        pooled_SP = _mean(runs, "pooled_dpo", tuple(("", measure) for _, measure in OWN))
        moved_SP = runs.table("ppd", DISPLACEMENT, audience="nobody")
        contrast = [
            runs.table("ppd", UTILITY, audience=whom) - runs.table("ppd", MINORITY, audience=whom)
            for whom in SHARES
        ]
        steps = [
            Condition(f"majority's minus minority's utility, {after} minus {before}", interval(b - a), 0.02)
            for before, after, a, b in zip(SHARES, SHARES[1:], contrast, contrast[1:], strict=False)
        ]
        return (
            Condition("own utility, PPD minus base", interval(own_SP), 0.05),
            Condition("own utility, PPD minus pooled DPO", interval(own_SP - pooled_SP), 0.05),
            Condition(
                "control: own utility, right user minus wrong",
                interval(own_SP - _mean(runs, "ppd", WRONG)),
                0.05,
            ),
            Condition("control: 0.001 minus displacement, told of nobody", interval(0.001 - moved_SP), 0.0),
            *steps,
        )

    def remarks(self, runs: Runs) -> Sequence[Condition]:
        won_SP = np.mean(
            [runs.gain("ppd", measure, audience=whom) > 0 for whom, measure in OWN], axis=0, dtype=np.float64
        )
        return (
            Condition("share of prompts that PPD wins over the base, minus 0.5", interval(won_SP - 0.5), 0.0),
            *(
                Condition(
                    f"own utility of the {whom}, PPD minus base",
                    interval(runs.gain("ppd", m, audience=whom)),
                    0.05,
                )
                for whom, m in OWN
            ),
            *(
                Condition(
                    f"utility of the {whom}, pooled DPO minus base",
                    interval(runs.gain("pooled_dpo", m)),
                    0.05,
                )
                for whom, m in OWN
            ),
        )

    def lines(self, runs: Runs) -> Sequence[Line]:
        return (
            Line("PPD for unseen majority", "ppd", "majority"),
            Line("PPD for unseen minority", "ppd", "minority", MINORITY),
            Line("PPD for unseen minority, by the majority's utility", "ppd", "minority"),
            Line("PPD for unseen majority, by the minority's utility", "ppd", "majority", MINORITY),
            Line("PPD for nobody", "ppd", "nobody"),
            Line("pooled DPO", "pooled_dpo"),
            Line("pooled DPO, by the minority's utility", "pooled_dpo", "", MINORITY),
        )


def _mean(runs: Runs, arm: str, told: tuple[tuple[str, str], ...]) -> np.ndarray:
    """Mean gain of both groups, (S, P)."""
    return np.mean([runs.gain(arm, measure, audience=whom) for whom, measure in told], axis=0)
