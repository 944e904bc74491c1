"""What comes of every fault, promise and published defect that ``tests/faults/faults.yaml`` lists.

    python benchmarks/faults.py --out benchmarks/results
    python benchmarks/faults.py --only faults 1 2

Runs the tests that it names, slow ones too, and writes a row for each. One that fails, or that no test shows,
makes this exit with 1.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import yaml

ROOT = Path(__file__).resolve().parents[1]
LIST = ROOT / "tests" / "faults" / "faults.yaml"
PASSED, FAILED, NOT_SHOWN = "passed", "FAILED", "NOT SHOWN"


class Entry(NamedTuple):
    """A line of the list.

    Args:
        kind: "faults", "promises" or "defects".
        number: its place among those, from 1.
        what: what is injected or promised.
        expected: what should come of it.
        tests: names of tests, without parameters.
        missing: what no test shows yet; "" if nothing is missing.
    """

    kind: str
    number: int
    what: str
    expected: str
    tests: tuple[str, ...]
    missing: str = ""


class Ran(NamedTuple):
    """What came of one test with one choice of parameters."""

    outcome: str
    seconds: float


def main() -> int:
    """Runs the tests and writes the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="KIND", help="faults, promises or defects, and numbers"
    )
    parser.add_argument("--out", type=Path, help="folder for the table; it is only printed without it")
    parser.add_argument("--processes", type=int, default=1, help="how many tests run at a time")
    options = parser.parse_args()
    chosen = [entry for entry in entries() if wanted(entry, options.only)]
    ran = run(sorted({name for entry in chosen for name in entry.tests}), options.processes)
    lines = table(chosen, ran)
    print("\n".join(lines))
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "faults.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0 if all(outcome(entry, ran)[0] == PASSED for entry in chosen) else 1


def entries(path: Path = LIST) -> list[Entry]:
    """All that is listed."""
    return [
        Entry(kind, number, one["what"], one["expected"], tuple(one["tests"]), one.get("missing", ""))
        for kind, ones in yaml.safe_load(path.read_text(encoding="utf-8")).items()
        for number, one in enumerate(ones, 1)
    ]


def wanted(entry: Entry, only: Sequence[str]) -> bool:
    """Whether an entry is among those that were asked for."""
    kinds = [word for word in only if not word.isdigit()]
    numbers = [word for word in only if word.isdigit()]
    return entry.kind in (kinds or [entry.kind]) and str(entry.number) in (numbers or [str(entry.number)])


def run(tests: Iterable[str], processes: int) -> dict[str, list[Ran]]:
    """What came of tests, by name; each has several with parameters."""
    names = list(tests)
    if not names:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", "-o", "junit_family=xunit1"]
        spread = ["-n", str(processes), "--dist", "worksteal"] if processes > 1 else []
        subprocess.run(
            [*command, *spread, *names], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
        )
        return read(report) if report.exists() else {}


def read(report: Path) -> dict[str, list[Ran]]:
    """What pytest's report says, by file and function."""
    found: dict[str, list[Ran]] = defaultdict(list)
    for case in ElementTree.parse(report).iter("testcase"):
        function = re.sub(r"\[.*", "", case.get("name", ""), flags=re.DOTALL)
        tags = {child.tag for child in case}
        outcome = FAILED if tags & {"failure", "error"} else "skipped" if "skipped" in tags else PASSED
        found[f"{case.get('file')}::{function}"].append(Ran(outcome, float(case.get("time", 0))))
    return dict(found)


def outcome(entry: Entry, ran: Mapping[str, Sequence[Ran]]) -> tuple[str, str]:
    """What came of an entry, and why if it is not shown.

    A test whose every case was skipped shows nothing.
    """
    outcomes = {name: {case.outcome for case in ran.get(name, ())} for name in entry.tests}
    failed = [name for name, each in outcomes.items() if FAILED in each]
    unseen = [name for name, each in outcomes.items() if PASSED not in each]
    if failed:
        return FAILED, ", ".join(f"`{name.partition('::')[2]}`" for name in failed)
    if unseen:
        return NOT_SHOWN, ", ".join(f"`{name.partition('::')[2]}` did not run" for name in unseen)
    if entry.missing or not entry.tests:
        return NOT_SHOWN, entry.missing or "no test"
    return PASSED, ""


def table(listed: Sequence[Entry], ran: Mapping[str, Sequence[Ran]]) -> list[str]:
    """The page."""
    from report import header

    lines = header(
        "Faults, promises and published defects", "The tests are listed in `tests/faults/faults.yaml`."
    )
    for kind in dict.fromkeys(entry.kind for entry in listed):
        ones = [entry for entry in listed if entry.kind == kind]
        passed = sum(outcome(entry, ran)[0] == PASSED for entry in ones)
        lines += [f"## {passed} of {len(ones)} {kind}", ""]
        lines += ["| | what | expected | outcome | tests | seconds |", "|---|---|---|---|---|---|"]
        for entry in ones:
            cases = [case for name in entry.tests for case in ran.get(name, ())]
            shown, why = outcome(entry, ran)
            told = f"{shown}: {why}" if why else shown
            count = sum(case.outcome == PASSED for case in cases)
            seconds = sum(case.seconds for case in cases)
            lines.append(
                f"| {entry.number} | {entry.what} | {entry.expected} | {told} | {count} | {seconds:.1f} |"
            )
        lines.append("")
    return lines[:-1]


if __name__ == "__main__":
    sys.exit(main())
