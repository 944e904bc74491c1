"""Who judges pictures: rewards, and features by whose distances pictures differ."""

import hashlib
import inspect
import sys
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from alignkit.building import build
from alignkit.catalog import Catalog
from alignkit.components import Features, Reward
from alignkit.evaluation.identity import key_of
from alignkit.mistakes import shown
from alignkit.naming import expand, inline


class Scorer(NamedTuple):
    """A reward, or features.

    Args:
        name: of the class.
        settings: its class and arguments, as a config writes them.
        judge: the built thing.
        key: a hash of what its figures depend on: settings, origins, and the text of the module of its class.
        provenance: where its weights come from.
    """

    name: str
    settings: Mapping[str, Any]
    judge: Reward | Features
    key: str
    provenance: Mapping[str, Any]


def named_settings(
    catalog: Catalog, kind: str, said: str | Mapping[str, Any], entries: Collection[Mapping[str, Any]]
) -> dict[str, Any]:
    """The class and arguments of a reward or features that were named.

    Args:
        catalog: what is installed.
        kind: "reward" or "features".
        said: a name, a class path, or settings; or the text of settings, in braces.
        entries: a config's own; what is named without settings takes those of its entry.

    Raises:
        ValueError: nothing is named.
    """
    wanted: Any = inline(kind, said) if isinstance(said, str) and said.startswith("{") else said
    if isinstance(wanted, str):
        wanted = {"class_path": wanted} if "." in wanted else {"name": wanted}
    if not isinstance(wanted, Mapping) or not {"name", "class_path"} & wanted.keys():
        installed = ", ".join(catalog.names(kind)) or "none"
        told = f"must be NAME or {{name: NAME, ...}}, got {shown(said)}"
        raise ValueError(f"--{kind}: {told}; installed: {installed}")
    settings: dict[str, Any] = expand(catalog, kind, dict(wanted))
    if set(wanted) <= {"name", "class_path"}:
        own = {class_name(entry): dict(entry) for entry in entries}
        return own.get(class_name(settings), settings)
    return settings


def class_name(settings: Mapping[str, Any]) -> str:
    """Name of the class that settings are of."""
    return str(settings["class_path"]).rpartition(".")[2]


def built_judge(kind: str, settings: Mapping[str, Any], device: torch.device) -> Any:
    """Builds a reward or features on a device, as it judges."""
    judge: nn.Module = build({kind: settings}, (kind,), name=f"--{kind} {class_name(settings)}")[kind]
    return judge.eval().requires_grad_(False).to(device)


def scorer(kind: str, settings: Mapping[str, Any]) -> Scorer:
    """Builds a scorer, on the CPU."""
    judge, name = built_judge(kind, settings, torch.device("cpu")), class_name(settings)
    told = judge.provenance()  # once: a server may be asked for it
    # not by the release of whoever brings it: it judges alike until its code or its weights differ
    depends = {name: value for name, value in told.items() if name != "distribution"}
    return Scorer(name, settings, judge, key_of(settings, depends, _code(type(judge))), told)


def _code(kind: type) -> str:
    """A hash of the module that a class stands in; empty where its text is not to be had."""
    try:
        return hashlib.sha256(inspect.getsource(sys.modules[kind.__module__]).encode()).hexdigest()
    except (OSError, TypeError):
        return ""
