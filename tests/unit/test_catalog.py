"""The catalog against distributions that are written to disk for each test, good and bad."""

import configparser
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from importlib.metadata import EntryPoint, distributions
from pathlib import Path

import pytest

from alignkit.catalog import CatalogError, Component, discover, print_failures
from alignkit.configfiles import packaged_configs

ROOT = Path(__file__).parents[2]

Offer = Callable[..., list[EntryPoint]]

PLUGIN = """
from alignkit.hookspecs import Paper, hookimpl

@hookimpl
def {hook}():
    return {answer}
"""


def plugin(answer: object, hook: str = "alignkit_objectives") -> str:
    return PLUGIN.format(hook=hook, answer=answer)


@pytest.fixture
def offer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterable[Offer]:
    """Writes a distribution with one plugin, makes it importable, and gives back its entry points."""
    before = set(sys.modules)

    def write(
        distribution: str, name: str, source: str, module: str = "", version: str = "1.0"
    ) -> list[EntryPoint]:
        module = module or f"catalogtest_{distribution.replace('-', '_')}_{name}"
        site = tmp_path / distribution
        info = site / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        (site / f"{module}.py").write_text(source)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[alignkit]\n{name} = {module}\n")
        monkeypatch.syspath_prepend(str(site))
        return [entry for found in distributions(path=[str(site)]) for entry in found.entry_points]

    yield write
    for module in set(sys.modules) - before:
        if module.startswith("catalogtest_"):
            del sys.modules[module]


def good(offer: Offer, distribution: str = "good-align", name: str = "good", component: str = "Good"):
    return offer(distribution, name, plugin({component: f"somewhere.{component.lower()}:{component}"}))


def test_plugin_is_found_with_its_distribution(offer):
    catalog = discover(found=good(offer))
    assert catalog.components == {
        ("objective", "Good"): Component("objective", "Good", "somewhere.good:Good", "good", "good-align 1.0")
    }
    assert catalog.names("objective") == ["Good"]
    assert catalog.names("sampler") == []
    assert catalog.failures == ()


def test_every_kind_has_a_hook(offer):
    hooks = {
        "objective": "alignkit_objectives",
        "weighting": "alignkit_weightings",
        "sampler": "alignkit_samplers",
        "conditioner": "alignkit_conditioners",
        "backbone": "alignkit_backbones",
        "source": "alignkit_sources",
        "reward": "alignkit_rewards",
        "features": "alignkit_features",
        "suite": "alignkit_suites",
    }
    found = [
        offer(f"{kind}-align", kind, plugin({"Thing": "somewhere:Thing"}, hook))[0]
        for kind, hook in hooks.items()
    ]
    assert set(discover(found=found).components) == {(kind, "Thing") for kind in hooks}


def test_papers_are_kept_by_plugin(offer):
    answer = "[Paper('A Title', 'A et al.', 2025, 'https://example.org', ('Good',))]"
    catalog = discover(found=offer("paper-align", "paper", plugin(answer, "alignkit_papers")))
    assert [paper.title for paper in catalog.papers["paper"]] == ["A Title"]


def test_catalog_cannot_be_changed(offer):
    catalog = discover(found=good(offer))
    with pytest.raises(TypeError):
        catalog.components["objective", "Bad"] = catalog.components["objective", "Good"]
    with pytest.raises(AttributeError):
        catalog.failures = ()


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import no_such_package", "ModuleNotFoundError: No module named 'no_such_package'"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        (
            plugin({}, "alignkit_objectivs"),
            "CatalogError: alignkit_objectivs is no hook of alignkit; did you mean alignkit_objectives?",
        ),
        (plugin("['DPO']"), "CatalogError: alignkit_objectives must return a mapping of names to"),
        (
            plugin({"Bad": "no_colon.Bad"}),
            "CatalogError: alignkit_objectives: 'Bad' must be 'package.module:Class'",
        ),
        (
            plugin({"Bad": 3}),
            "CatalogError: alignkit_objectives: 'Bad' must be 'package.module:Class', got 3",
        ),
        (
            plugin({"Bad": "somewhere:Worse"}),
            "CatalogError: alignkit_objectives: 'Bad' must be the name of its class",
        ),
        (plugin("1 / 0"), "ZeroDivisionError: division by zero"),
    ],
    ids=["import", "crash", "hook", "answer", "target", "type", "name", "raises"],
)
def test_broken_plugin_is_named_and_the_rest_goes_on(offer, capsys, source: str, reason: str):
    # the broken one comes first in the alphabet: what follows it must still be read
    catalog = discover(found=offer("broken-align", "broken", source, version="0.3") + good(offer))
    assert catalog.names("objective") == ["Good"]
    (failure,) = catalog.failures
    assert (failure.plugin, failure.distribution) == ("broken", "broken-align 0.3")
    assert failure.reason.startswith(reason)
    print_failures(catalog)
    message = f"alignkit: warning: plugin 'broken' of broken-align 0.3 cannot be used: {reason}"
    assert capsys.readouterr().err.startswith(message)


def test_broken_plugin_leaves_no_half(offer):
    """One good and one bad name in one answer: neither is offered."""
    answer = {"Fine": "somewhere:Fine", "Bad": "somewhere:Worse"}
    assert discover(found=offer("half-align", "half", plugin(answer))).components == {}


def test_hook_with_unknown_argument_is_a_failure(offer):
    source = plugin({}).replace("alignkit_objectives()", "alignkit_objectives(config)")
    (failure,) = discover(found=offer("argument-align", "argument", source)).failures
    assert "config" in failure.reason


def test_two_plugins_of_one_name_are_refused(offer):
    found = good(offer, "first-align", "same", "First") + good(offer, "second-align", "same", "Second")
    with pytest.raises(CatalogError) as error:
        discover(found=found)
    assert "two plugins are named 'same': one of first-align 1.0, one of second-align 1.0" in str(error.value)
    assert "alignkit -p no:second-align" in str(error.value)
    assert discover(blocked=["second-align"], found=found).names("objective") == ["First"]


def test_distribution_seen_twice_counts_once(offer):
    """A checkout on the path and its own editable install show the same entry points twice."""
    catalog = discover(found=2 * good(offer))
    assert catalog.names("objective") == ["Good"]
    assert catalog.failures == ()


def test_two_components_of_one_name_are_refused(offer):
    found = good(offer, "first-align", "first") + good(offer, "second-align", "second")
    with pytest.raises(CatalogError) as error:
        discover(found=found)
    assert str(error.value) == (
        "objective 'Good' is offered by plugin 'first' (first-align 1.0) "
        "and by plugin 'second' (second-align 1.0).\n"
        "Block one: alignkit -p no:first ... or alignkit -p no:second ..."
    )


def test_one_name_in_two_kinds_is_fine(offer):
    found = good(offer) + offer(
        "other-align", "other", plugin({"Good": "somewhere:Good"}, "alignkit_samplers")
    )
    assert set(discover(found=found).components) == {("objective", "Good"), ("sampler", "Good")}


@pytest.mark.parametrize("blocked", ["first", "first-align"])
def test_blocking_by_plugin_and_by_distribution(offer, blocked: str):
    found = good(offer, "first-align", "first", "First") + good(offer, "second-align", "second", "Second")
    assert discover(blocked=[blocked], found=found).names("objective") == ["Second"]


def test_blocked_plugin_is_not_imported(offer):
    catalog = discover(blocked=["broken"], found=offer("broken-align", "broken", "1 / 0"))
    assert catalog.failures == ()


def test_unknown_name_is_answered_with_what_there_is(offer):
    found = (
        good(offer) + good(offer, "other-align", "other", "Other") + offer("broken-align", "broken", "1 / 0")
    )
    with pytest.raises(CatalogError) as error:
        discover(found=found).resolve("objective", "god")
    assert str(error.value) == (
        "unknown objective 'god'; did you mean 'Good'? Installed: Good, Other\n"
        "plugin 'broken' of broken-align 1.0 cannot be used: ZeroDivisionError: division by zero"
    )


def test_unknown_name_with_nothing_near():
    with pytest.raises(CatalogError, match=re.escape("unknown objective 'DPO'. Installed: none")):
        discover(found=[]).resolve("objective", "DPO")


def test_component_is_imported_when_it_is_chosen(offer):
    source = plugin({"Chosen": "catalogtest_chosen:Chosen"}) + "\nclass Chosen: ...\n"
    catalog = discover(found=offer("chosen-align", "chosen", source, module="catalogtest_chosen"))
    assert catalog.resolve("objective", "Chosen") is sys.modules["catalogtest_chosen"].Chosen


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("no_such_package.objective:Chosen", "ModuleNotFoundError: No module named 'no_such_package'"),
        (
            "catalogtest_chosen:Chosen",
            "AttributeError: module 'catalogtest_chosen' has no attribute 'Chosen'",
        ),
    ],
)
def test_component_that_cannot_be_imported_says_whom_to_ask(offer, target: str, reason: str):
    found = offer("chosen-align", "chosen", plugin({"Chosen": target}), module="catalogtest_chosen") + good(
        offer
    )
    with pytest.raises(CatalogError) as error:
        discover(found=found).resolve("objective", "Chosen")
    assert str(error.value) == (
        f"objective 'Chosen' of plugin 'chosen' (chosen-align 1.0): cannot import {target}: {reason}\n"
        "Repair or reinstall chosen-align 1.0, or choose another objective: Chosen, Good"
    )


def test_component_that_is_no_class_is_refused(offer):
    source = plugin({"Chosen": "catalogtest_chosen:Chosen"}) + "\nChosen = 3\n"
    catalog = discover(found=offer("chosen-align", "chosen", source, module="catalogtest_chosen"))
    with pytest.raises(CatalogError, match="catalogtest_chosen:Chosen is no class"):
        catalog.resolve("objective", "Chosen")


def built_in() -> dict[str, str]:
    """Names and modules of the plugins in setup.cfg."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    lines = config["options.entry_points"]["alignkit"].strip().splitlines()
    return {name.strip(): module.strip() for name, module in (line.split("=") for line in lines)}


def test_every_folder_of_plugins_is_an_entry_point():
    folders = {path.parent.name for path in (ROOT / "plugins").glob("*/__init__.py")}
    assert folders
    assert folders == set(built_in().values())


def test_built_in_plugins_are_found_as_a_third_partys():
    found = [EntryPoint(name, module, "alignkit") for name, module in built_in().items()]
    catalog = discover(found=found)
    assert catalog.failures == ()
    assert {component.plugin for component in catalog.components.values()} == set(built_in())
    assert {"DMPO", "DiffusionDPO"} <= set(catalog.names("objective"))
    for kind, name in catalog.components:
        found_there = catalog.resolve(kind, name)
        assert kind == "command" or found_there.__name__ == name


def test_papers_name_components_and_configs_that_exist():
    found = [EntryPoint(name, module, "alignkit") for name, module in built_in().items()]
    catalog = discover(found=found)
    papers = [paper for papers in catalog.papers.values() for paper in papers]
    assert papers
    names = {name for _, name in catalog.components}
    for paper in papers:
        assert set(paper.components) <= names
        assert set(paper.configs) <= set(packaged_configs())


def test_discovering_imports_nothing_heavy():
    """``alignkit --help`` answers at once: names are read, classes are not imported."""
    code = f"""
import sys
from importlib.metadata import EntryPoint
from alignkit.catalog import discover
catalog = discover(found=[EntryPoint(name, module, "alignkit") for name, module in {built_in()!r}.items()])
assert catalog.components and not catalog.failures, catalog
heavy = {{"torch", "lightning", "diffusers", "transformers", "datasets", "pyarrow", "numpy"}}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
    ran = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'plugins'}"},
    )
    assert ran.returncode == 0, ran.stderr


def test_blocking_what_is_not_there_says_what_is() -> None:
    with pytest.raises(
        CatalogError, match="-p no:typo: no plugin and no distribution has that name; there are"
    ):
        discover(blocked=["typo"])


COMMAND = """
from alignkit.hookspecs import Command, hookimpl

@hookimpl
def alignkit_commands():
    return {answer}

def run(catalog, arguments):
    print("ran with", arguments)
    return 3
"""


def offered_command(offer: Offer, name: str, answer: str) -> list[EntryPoint]:
    # one pair of braces: the plugin's text is no format
    return offer("good-align", "good", COMMAND.replace("{answer}", answer), module=name)


def test_a_plugin_brings_a_command(offer, capsys):
    entries = offered_command(
        offer, "catalogtest_greet", "{'greet': Command('catalogtest_greet:run', 'says hello')}"
    )
    catalog = discover(found=entries)
    assert catalog.names("command") == ["greet"]
    assert catalog.components["command", "greet"].help == "says hello"
    assert catalog.resolve("command", "greet")(catalog, ["--loud"]) == 3
    assert capsys.readouterr().out == "ran with ['--loud']\n"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("{'greet': 'catalogtest_bad:run'}", "'greet' must be a Command of 'package.module:function'"),
        ("{'greet': Command('run', '')}", "'greet' must be a Command of 'package.module:function'"),
        ("{'Greet me': Command('catalogtest_bad:run', '')}", "must be of lower-case letters and '-'"),
        ("['greet']", "alignkit_commands must return a mapping"),
        ("{'fit': Command('catalogtest_bad:run', '')}", "'fit' is a command of alignkit's own"),
    ],
)
def test_a_command_that_is_none_is_left_out_and_named(offer, answer, reason):
    (failure,) = discover(found=offered_command(offer, "catalogtest_bad", answer)).failures
    assert reason in failure.reason


@pytest.mark.parametrize(("target", "named"), [("__name__", "no function"), ("gone", "cannot import")])
def test_a_command_without_a_function_is_refused(offer, target, named):
    module = f"catalogtest_{target.strip('_')}"
    entries = offered_command(offer, module, f"{{'greet': Command('{module}:{target}', '')}}")
    with pytest.raises(CatalogError, match=named):
        discover(found=entries).resolve("command", "greet")
