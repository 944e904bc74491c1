"""Inversion-DPO against Diffusion-DPO: steps, and work, until a given utility is reached.

Claimed: training on points of an inverted path instead of noised pictures converges more than twice as fast
as Diffusion-DPO (Li et al., 2025; the factor is from a secondary source).

Arms: Diffusion-DPO at its beta of claim (a); Inversion-DPO as this project's config has it (one of ten points
of the path, shared noise, a noised start); Inversion-DPO as the paper has it (one of ten points, from the
inverted picture, without shared noise). Each has its own beta (250 to 2000 for the latter two), chosen as in
(a). 150 steps, judged at 25, 50, 75, 100 and 150. Otherwise as in (a).

The target is half of the gain that Diffusion-DPO's choice had on the tuning prompts, and so is known before
the reported runs. Steps are read off the mean curve by linear interpolation, 300 where 150 do not reach it.
Work is counted in forward passes of the UNet for one picture, a backward pass as two: 3 + 1 per picture and
step for Diffusion-DPO; for Inversion-DPO ten more at a picture's first visit, which is nearly every visit in
150 steps.

Reported: 57 held-out prompts, two pictures each, training seeds 0 to 4.

Holds if the config's form needs at most half of Diffusion-DPO's steps. Refuted if it needs more than half
throughout the interval. As control, the same by work. The paper's own form is reported beside it.
"""

from collections.abc import Sequence

import numpy as np
from arms import Arm, Runs
from choice import Choice, choice, grid
from claim import Claim, Line, all_of
from intervals import Condition, Interval, interval, of_resamples, resampled_means
from numpy.typing import NDArray
from settings import BETA, CURVE, DPO, dpo, reported

BETAS = (250, 500, 1000, 2000)
NEVER = 300.0
# forward passes per picture and step, a backward pass counted as two
WORK = {"dpo": 4.0, "inversion": 14.0, "inversion_paper": 14.0}
PATH = {
    "sampler": "DDIMInversion",
    "sampler__num_steps": 10,
    "sampler__points": 1,
    "sampler__cache": "{runs}/trajectories",
}
INVERSION = choice(
    "beta of Inversion-DPO, as the config has it",
    grid("inversion", BETA, BETAS, **PATH, sampler__shared_noise=True, sampler__noised_start=True),
)
PAPER = choice("beta of Inversion-DPO, as the paper has it", grid("inversion_paper", BETA, BETAS, **PATH))


def target() -> float | None:
    """Half of Diffusion-DPO's gain on the tuning prompts; None while it waits."""
    table, label = DPO.table(), DPO.made()
    return None if table is None or label is None else table[label].gain / 2


class InversionDPO(Claim):
    """Claim (f)."""

    letter = "f"
    title = "Inversion-DPO reaches a given utility in half of Diffusion-DPO's steps"
    paper = "Inversion-DPO (https://arxiv.org/abs/2507.11554)"
    control = "the same by forward passes instead of steps"

    def choices(self) -> Sequence[Choice]:
        return DPO, INVERSION, PAPER

    def arms(self) -> Sequence[Arm] | None:
        return all_of(
            dpo(),
            reported(INVERSION, "inversion", steps=CURVE),
            reported(PAPER, "inversion_paper", steps=CURVE),
        )

    def conditions(self, runs: Runs) -> Sequence[Condition]:
        return (
            Condition("half of Diffusion-DPO's steps minus Inversion-DPO's", _saved(runs, "inversion"), 0.0),
            Condition(
                "control: half of Diffusion-DPO's work minus Inversion-DPO's, in steps of Diffusion-DPO",
                _saved(runs, "inversion", by_work=True),
                0.0,
            ),
        )

    def remarks(self, runs: Runs) -> Sequence[Condition]:
        dpo_SP = runs.gain("dpo")
        return (
            Condition("steps of Diffusion-DPO", _steps(runs, "dpo"), 0.0),
            Condition("steps of Inversion-DPO, the config's", _steps(runs, "inversion"), 0.0),
            Condition("steps of Inversion-DPO, the paper's", _steps(runs, "inversion_paper"), 0.0),
            Condition(
                "half of Diffusion-DPO's steps minus the paper's form's", _saved(runs, "inversion_paper"), 0.0
            ),
            Condition(
                "utility after 150 steps, the config's minus Diffusion-DPO",
                interval(runs.gain("inversion") - dpo_SP),
                0.05,
            ),
            Condition(
                "utility after 150 steps, the paper's form minus Diffusion-DPO",
                interval(runs.gain("inversion_paper") - dpo_SP),
                0.05,
            ),
        )

    def lines(self, runs: Runs) -> Sequence[Line]:
        return (
            Line("Inversion-DPO, the config's", "inversion"),
            Line("Diffusion-DPO", "dpo"),
            Line("Inversion-DPO, the paper's", "inversion_paper"),
        )


def reached(gain_RL: NDArray[np.float64], wanted: float) -> NDArray[np.float64]:
    """The step at which curves first reach a gain, (R,), by linear interpolation from (0, 0)."""
    steps, step_R = (0, *CURVE), np.full(len(gain_RL), NEVER)
    gain_RL = np.concatenate([np.zeros((len(gain_RL), 1)), gain_RL], axis=1)
    for i in reversed(range(1, len(steps))):
        before_R, after_R = gain_RL[:, i - 1], gain_RL[:, i]
        here_R = (before_R < wanted) & (after_R >= wanted)
        share_R = (wanted - before_R[here_R]) / (after_R[here_R] - before_R[here_R])
        step_R[here_R] = steps[i - 1] + share_R * (steps[i] - steps[i - 1])
    return step_R


def _curves(runs: Runs, arm: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The step found, (1,), and those of resamples, (R,)."""
    wanted, gain_LSP = target(), np.array([runs.gain(arm, step=step) for step in CURVE])
    assert wanted is not None
    found_RL = gain_LSP.mean((1, 2))[None]
    return reached(found_RL, wanted), reached(resampled_means(gain_LSP), wanted)


def _steps(runs: Runs, arm: str) -> Interval:
    found_R, step_R = _curves(runs, arm)
    return of_resamples(float(found_R[0]), step_R)


def _saved(runs: Runs, arm: str, *, by_work: bool = False) -> Interval:
    factor = WORK[arm] / WORK["dpo"] if by_work else 1.0
    (dpo_1, dpo_R), (arm_1, arm_R) = _curves(runs, "dpo"), _curves(runs, arm)
    return of_resamples(float(dpo_1[0] / 2 - factor * arm_1[0]), dpo_R / 2 - factor * arm_R)
