"""What every component promises of its settings and callbacks."""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest

from alignkit import components
from alignkit.catalog import Component
from alignkit.testing.contracts.building import build, catalog

__all__ = ["test_callbacks_are_the_same_at_every_call", "test_setting_out_of_range_is_refused_by_name"]

NO_CHOICE = "no such choice"
# names of what cannot be below zero; others may count from an end, or be seeds
COUNT = re.compile(r"^(num|max|min)_|_(steps|size)$|^(count|rank|steps|width)$")


def test_setting_out_of_range_is_refused_by_name(
    component: Component, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """A float is a number, a count is not below zero, a choice is one of those allowed.

    Anything else is a ``ValueError`` that names the class and the setting: whoever wrote the config reads it.
    """
    build(component, request.module, tmp_path / "as it should be")
    found = catalog().resolve(component.kind, component.name)
    for number, (setting, wrong) in enumerate(_wrong_settings(found)):
        with pytest.raises(ValueError, match=rf"(?s){component.name}.*{setting}"):
            build(component, request.module, tmp_path / str(number), **{setting: wrong})


def test_callbacks_are_the_same_at_every_call(
    component: Component, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Their state is saved: a callback made anew at every call would forget it."""
    built = build(component, request.module, tmp_path)
    if isinstance(built, components.Component):
        first, second = built.callbacks(), built.callbacks()
        assert [id(callback) for callback in first] == [id(callback) for callback in second]


def _wrong_settings(found: type) -> Iterator[tuple[str, Any]]:
    hints = get_type_hints(found.__init__)  # type: ignore[misc]
    for setting, hint in hints.items():
        if setting == "return":
            continue
        for kind in _alternatives(hint):
            if kind is float:
                yield from ((setting, wrong) for wrong in (math.nan, -math.inf))
            elif kind is int and COUNT.search(setting):
                yield setting, -(2**40)
            elif get_origin(kind) is Literal:
                yield setting, NO_CHOICE
            elif get_origin(kind) is tuple and float in get_args(kind):
                yield setting, (math.nan,)


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
