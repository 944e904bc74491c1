"""What documents and code promise of the code."""

import ast
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from alignkit import catalog, hookspecs
from alignkit.cli import papers_table
from alignkit.trust import ALLOWED

ROOT = Path(__file__).parents[2]
CORE = sorted((ROOT / "alignkit").rglob("*.py"))
PLUGINS = sorted(path.parent for path in (ROOT / "plugins").glob("*/__init__.py"))
PAPER = re.compile(
    r"(?<![a-z])(dmpo|diffusion.?dpo|adaptive.?dpo|see.?dpo|spin.?diffusion|ppd|inversion.?dpo|mapo|kto)(?![a-z])",
    re.IGNORECASE,
)


def imported(path: Path) -> Iterator[str]:
    """Top-level packages that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield str(node.module).partition(".")[0]


@pytest.mark.parametrize("name", ["DMPO", "DiffusionDPO", "Diffusion-DPO", "see_dpo", "spin-diffusion"])
def test_names_of_papers_are_recognised(name: str) -> None:
    assert PAPER.search(f"the loss of {name}.")


@pytest.mark.parametrize("path", CORE, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_core_names_no_paper(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if PAPER.search(line)] == []


@pytest.mark.parametrize("path", CORE, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_core_imports_no_plugin(path: Path) -> None:
    packages = {plugin.name for plugin in PLUGINS}
    assert packages
    assert packages & set(imported(path)) == set()


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda plugin: plugin.name)
def test_plugins_do_not_import_each_other(plugin: Path) -> None:
    others = {other.name for other in PLUGINS if other != plugin}
    for path in plugin.rglob("*.py"):
        assert others & set(imported(path)) == set(), path


def test_every_hook_says_what_it_is_for() -> None:
    hooks = {name: hook for name, hook in vars(hookspecs).items() if name.startswith("alignkit_")}
    assert set(hookspecs.KINDS.values()) < set(hooks)
    for name, hook in hooks.items():
        assert len(inspect.getdoc(hook) or "") > 20, name


def test_table_of_papers_in_the_readme_is_the_commands() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = re.search(r"<!-- papers -->\n(.*?)<!-- /papers -->", text, re.DOTALL)
    assert table, "README.md has no place for the table: <!-- papers --> and <!-- /papers -->"
    ours = [entry for entry in catalog.entry_points(group="alignkit") if is_ours(entry.value)]
    found = catalog.discover(found=ours)
    assert found.papers
    assert table[1].strip() == papers_table(found), "put in what `alignkit list --papers` prints"


def test_what_the_security_policy_says_is_held_by_tests_that_there_are() -> None:
    rows = re.findall(r"^\|.*\| `(tests/[\w/]+\.py)::(\w+)` \|$", (ROOT / "SECURITY.md").read_text(), re.M)
    assert len(rows) > 15
    for path, name in rows:
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        assert name in [node.name for node in tree.body if isinstance(node, ast.FunctionDef)], (path, name)


def test_the_security_policy_names_the_packages_that_are_trusted() -> None:
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    assert "must lie in " + ", ".join(f"`{name}`" for name in ALLOWED) + " or the package" in text


def is_ours(target: str) -> bool:
    """Whether this repository has the plugin: others may be installed beside it."""
    return target.partition(".")[0] in {plugin.name for plugin in PLUGINS}


def test_table_of_methods_in_the_readme_is_the_benchmarks() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = re.search(r"<!-- methods -->\n(.*?)<!-- /methods -->", text, re.DOTALL)
    assert shown, "README.md has no place for the table: <!-- methods --> and <!-- /methods -->"
    newest = max((ROOT / "benchmarks" / "results").glob("methods_*.md"))
    command = [sys.executable, "benchmarks/methods.py", "--condense", str(newest)]
    table = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert shown[1] == table, f"put in what `python {' '.join(command[1:])}` prints"
