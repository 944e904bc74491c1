"""Settings that more than one claim chooses: the choices, and the arms that follow from them."""

from arms import Arm
from choice import Choice, choice, grid

BETA = "objective.beta"
CURVE = (25, 50, 75, 100, 150)

DPO = choice("beta of Diffusion-DPO", grid("dpo", BETA, (125, 250, 500, 1000, 2000)))
DMPO = choice("beta of DMPO, alpha 0.01", grid("dmpo", BETA, (500, 1000, 2000, 4000, 8000), objective="DMPO"))
SFT = choice("learning rate of SFT", grid("sft", "optimizer.lr", (2e-5, 5e-5, 1e-4), objective="SFT"))
PPD_SETTINGS = {
    "evaluation.max_prompts": 0,
    "samples.num_prompts": 0,
    "trainer.limit_val_batches": 1,
    "trainer.enable_checkpointing": False,
    "trainer.enable_progress_bar": False,
}


def reported(choice: Choice, name: str, *, steps: tuple[int, ...] = (150,)) -> Arm | None:
    """The chosen arm under the name of its method; None while the choice waits."""
    label = choice.made()
    return None if label is None else choice.options[label]._replace(name=name, steps=steps)


def dpo() -> Arm | None:
    """Diffusion-DPO at its best beta."""
    return reported(DPO, "dpo", steps=CURVE)


def dmpo() -> Arm | None:
    """DMPO at its best beta."""
    return reported(DMPO, "dmpo")


def sft() -> Arm | None:
    """SFT at its best learning rate."""
    return reported(SFT, "sft")
