"""SPIN-Diffusion from winners only, three rounds, against SFT at equal steps and against DPO with labels.

Claimed: self-play from the winners alone is better than SFT after one round, and better than Diffusion-DPO,
which sees both sides of every pair, after two (Yuan et al., 2024, abstract and captions).

Arms: SPIN-Diffusion, three rounds of 50 steps, two losers of ten DDIM steps per prompt and round at guidance
3; SFT on the winners, 150 steps; Diffusion-DPO with labels of claim (a), 150 steps; as control, SPIN with one
round of 150 steps: the opponent stays the base. SPIN's beta (500, 2000) and learning rate (2e-5, 5e-5) and
SFT's learning rate (2e-5, 5e-5, 1e-4) are chosen as in (a); the control takes SPIN's. Otherwise as in (a).

Reported: 57 held-out prompts, two pictures each, training seeds 0 to 4. SPIN is judged after every round.

Holds if SPIN's utility after three rounds is above SFT's, not lower than labelled DPO's by 0.05 or more, and
above that of the control. Refuted by differences to SFT or to the control that are below 0.05 at the
interval's upper end, or by DPO above SPIN by more than 0.05 throughout the interval.
"""

from collections.abc import Sequence
from typing import Any

from arms import Arm, Runs
from choice import Choice, choice
from claim import Claim, Line, all_of
from intervals import Condition, interval
from settings import BETA, DPO, SFT, dpo, reported, sft

ROUNDS = (50, 100, 150)


def spin(name: str, beta: float, lr: float, rounds: int = 3) -> Arm:
    """Self-play with so many rounds."""
    settings: dict[str, Any] = {
        BETA: beta,
        "optimizer.lr": lr,
        "sampler": "SelfPlay",
        "sampler.rounds": rounds,
        "sampler.images_per_prompt": 2,
        "sampler.num_steps": 10,
        "sampler.guidance": 3.0,
        "model.warmup_steps": 10,
    }
    return Arm(name, settings, steps=ROUNDS)


SPIN = choice(
    "beta and learning rate of SPIN-Diffusion",
    {
        f"{beta:g}, {lr:g}": spin(f"spin_{beta:g}_{lr:g}", beta, lr)
        for beta in (500.0, 2000.0)
        for lr in (2e-5, 5e-5)
    },
)


class SPINDiffusion(Claim):
    """Claim (d)."""

    letter = "d"
    title = "SPIN-Diffusion, from winners only, beats SFT and keeps up with labelled DPO"
    paper = "SPIN-Diffusion (https://arxiv.org/abs/2402.10210)"
    control = "one round of as many steps, against the base"

    def choices(self) -> Sequence[Choice]:
        return SPIN, SFT, DPO

    def arms(self) -> Sequence[Arm] | None:
        label = SPIN.made()
        if label is None:
            return None
        beta, lr = map(float, label.split(", "))
        frozen = spin("spin_frozen", beta, lr, rounds=1)
        return all_of(reported(SPIN, "spin", steps=ROUNDS), sft(), dpo(), frozen)

    def conditions(self, runs: Runs) -> Sequence[Condition]:
        spin_SP = runs.gain("spin")
        return (
            Condition("utility, SPIN minus SFT", interval(spin_SP - runs.gain("sft")), 0.05),
            Condition(
                "utility, SPIN minus labelled DPO, plus 0.05",
                interval(spin_SP - runs.gain("dpo") + 0.05),
                0.0,
            ),
            Condition(
                "control: utility, three rounds minus one", interval(spin_SP - runs.gain("spin_frozen")), 0.05
            ),
        )

    def remarks(self, runs: Runs) -> Sequence[Condition]:
        gains = [runs.gain("spin", step=step) for step in ROUNDS]
        return (
            Condition("utility, first round minus SFT", interval(gains[0] - runs.gain("sft")), 0.05),
            Condition("utility, second round minus first", interval(gains[1] - gains[0]), 0.02),
            Condition("utility, third round minus second", interval(gains[2] - gains[1]), 0.02),
        )

    def lines(self, runs: Runs) -> Sequence[Line]:
        return (
            Line("SPIN-Diffusion, three rounds", "spin"),
            Line("DPO with labels", "dpo"),
            Line("SFT on winners", "sft"),
            Line("SPIN, one round of as many steps", "spin_frozen"),
        )
