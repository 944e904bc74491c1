"""PPD, Personalized Preference Fine-tuning of Diffusion Models (Dang et al., 2025, https://arxiv.org/abs/2501.06655)."""

from collections.abc import Iterable, Mapping

from alignkit.hookspecs import Command, Paper, hookimpl


@hookimpl
def alignkit_conditioners() -> Mapping[str, str]:
    return {"UserTokens": "alignkit_ppd.conditioner:UserTokens"}


@hookimpl
def alignkit_sources() -> Mapping[str, str]:
    return {"UserSplit": "alignkit_ppd.source:UserSplit"}


@hookimpl
def alignkit_commands() -> Mapping[str, Command]:
    return {
        "users": Command(
            "alignkit_ppd.command:main",
            "embed the people behind a config's pairs, once for many runs",
        )
    }


@hookimpl
def alignkit_papers() -> Iterable[Paper]:
    return [
        Paper(
            title="Personalized Preference Fine-tuning of Diffusion Models",
            authors="Dang et al.",
            year=2025,
            url="https://arxiv.org/abs/2501.06655",
            components=("UserTokens",),
            configs=(
                "ppd.yaml",
                "ppd/sd15_pickapic.yaml",
                "ppd/sdxl_pickapic.yaml",
                "mixtures/see_dpo_ppd.yaml",
            ),
            deviations=(
                "The paper trains Stable Cascade; here the branch stands in the text cross-attentions of a "
                "UNet, and no code of the paper's own diffusion training was found.",
                "DERIVED: bias-free projections without a normalisation that learns, and a value projection "
                "that starts at zero, so that nobody in particular is the base exactly.",
                "DERIVED: each layer's row of an embedding is one token, scaled to the same size; which rows "
                "the paper feeds is not known.",
                "Not known, and chosen here: beta, user dropout (0.1), and that a training pair's support is "
                "drawn among its user's sets that share no picture with it.",
                "The emoji default knows people by the difference of winners and losers in a CLIP, not by a "
                "vision language model.",
            ),
        )
    ]
