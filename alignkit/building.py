"""Builds single parts of a config, for commands that train nothing."""

from collections.abc import Collection, Mapping
from typing import Any

from jsonargparse import ArgumentParser

from alignkit import components, mistakes
from alignkit.catalog import Catalog
from alignkit.configfiles import find_config
from alignkit.data import AlignData
from alignkit.naming import expand_config

PARTS: Mapping[str, type] = {
    "objective": components.Objective,
    "weighting": components.Weighting,
    "sampler": components.Sampler,
    "conditioner": components.Conditioner,
    "backbone": components.Backbone,
    "data": AlignData,
}


def read(catalog: Catalog, name: str) -> dict[str, Any]:
    """Reads a config, packaged or not, with the components that it names written out.

    Raises:
        UsageError: it is no config.
        ConfigNotFoundError: there is none of that name.
    """
    return expand_config(catalog, mistakes.read_config(find_config(name), name))


def build(config: Mapping[str, Any], parts: Collection[str]) -> dict[str, Any]:
    """Builds the named parts that a config has; see ``PARTS``.

    Raises:
        ValueError: a part refuses its settings.
    """
    parser, wanted = ArgumentParser(exit_on_error=False), {}
    for name in parts:
        if config.get(name) is None:
            continue
        if name == "data":
            parser.add_class_arguments(AlignData, name)
        else:
            parser.add_subclass_arguments(PARTS[name], name, required=True)
        wanted[name] = config[name]
    return dict(vars(parser.instantiate_classes(parser.parse_object(wanted))))
