"""Adaptive-DPO, minority-aware weights and margins (Zhang et al., 2025, https://arxiv.org/abs/2503.16921)."""

from collections.abc import Iterable, Mapping

from alignkit.hookspecs import Command, Paper, hookimpl


@hookimpl
def alignkit_weightings() -> Mapping[str, str]:
    return {"MinorityAware": "alignkit_adaptive_dpo.weighting:MinorityAware"}


@hookimpl
def alignkit_sources() -> Mapping[str, str]:
    return {"FlippedPairs": "alignkit_adaptive_dpo.source:FlippedPairs"}


@hookimpl
def alignkit_commands() -> Mapping[str, Command]:
    return {"flip": Command("alignkit_adaptive_dpo.flip:main", "choose pairs whose label is swapped, once")}


@hookimpl
def alignkit_papers() -> Iterable[Paper]:
    return [
        Paper(
            title="When Preferences Diverge: Aligning Diffusion Models with Minority-Aware Adaptive DPO",
            authors="Zhang et al.",
            year=2025,
            url="https://arxiv.org/abs/2503.16921",
            components=("MinorityAware", "FlippedPairs"),
            configs=(
                "adaptive_dpo.yaml",
                "adaptive_dpo/sd15_pickapic.yaml",
                "adaptive_dpo/sdxl_pickapic.yaml",
                "mixtures/dmpo_minority_aware.yaml",
            ),
            deviations=(
                "The paper's body could not be read: metric, weights and margin are those of the authors' "
                "released code, fanfanffff1/Adaptive-DPO.",
                "DERIVED: the norm is over the pairs of all processes, and rho, given for 16 pairs, grows "
                "with the square root of their number.",
                "DERIVED: margins in units of the reward, an option; as released they are not multiplied by "
                "beta and change next to nothing.",
                "Warm-up is counted once per run, not once per epoch.",
                "The settings for SDXL are not known; those of its config are of SD 1.5 and of diffusers' "
                "scripts.",
            ),
        )
    ]
