"""SEE-DPO, Self Entropy Enhanced Direct Preference Optimization (Shekhar et al., 2024, https://arxiv.org/abs/2411.04712)."""

from collections.abc import Iterable, Mapping

from alignkit.hookspecs import Paper, hookimpl


@hookimpl
def alignkit_objectives() -> Mapping[str, str]:
    return {"SEEDPO": "alignkit_see_dpo.objective:SEEDPO"}


@hookimpl
def alignkit_papers() -> Iterable[Paper]:
    return [
        Paper(
            title="SEE-DPO: Self Entropy Enhanced Direct Preference Optimization",
            authors="Shekhar et al.",
            year=2024,
            url="https://arxiv.org/abs/2411.04712",
            components=("SEEDPO",),
            configs=("see_dpo.yaml", "see_dpo/sd15_pickapic.yaml", "see_dpo/sdxl_pickapic.yaml"),
            deviations=(
                "The paper's equations, settings and code could not be read: the loss is DERIVED from its "
                "abstract and from summaries, as the reward of the entropy-regularised objective.",
                "The default gamma = 0.003 is DERIVED from the size of the errors; beta is that of "
                "Diffusion-DPO.",
                "The step-wise form for SPO and D3PO is a function, see_step_loss; whether the authors clip "
                "before or after adding the entropy is not known.",
            ),
        )
    ]
