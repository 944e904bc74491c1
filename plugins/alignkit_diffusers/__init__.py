"""Backbones around diffusers pipelines."""

from collections.abc import Mapping

from alignkit.hookspecs import hookimpl


@hookimpl
def alignkit_backbones() -> Mapping[str, str]:
    return {
        "StableDiffusion": "alignkit_diffusers.stable_diffusion:StableDiffusion",
        "StableDiffusionXL": "alignkit_diffusers.stable_diffusion_xl:StableDiffusionXL",
    }
