"""Builds single parts of a config, for commands that train nothing."""

import argparse
from collections.abc import Collection, Mapping
from typing import Any

from jsonargparse import ArgumentParser

from alignkit import components, mistakes, trust
from alignkit.catalog import Catalog
from alignkit.configfiles import find_config
from alignkit.data import AlignData
from alignkit.imports import only_trusted
from alignkit.mistakes import Given, UsageError
from alignkit.naming import expand_config

PARTS: Mapping[str, type] = {
    "objective": components.Objective,
    "weighting": components.Weighting,
    "sampler": components.Sampler,
    "conditioner": components.Conditioner,
    "backbone": components.Backbone,
    "reward": components.Reward,
    "features": components.Features,
    "suite": components.PromptSuite,
    "source": components.PairSource,
    "data": AlignData,
}


def read(catalog: Catalog, name: str) -> dict[str, Any]:
    """Reads a config, packaged or not, with the components that it names written out.

    Raises:
        UsageError: it is no config.
        ConfigNotFoundError: there is none of that name.
    """
    return expand_config(catalog, mistakes.read_config(find_config(name), name))


def build(config: dict[str, Any], parts: Collection[str], *, name: str = "the config") -> dict[str, Any]:
    """Builds the named parts that a config has; see ``PARTS``.

    Args:
        config: as ``read`` gives it, or as a run left it.
        parts: what is built.
        name: what messages call the config.

    Raises:
        UsageError: a part cannot be what the config says.
        TrustError: a part, or something in it, is of a package that is not trusted.
        ValueError: a part refuses its settings.
    """
    parser, wanted = ArgumentParser(exit_on_error=False), {}
    for part in parts:
        if config.get(part) is None:
            continue
        if part == "data":
            parser.add_class_arguments(AlignData, part)
        else:
            parser.add_subclass_arguments(PARTS[part], part, required=True)
        wanted[part] = config[part]
    trust.check(wanted, name)
    with only_trusted():
        try:
            parsed = parser.parse_object(wanted)
        except argparse.ArgumentError as error:
            told = mistakes.explained(str(error), "fit", Given([], {name: config}), (), {})
            raise UsageError(told) from error
        return dict(vars(parser.instantiate_classes(parsed)))
