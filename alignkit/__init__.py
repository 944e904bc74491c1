"""Aligns text-to-image diffusion models to human preferences. Names, lazily, what a plugin author imports."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from alignkit.hookspecs import Command, Paper, hookimpl

if TYPE_CHECKING:
    from alignkit.components import (
        Backbone,
        Component,
        Conditioner,
        Denoiser,
        Features,
        Objective,
        PairSource,
        PromptSuite,
        Reference,
        Reward,
        Sampler,
        Weighting,
    )
    from alignkit.evaluation.results import Prompt
    from alignkit.types import (
        Batch,
        Encoded,
        Key,
        Loss,
        Moments,
        Noised,
        PairRecord,
        PromptLimit,
        Sample,
        Schedule,
        Scored,
        Text,
        Weights,
    )

__version__ = "0.1.0"

_HOMES = {
    "alignkit.components": (
        "Backbone",
        "Component",
        "Conditioner",
        "Denoiser",
        "Features",
        "Objective",
        "PairSource",
        "PromptSuite",
        "Reference",
        "Reward",
        "Sampler",
        "Weighting",
    ),
    "alignkit.evaluation.results": ("Prompt",),
    "alignkit.types": (
        "Batch",
        "Encoded",
        "Key",
        "Loss",
        "Moments",
        "Noised",
        "PairRecord",
        "PromptLimit",
        "Sample",
        "Schedule",
        "Scored",
        "Text",
        "Weights",
    ),
}

__all__ = [
    "Backbone",
    "Batch",
    "Command",
    "Component",
    "Conditioner",
    "Denoiser",
    "Encoded",
    "Features",
    "Key",
    "Loss",
    "Moments",
    "Noised",
    "Objective",
    "PairRecord",
    "PairSource",
    "Paper",
    "Prompt",
    "PromptLimit",
    "PromptSuite",
    "Reference",
    "Reward",
    "Sample",
    "Sampler",
    "Schedule",
    "Scored",
    "Text",
    "Weighting",
    "Weights",
    "hookimpl",
]


def __getattr__(name: str) -> Any:
    # torch takes a second to import: `alignkit --help` must not wait for it
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home), name)
    raise AttributeError(f"module 'alignkit' has no attribute {name!r}")
