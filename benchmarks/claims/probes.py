"""What is run to find out why a claim does not hold: on the tuning prompts, with the tuning seed.

Probes decide nothing. What they showed is written in investigations/, beside the table that `page.py` makes
of them.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from arms import Arm
from f_inversion import PAPER, PATH
from settings import BETA


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


def _inversion(name: str, flip_rate: float = 0.0, **settings: object) -> Arm:
    """The paper's form at beta 1000, with something changed."""
    path = {key.replace("__", "."): value for key, value in (PATH | settings).items()}
    return Arm(f"probe_f_{name}", path | {BETA: 1000.0}, flip_rate=flip_rate)


PROBES: Mapping[str, Sequence[Probe]] = {
    "f": (
        Probe("", "none: the paper's form at beta 1000", PAPER.options["1000"]),
        Probe("our code", "every label swapped", _inversion("swapped", 1.0)),
        Probe("our code", "four points of a path in place of one", _inversion("points", sampler__points=4)),
        Probe("the bench", "start of the path noised", _inversion("noised", sampler__noised_start=True)),
        Probe("the bench", "noise shared by both", _inversion("shared", sampler__shared_noise=True)),
        Probe(
            "the bench", "learning rate 1e-5 in place of 5e-5", _inversion("slow", **{"optimizer.lr": 1e-5})
        ),
        Probe("the claim", "guidance 2, the released script's", _inversion("guided", sampler__guidance=2.0)),
        Probe(
            "the claim",
            "the figure's loss",
            _inversion("deviation", sampler="DDIMInversionDeviation"),
        ),
    ),
}
