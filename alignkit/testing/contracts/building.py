"""Which components are tested, and how each is built."""

import inspect
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from alignkit import components
from alignkit.catalog import Catalog, Component, discover
from alignkit.hookspecs import GROUP, KINDS
from alignkit.testing.toys import ToyBackbone

__all__ = [
    "backbone",
    "component",
    "conditioned",
    "conditioner",
    "features",
    "objective",
    "plugin",
    "pytest_generate_tests",
    "reward",
    "sampler",
    "source",
    "suite",
    "weighting",
]

BASES: Mapping[str, type] = {
    "objective": components.Objective,
    "weighting": components.Weighting,
    "sampler": components.Sampler,
    "conditioner": components.Conditioner,
    "backbone": components.Backbone,
    "source": components.PairSource,
    "reward": components.Reward,
    "features": components.Features,
    "suite": components.PromptSuite,
}


@cache
def catalog() -> Catalog:
    """What is installed, found once."""
    return discover()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Asks every question of every component, or plugin, that it is about."""
    entries = {entry.name: entry for entry in entry_points(group=GROUP)}
    wanted, known = getattr(metafunc.module, "DISTRIBUTION", None), {_brought_by(e) for e in entries.values()}
    if wanted is not None and wanted not in known:
        raise pytest.UsageError(
            f"DISTRIBUTION: no plugin of {wanted!r} is installed, only of {', '.join(sorted(known))}"
        )
    for fixture in metafunc.fixturenames:
        if fixture in KINDS or fixture == "component":
            found = [
                pytest.param(item, id=f"{item.plugin}:{item.name}")
                for item in catalog().components.values()
                if (fixture == item.kind or (fixture == "component" and item.kind in KINDS))
                and wanted in (None, item.distribution.rpartition(" ")[0])
            ]
            metafunc.parametrize(fixture, found, indirect=True, scope="module")
        elif fixture == "plugin":
            found = [
                pytest.param(entry, id=name)
                for name, entry in sorted(entries.items())
                if wanted in (None, _brought_by(entry))
            ]
            metafunc.parametrize(fixture, found, indirect=True, scope="module")


@pytest.fixture(scope="module")
def component(request: pytest.FixtureRequest) -> Component:
    """A component as the catalog has it."""
    found: Component = request.param
    return found


@pytest.fixture(scope="module")
def plugin(request: pytest.FixtureRequest) -> EntryPoint:
    """A plugin by its entry point."""
    found: EntryPoint = request.param
    return found


def _built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return build(request.param, request.module, tmp_path_factory.mktemp("component"))


objective, weighting, sampler, conditioner, backbone, source, reward, features, suite = (
    pytest.fixture(scope="module", name=kind)(_built) for kind in BASES
)


@pytest.fixture(scope="module")
def conditioned(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> components.Backbone:
    """The model that conditioners are attached to."""
    given = getattr(request.module, "BACKBONE", lambda folder: ToyBackbone())
    found: components.Backbone = given(tmp_path_factory.mktemp("backbone"))
    return found


def build(item: Component, module: ModuleType, folder: Path, **other: Any) -> Any:
    """Builds a component with its defaults and with the arguments that a test file gives it.

    Args:
        item: which.
        module: the test file.
        folder: an empty folder for what the arguments need.
        **other: arguments that go before those.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = catalog().resolve(item.kind, item.name)
    given = getattr(module, "ARGUMENTS", {}).get(item.name)
    arguments = {**(given(folder) if given else {}), **other}
    missing = [name for name in _required(found) if name not in arguments]
    if missing:
        pytest.skip(f"{item.name} needs {', '.join(missing)}: give the test file ARGUMENTS[{item.name!r}]")
    return found(**arguments)


def _brought_by(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else "an unnamed distribution"


def _required(found: type) -> Iterable[str]:
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    for parameter in inspect.signature(found).parameters.values():
        if parameter.default is parameter.empty and parameter.kind not in variable:
            yield parameter.name
