"""Inversion-DPO, preference optimization on DDIM-inverted paths (Li et al., 2025, https://arxiv.org/abs/2507.11554)."""

from collections.abc import Iterable, Mapping

from alignkit.hookspecs import Command, Paper, hookimpl


@hookimpl
def alignkit_samplers() -> Mapping[str, str]:
    return {
        "DDIMInversion": "alignkit_inversion_dpo.sampler:DDIMInversion",
        "DDIMInversionDeviation": "alignkit_inversion_dpo.sampler:DDIMInversionDeviation",
    }


@hookimpl
def alignkit_commands() -> Mapping[str, Command]:
    return {
        "invert": Command(
            "alignkit_inversion_dpo.command:main", "how well a config's model inverts held-out pictures"
        )
    }


@hookimpl
def alignkit_papers() -> Iterable[Paper]:
    return [
        Paper(
            title="Inversion-DPO: Precise and Efficient Post-Training for Diffusion Models",
            authors="Li et al.",
            year=2025,
            url="https://arxiv.org/abs/2507.11554",
            components=("DDIMInversion", "DDIMInversionDeviation"),
            configs=(
                "inversion_dpo.yaml",
                "inversion_dpo/sd15_pickapic.yaml",
                "inversion_dpo/sdxl_pickapic.yaml",
                "mixtures/dmpo_inversion.yaml",
            ),
            deviations=(
                "The paper's body could not be read: the method is taken from its abstract, its pipeline "
                "figure and its released code.",
                "DERIVED: the default, DDIMInversion, compares both networks with the noise that leads from "
                "the clean latent to a point of the path; the figure's loss, DDIMInversionDeviation, has "
                "zero gradient where training starts.",
                "The released code's sign is the opposite of the figure's and is not reproduced.",
                "A step looks at a few random points of a path and paths are inverted once and kept, without "
                "guidance; the released code inverts on line, with guidance 2, and trains on all 80 points.",
            ),
        )
    ]
