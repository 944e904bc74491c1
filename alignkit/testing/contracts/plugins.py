"""What a plugin promises: it can be used, is light, and says what it is."""

import inspect
import os
import subprocess
import sys
from functools import cache
from importlib.metadata import EntryPoint, entry_points

from alignkit.catalog import Component
from alignkit.configfiles import find_config
from alignkit.hookspecs import GROUP
from alignkit.testing.contracts.building import BASES, catalog

__all__ = [
    "test_component_can_be_imported_is_named_after_its_class_and_says_what_it_does",
    "test_papers_name_what_is_there",
    "test_plugin_can_be_used",
    "test_plugins_top_module_imports_nothing_heavy",
]

HEAVY = ("torch", "lightning", "diffusers", "transformers", "datasets")
IMPORTS = """
import importlib, sys
heavy = set(sys.argv[1].split(","))
for name in sys.argv[2:]:
    before = heavy & set(sys.modules)
    try:
        importlib.import_module(name)
    except Exception:
        continue  # test_plugin_can_be_used says why
    print(name, *sorted(heavy & set(sys.modules) - before))
"""


def test_plugin_can_be_used(plugin: EntryPoint) -> None:
    """It can be imported, spells its hooks right and answers them rightly."""
    assert [str(failure) for failure in catalog().failures if failure.plugin == plugin.name] == []


def test_plugins_top_module_imports_nothing_heavy(plugin: EntryPoint) -> None:
    """``alignkit --help`` imports every plugin; what a component needs is imported with the component."""
    assert _imports().get(plugin.module, ()) == ()


def test_component_can_be_imported_is_named_after_its_class_and_says_what_it_does(
    component: Component,
) -> None:
    """A config names it; ``alignkit fit --help`` shows its docstring."""
    found = catalog().resolve(component.kind, component.name)
    assert issubclass(found, BASES[component.kind])
    assert not inspect.isabstract(found)
    assert found.__name__ == component.name
    assert "__doc__" in vars(found), f"{component.name} has no docstring"
    assert inspect.getdoc(found)


def test_papers_name_what_is_there(plugin: EntryPoint) -> None:
    """A list of papers is read by people: components and configs exist, and deviations are sentences."""
    ours = {item.name for item in catalog().components.values() if item.plugin == plugin.name}
    for paper in catalog().papers.get(plugin.name, ()):
        assert paper.title
        assert paper.authors
        assert 1900 < paper.year < 2200
        assert paper.url.startswith(("https://", "http://"))
        assert paper.components
        assert set(paper.components) <= ours
        for config in paper.configs:
            assert find_config(config).is_file()
        for sentence in paper.deviations:
            assert sentence[:1].isupper(), sentence
            assert sentence.endswith("."), sentence


@cache
def _imports() -> dict[str, tuple[str, ...]]:
    """What heavy packages each plugin's top module is the first to bring, in a fresh process."""
    names = sorted({entry.module for entry in entry_points(group=GROUP)})
    command = [sys.executable, "-c", IMPORTS, ",".join(HEAVY), *names]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    return {name: tuple(brought) for name, *brought in map(str.split, done.stdout.splitlines())}
