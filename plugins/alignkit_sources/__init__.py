"""Preference pairs from files."""

from collections.abc import Mapping

from alignkit.hookspecs import hookimpl


@hookimpl
def alignkit_sources() -> Mapping[str, str]:
    return {"PickAPic": "alignkit_sources.pickapic:PickAPic"}
