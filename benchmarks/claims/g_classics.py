"""The classics in one table; and three mixtures against the better of their parents.

Nothing is claimed by a paper here. The question of the first part is how SFT, IPO, hinge, robust,
conservative DPO, KTO and MaPO stand beside Diffusion-DPO, each with its own strength chosen as in (a), 150
steps. The claim that is judged is ours: parts that were published alone add up.

Mixtures: DMPO with Adaptive-DPO's weights at 20 % flipped labels, against DMPO and against Adaptive-DPO
there; DMPO on Inversion-DPO's points, against DMPO and against Inversion-DPO; SEE-DPO with PPD's user tokens,
against PPD, by the unseen users' own utility. Strengths are those that were chosen for the parents: nothing
is chosen for a mixture. Otherwise as in (a).

Reported: 57 held-out prompts, two pictures each, training seeds 0 to 4.

A mixture's claim holds if its utility is above each parent's, and is refuted by a difference that is below
0.05 at the interval's upper end. The verdict is of all three together; each is given.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from arms import MINORITY, UTILITY, Arm, Runs
from c_see import gammas
from choice import Choice, choice, grid
from claim import Claim, Line, all_of
from e_ppd import OWN, PPD
from f_inversion import INVERSION
from intervals import Condition, interval
from settings import BETA, CURVE, DMPO, DPO, SFT, dmpo, dpo, reported, sft

RATE = 0.2
CLASSICS = {
    "ipo": choice(
        "tau of IPO", grid("ipo", "objective.tau", (20, 50, 100), objective="IPO", optimizer__eps=1e-12)
    ),
    "hinge": choice("beta of hinge DPO", grid("hinge", BETA, (250, 500, 1000), objective="HingeDPO")),
    "robust": choice(
        "beta of robust DPO, flip rate 0.1",
        grid("robust", BETA, (250, 500, 1000), objective="RobustDPO", objective__flip_rate=0.1),
    ),
    "conservative": choice(
        "beta of conservative DPO, flip rate 0.1",
        grid("conservative", BETA, (250, 500, 1000), objective="ConservativeDPO", objective__flip_rate=0.1),
    ),
    "kto": choice("beta of KTO", grid("kto", BETA, (150, 300, 600), objective="KTO")),
    "mapo": choice(
        "beta of MaPO",
        grid(
            "mapo",
            BETA,
            (0.02, 0.1, 0.5),
            objective="MaPO",
            objective__snr=0.5,
            objective__num_timesteps=1000,
            optimizer__lr=1e-4,
        ),
    ),
}
NAMES = {
    "ipo": "IPO",
    "hinge": "hinge DPO",
    "robust": "robust DPO",
    "conservative": "conservative DPO",
    "kto": "KTO",
    "mapo": "MaPO",
}


class Mixtures(Claim):
    """Claim (g)."""

    letter = "g"
    title = "Mixtures of published parts beat each of their parents"
    paper = "none: the classics in one table, and our own claim"
    control = "each parent alone"

    def choices(self) -> Sequence[Choice]:
        return tuple(filter(None, (DPO, DMPO, SFT, *CLASSICS.values(), INVERSION, PPD, gammas())))

    def arms(self) -> Sequence[Arm] | None:
        see, ppd, label = gammas(), PPD.made(), DMPO.made()
        gamma = see and see.made()
        if see is None or ppd is None or label is None or gamma is None:
            return None
        dmpo_settings: dict[str, Any] = {"objective": "DMPO", BETA: float(label)}
        adaptive = dmpo_settings | {"weighting": "MinorityAware", "weighting.beta": float(label)}
        inversion = reported(INVERSION, "inversion", steps=CURVE)
        path = {
            key: value for key, value in (inversion or Arm("")).settings.items() if key.startswith("sampler")
        }
        told = PPD.options[ppd]
        with_entropy = {"objective": "SEEDPO", BETA: 1000.0, "objective.gamma": float(gamma), **told.settings}
        beta = float(DPO.made() or 0)
        return all_of(
            dpo(),
            dmpo(),
            sft(),
            *(reported(found, name) for name, found in CLASSICS.items()),
            Arm("flip20_dmpo", dmpo_settings, flip_rate=RATE),
            Arm(
                "flip20_adaptive",
                {BETA: beta, "weighting": "MinorityAware", "weighting.beta": beta},
                flip_rate=RATE,
            ),
            Arm("flip20_dmpo_adaptive", adaptive, flip_rate=RATE),
            inversion,
            Arm("dmpo_inversion", dmpo_settings | path),
            told._replace(name="ppd"),
            Arm("see_ppd", with_entropy, config=told.config, steps=told.steps),
        )

    def conditions(self, runs: Runs) -> Sequence[Condition]:
        def over(mixture: str, parent: str, name: str) -> Condition:
            return Condition(f"utility, {name}", interval(runs.gain(mixture) - runs.gain(parent)), 0.05)

        own = {
            arm: np.mean([runs.gain(arm, measure, audience=whom) for whom, measure in OWN], axis=0)
            for arm in ("see_ppd", "ppd")
        }
        return (
            over("flip20_dmpo_adaptive", "flip20_dmpo", "20 % flipped, DMPO with Adaptive-DPO minus DMPO"),
            over(
                "flip20_dmpo_adaptive",
                "flip20_adaptive",
                "20 % flipped, DMPO with Adaptive-DPO minus Adaptive-DPO",
            ),
            over("dmpo_inversion", "dmpo", "DMPO with Inversion-DPO minus DMPO"),
            over("dmpo_inversion", "inversion", "DMPO with Inversion-DPO minus Inversion-DPO"),
            Condition("own utility, SEE-DPO with PPD minus PPD", interval(own["see_ppd"] - own["ppd"]), 0.05),
        )

    def remarks(self, runs: Runs) -> Sequence[Condition]:
        names = {"sft": "SFT", **NAMES, "dmpo": "DMPO"}
        return tuple(
            Condition(
                f"utility, {name} minus Diffusion-DPO", interval(runs.gain(arm) - runs.gain("dpo")), 0.05
            )
            for arm, name in names.items()
        )

    def lines(self, runs: Runs) -> Sequence[Line]:
        return (
            Line("DMPO with Inversion-DPO", "dmpo_inversion"),
            Line("DMPO", "dmpo"),
            Line("Inversion-DPO, the config's", "inversion"),
            Line("Diffusion-DPO", "dpo"),
            Line("SFT", "sft"),
            *(Line(name, arm) for arm, name in NAMES.items()),
            Line("DMPO with Adaptive-DPO, 20 % flipped", "flip20_dmpo_adaptive"),
            Line("DMPO, 20 % flipped", "flip20_dmpo"),
            Line("Adaptive-DPO, 20 % flipped", "flip20_adaptive"),
            Line("SEE-DPO with PPD, unseen majority", "see_ppd", "majority"),
            Line("SEE-DPO with PPD, unseen minority", "see_ppd", "minority", MINORITY),
            Line("PPD, unseen majority", "ppd", "majority", UTILITY),
            Line("PPD, unseen minority", "ppd", "minority", MINORITY),
        )
