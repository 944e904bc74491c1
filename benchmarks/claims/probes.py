"""What is run to find out why a claim does not hold, or cannot be told.

Probes decide nothing. What they showed is written in investigations/, beside the table that `page.py` makes
of them.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from a_dmpo import SMOOTHED
from arms import SEEDS, TUNING_SEED, Arm
from c_see import GAMMA, gammas
from d_spin import SPIN
from f_inversion import INVERSION, PAPER, PATH
from settings import BETA, DMPO, DPO, SFT, dmpo, dpo, reported


class Probe(NamedTuple):
    """One thing that is changed, to see whether it is the cause.

    Args:
        suspect: what is tested: our code, the bench, or the claim.
        change: what is changed.
        arm: how; an arm of the tuning is not run again.
    """

    suspect: str
    change: str
    arm: Arm


class Probes(NamedTuple):
    """What is run for one claim.

    Args:
        seeds: training seeds; the prompts are those that go with them.
        probes: the first is what the others are compared with.
    """

    seeds: Sequence[int]
    probes: Sequence[Probe]


def _chosen(suspect: str, change: str, arm: Arm | None) -> Sequence[Probe]:
    """The arm that was chosen, which is not run again; nothing while the choice waits."""
    return [] if arm is None else [Probe(suspect, change, arm)]


def _entropy() -> Sequence[Probe]:
    """SEE-DPO with more entropy than was tried, and where DPO is driven further; nothing while DPO waits."""
    waiting = gammas()
    if waiting is None:
        return []
    small, large = waiting.options["0.01"], waiting.options["0.3"]
    fast = {"optimizer.lr": 2e-4}
    return [
        Probe("", "none: gamma 0.01", small),
        *(
            Probe(
                "our code",
                f"gamma {gamma:g}",
                large._replace(name=f"probe_c_{gamma:g}", settings={**large.settings, GAMMA: gamma}),
            )
            for gamma in (1.0, 3.0)
        ),
        Probe(
            "the bench",
            "Diffusion-DPO, four times the learning rate",
            waiting.options["0"]._replace(
                name="probe_c_dpo_fast", settings={**waiting.options["0"].settings, **fast}
            ),
        ),
        Probe(
            "the bench",
            "gamma 0.3, four times the learning rate",
            large._replace(name="probe_c_fast", settings={**large.settings, **fast}),
        ),
        Probe("the claim", "gamma 0.3", large),
    ]


def _inversion(name: str, flip_rate: float = 0.0, **settings: object) -> Arm:
    """The paper's form at beta 1000, with something changed."""
    path = {key.replace("__", "."): value for key, value in (PATH | settings).items()}
    return Arm(f"probe_f_{name}", path | {BETA: 1000.0}, flip_rate=flip_rate)


def _spin(name: str, flip_rate: float = 0.0, steps: tuple[int, ...] | None = None, **settings: object) -> Arm:
    """The chosen form of SPIN-Diffusion, with something changed."""
    chosen = SPIN.options["2000, 5e-05"]
    changed = dict(chosen.settings) | {key.replace("__", "."): value for key, value in settings.items()}
    return Arm(f"probe_d_{name}", changed, flip_rate=flip_rate, steps=steps or chosen.steps)


def _both(name: str, beta: float, flip_rate: float = 0.0) -> Arm:
    """DMPO on Inversion-DPO's points, with something changed."""
    path = {key: value for key, value in INVERSION.options["500"].settings.items() if key != BETA}
    return Arm(f"probe_g_{name}", path | {"objective": "DMPO", BETA: beta}, flip_rate=flip_rate)


def probes() -> Mapping[str, Probes]:
    """Of each claim, by its letter; those that wait for a choice are left out."""
    return {
        "a": Probes(
            SEEDS,
            (
                *_chosen("", "none: Diffusion-DPO", dpo()),
                *_chosen("", "none: DMPO", dmpo()),
                *_chosen(
                    "our code",
                    "the same smoothed label, the other divergence",
                    reported(SMOOTHED, "smoothed"),
                ),
                Probe(
                    "the bench",
                    "Diffusion-DPO at beta 350, between two that were tried",
                    DPO.options["500"]._replace(name="probe_a_dpo_350", settings={BETA: 350.0}),
                ),
                Probe(
                    "the claim",
                    "DMPO at beta 3000, between two that were tried",
                    DMPO.options["2000"]._replace(
                        name="probe_a_dmpo_3000", settings={"objective": "DMPO", BETA: 3000.0}
                    ),
                ),
            ),
        ),
        "c": Probes((TUNING_SEED,), _entropy()),
        "d": Probes(
            (TUNING_SEED,),
            (
                Probe("", "none: three rounds of 50 steps", SPIN.options["2000, 5e-05"]),
                Probe(
                    "our code", "losers of the pairs in the winners' place", _spin("swapped", flip_rate=1.0)
                ),
                Probe("the bench", "losers drawn without guidance", _spin("unguided", sampler__guidance=1.0)),
                Probe("the claim", "three rounds of 100 steps", _spin("long", steps=(100, 200, 300))),
                Probe(
                    "the claim",
                    "SFT for 300 steps",
                    SFT.options["0.0001"]._replace(name="probe_d_sft_long", steps=(300,)),
                ),
            ),
        ),
        "f": Probes(
            (TUNING_SEED,),
            (
                Probe("", "none: the paper's form at beta 1000", PAPER.options["1000"]),
                Probe("our code", "every label swapped", _inversion("swapped", 1.0)),
                Probe(
                    "our code",
                    "four points of a path in place of one",
                    _inversion("points", sampler__points=4),
                ),
                Probe(
                    "the bench", "start of the path noised", _inversion("noised", sampler__noised_start=True)
                ),
                Probe("the bench", "noise shared by both", _inversion("shared", sampler__shared_noise=True)),
                Probe(
                    "the bench",
                    "learning rate 1e-5 in place of 5e-5",
                    _inversion("slow", **{"optimizer.lr": 1e-5}),
                ),
                Probe(
                    "the claim",
                    "guidance 2, the released script's",
                    _inversion("guided", sampler__guidance=2.0),
                ),
                Probe(
                    "the claim",
                    "the figure's loss",
                    _inversion("deviation", sampler="DDIMInversionDeviation"),
                ),
            ),
        ),
        "g": Probes(
            (TUNING_SEED,),
            (
                Probe("", "none: DMPO with Inversion-DPO at DMPO's beta, 2000", _both("both", 2000.0)),
                Probe("our code", "every label swapped", _both("swapped", 2000.0, 1.0)),
                Probe("the bench", "a beta of its own: 1000", _both("1000", 1000.0)),
                Probe("the bench", "a beta of its own: 500", _both("500", 500.0)),
                Probe("the claim", "DMPO alone", DMPO.options["2000"]),
                Probe("the claim", "Inversion-DPO alone", INVERSION.options["500"]),
            ),
        ),
    }
