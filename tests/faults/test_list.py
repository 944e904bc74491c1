"""The list of faults: that its tests are there, and that a fault counts as passed only when they are."""

import ast
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def faults() -> ModuleType:
    specification = importlib.util.spec_from_file_location("faults_bench", ROOT / "benchmarks" / "faults.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_every_test_that_is_listed_is_there(faults: ModuleType) -> None:
    entries = faults.entries()
    counts = [sum(entry.kind == kind for entry in entries) for kind in ("faults", "promises", "defects")]
    assert counts == [20, 6, 12]
    for entry in entries:
        assert entry.tests or entry.missing, entry
        assert len(set(entry.tests)) == len(entry.tests), entry
        for name in entry.tests:
            path, _, function = name.partition("::")
            tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
            assert function in [node.name for node in tree.body if isinstance(node, ast.FunctionDef)], name


TESTS = """
import pytest

@pytest.mark.parametrize("case", ["a[1]", "b"])
def test_good(case):
    pass

@pytest.mark.parametrize("case", [0, 1])
def test_half(case):
    assert case

@pytest.mark.parametrize("case", [0, 1])
def test_rather(case):
    if case:
        pytest.skip("not here")

def test_never():
    pytest.skip("not here")
"""


def test_a_fault_passes_only_if_all_its_tests_ran_and_passed(
    faults: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "test_it.py").write_text(TESTS)
    monkeypatch.setattr(faults, "ROOT", tmp_path)
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.setattr(sys, "argv", ["benchmarks/faults.py"])
    names = [f"test_it.py::test_{name}" for name in ("good", "half", "rather", "never")]
    ran = faults.run(names, 1)
    assert [sorted(case.outcome for case in ran[name]) for name in names] == [
        ["passed", "passed"],
        ["FAILED", "passed"],
        ["passed", "skipped"],
        ["skipped"],
    ]
    good, half, rather, never = names

    def entry(*tests: str, missing: str = "") -> object:
        return faults.Entry("faults", 1, "a fault", "nothing", tests, missing)

    listed = [
        entry(good, rather),
        entry(good, half, never),
        entry(good, never),
        entry(good, "test_it.py::test_gone"),
        entry(good, missing="half of it"),
        entry(missing="all of it"),
    ]
    assert [faults.outcome(one, ran) for one in listed] == [
        ("passed", ""),
        ("FAILED", "`test_half`"),
        ("NOT SHOWN", "`test_never` did not run"),
        ("NOT SHOWN", "`test_gone` did not run"),
        ("NOT SHOWN", "half of it"),
        ("NOT SHOWN", "all of it"),
    ]
    page = faults.table(listed, ran)
    assert "## 1 of 6 faults" in page
    assert sum(line.startswith("| 1 | a fault | nothing | ") for line in page) == 6
