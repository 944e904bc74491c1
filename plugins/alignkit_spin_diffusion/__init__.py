"""SPIN-Diffusion, self-play fine-tuning (Yuan et al., 2024, https://arxiv.org/abs/2402.10210)."""

from collections.abc import Iterable, Mapping

from alignkit.hookspecs import Paper, hookimpl


@hookimpl
def alignkit_samplers() -> Mapping[str, str]:
    return {"SelfPlay": "alignkit_spin_diffusion.sampler:SelfPlay"}


@hookimpl
def alignkit_papers() -> Iterable[Paper]:
    return [
        Paper(
            title="Self-Play Fine-Tuning of Diffusion Models for Text-to-Image Generation",
            authors="Yuan et al.",
            year=2024,
            url="https://arxiv.org/abs/2402.10210",
            components=("SelfPlay",),
            configs=(
                "spin_diffusion.yaml",
                "spin_diffusion/sd15_pickapic.yaml",
                "spin_diffusion/sdxl_pickapic.yaml",
            ),
            deviations=(
                "The paper's equations and its training code could not be read: the algorithm is FOUND in a "
                "record of its algorithm box, the step size, batch, steps and warm-up in the authors' model "
                "cards.",
                "DERIVED from the algorithm: that one round is Diffusion-DPO on (real, generated) with the "
                "generator as reference, at one noised point instead of a whole path.",
                "NOT FOUND: beta, the sampling steps and the guidance of the generated images, and whether "
                "images of earlier rounds are mixed in (here they are not).",
                "Losers are generated per prompt, one or more, instead of one for each real image.",
                "The learning rate is constant after its warm-up; the cards have it fall linearly.",
            ),
        )
    ]
