"""Which rewards judge, and by what weight."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from alignkit.catalog import Catalog
from alignkit.components import Reward
from alignkit.evaluation.scorers import built_judge, class_name, named_settings
from alignkit.naming import inline


class Judge(NamedTuple):
    """A reward that is to be built.

    Args:
        settings: its class and arguments, as a config writes them.
        weight: by what its score is multiplied.
    """

    settings: dict[str, Any]
    weight: float


def named_judges(
    catalog: Catalog, given: Sequence[str], entries: Collection[Mapping[str, Any]]
) -> dict[str, Judge]:
    """Reads what ``--reward`` says, by the name of the class.

    Args:
        catalog: what is installed.
        given: each ``NAME``, ``NAME=WEIGHT`` or ``{name: NAME, weight: 1.0, ...}``.
        entries: a config's rewards; a judge that has no settings of its own takes those of its entry.

    Raises:
        ValueError: one is named twice, or its weight is none.
    """
    if not given:
        installed = ", ".join(catalog.names("reward")) or "none"
        raise ValueError(f"--reward: name who judges the candidates; installed: {installed}")
    judges: dict[str, Judge] = {}
    for text in given:
        said: Any = text
        if text.startswith("{"):
            said = inline("reward", text)
            weight = said.pop("weight", 1.0)
        else:
            said, _, weight = text.partition("=")
        settings = named_settings(catalog, "reward", said, entries)
        name = class_name(settings)
        if name in judges:
            raise ValueError(f"--reward {text}: {name} judges already; name each once")
        judges[name] = Judge(settings, _weight(text, weight))
    return judges


def built(judges: Mapping[str, Judge], device: str) -> dict[str, Reward]:
    """Builds judges, on a device."""
    return {
        name: built_judge("reward", judge.settings, torch.device(device)) for name, judge in judges.items()
    }


def _weight(text: str, weight: Any) -> float:
    try:
        value = float(weight if weight != "" else 1.0)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value) or value == 0:
        raise ValueError(f"--reward {text}: its weight must be a number other than 0, got {weight!r}")
    return value
