"""Which small changes of the maths no test notices.

    python benchmarks/mutants.py --out benchmarks/results
    python benchmarks/mutants.py --only 'alignkit_dmpo/*'

mutmut changes one operator, number, word or argument at a time, in everything that a loss or a weight is
computed with, and runs the tests that reach the changed function. Why a survivor changes nothing that matters
stands in ``mutants.yaml``; one without a reason makes this exit with 1.
"""

import argparse
import fnmatch
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import yaml

ROOT = Path(__file__).resolve().parents[1]
# packages side by side, since mutmut takes a file's path for its module's name
STAGE = ROOT / "build" / "mutants"
REASONS = Path(__file__).with_suffix(".yaml")
ENOUGH = 0.9

MATHS = (
    "alignkit/functional.py",
    "alignkit_*/functional.py",
    "alignkit_*/objective.py",
    "alignkit_*/weighting.py",
    "alignkit_classics/kto.py",
    "alignkit_classics/noisy_labels.py",
    "alignkit_classics/pairwise.py",
    "alignkit_classics/reference_free.py",
    "alignkit_classics/settings.py",
)
TESTS = (
    "tests/unit/test_functional.py",
    "tests/unit/test_prediction_types.py",
    "tests/plugins/adaptive_dpo/test_functional.py",
    "tests/plugins/adaptive_dpo/test_weighting.py",
    "tests/plugins/classics/test_functional.py",
    "tests/plugins/classics/test_objectives.py",
    "tests/plugins/diffusion_dpo",
    "tests/plugins/dmpo",
    "tests/plugins/inversion_dpo/test_functional.py",
    "tests/plugins/ppd/test_functional.py",
    "tests/plugins/see_dpo",
)
# mutmut's words for what came of a mutant, by the exit status of the tests
KILLED, SURVIVED, TIMEOUT = "killed", "survived", "timeout"
NAMES = {0: SURVIVED, 1: KILLED, 3: KILLED, 5: "no test", 33: "no test", None: "not run"}
TIMEOUTS = (36, 24, -24, 152, 255)


class Mutant(NamedTuple):
    """A change and what came of it.

    Args:
        name: mutmut's.
        module: the file.
        outcome: "killed", "survived", "timeout", or what else went wrong.
    """

    name: str
    module: str
    outcome: str


def main() -> int:
    """Runs mutmut and writes the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="*", help="files, such as 'alignkit_dmpo/*'; all")
    parser.add_argument("--out", type=Path, help="folder for the table; it is only printed without it")
    parser.add_argument("--processes", type=int, default=1, help="how many mutants are tested at a time")
    options = parser.parse_args()
    stage()
    patterns = [] if options.only == "*" else [options.only.replace("/", ".").removesuffix(".py") + ".*"]
    command = [sys.executable, "-m", "mutmut", "run", "--max-children", str(options.processes), *patterns]
    with (STAGE / "mutmut.log").open("wb") as log:
        ran = subprocess.run(
            command, cwd=STAGE, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
    if ran.returncode:
        print(f"mutmut failed; it says why in {STAGE / 'mutmut.log'}", file=sys.stderr)
        return ran.returncode
    mutants = [mutant for mutant in outcomes() if fnmatch.fnmatch(mutant.module, options.only)]
    lines, unexplained = table(mutants)
    print("\n".join(lines))
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "mutants.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 1 if unexplained or share(mutants) < ENOUGH else 0


def packages() -> dict[str, Path]:
    """Folders of all packages, by name."""
    found = [ROOT / "alignkit", *sorted((ROOT / "plugins").iterdir())]
    return {path.name: path for path in found if (path / "__init__.py").exists()}


def stage() -> None:
    """Copies packages and tests to where mutmut changes copies of them."""
    shutil.rmtree(STAGE, ignore_errors=True)
    ignored = shutil.ignore_patterns("__pycache__")
    for name, path in {**packages(), "tests": ROOT / "tests", "configs": ROOT / "configs"}.items():
        shutil.copytree(path, STAGE / name, ignore=ignored)
    files = [str(path.relative_to(STAGE)) for name in packages() for path in (STAGE / name).rglob("*.py")]
    chosen = [path for path in sorted(files) if any(fnmatch.fnmatch(path, pattern) for pattern in MATHS)]
    settings = {
        "source_paths": list(packages()),
        "only_mutate": chosen,
        "also_copy": ["configs"],
        "pytest_add_cli_args_test_selection": list(TESTS),
        "use_git_change_detection": False,
        "use_setproctitle": False,
    }
    pytest = {
        "pythonpath": ["."],
        "addopts": ["--import-mode=importlib", "-p", "no:cacheprovider"],
        "markers": ["slow"],
    }
    lines = ["[tool.mutmut]", *(f"{key} = {json.dumps(value)}" for key, value in settings.items())]
    lines += ["[tool.pytest.ini_options]", *(f"{key} = {json.dumps(value)}" for key, value in pytest.items())]
    (STAGE / "pyproject.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")


def outcomes() -> Iterator[Mutant]:
    """What came of every mutant."""
    for path in sorted((STAGE / "mutants").rglob("*.py.meta")):
        module = str(path.relative_to(STAGE / "mutants")).removesuffix(".meta")
        for name, code in json.loads(path.read_text())["exit_code_by_key"].items():
            outcome = TIMEOUT if code in TIMEOUTS else NAMES.get(code, f"exit status {code}")
            yield Mutant(name, module, outcome)


def share(mutants: list[Mutant]) -> float:
    """How many were noticed, of all that could be."""
    return sum(mutant.outcome in (KILLED, TIMEOUT) for mutant in mutants) / max(len(mutants), 1)


def change(mutant: Mutant) -> tuple[str, str]:
    """The lines that a mutant takes away and adds."""
    command = [sys.executable, "-m", "mutmut", "show", mutant.name]
    shown = subprocess.run(command, cwd=STAGE, capture_output=True, text=True, check=True).stdout
    body = [line for line in shown.splitlines() if not line.startswith(("---", "+++", "#"))]
    old, new = ([line[1:].strip() for line in body if line.startswith(sign)] for sign in "-+")
    return " ".join(old), " ".join(new)


def table(mutants: list[Mutant]) -> tuple[list[str], int]:
    """The page, and how many survivors have no reason there."""
    from report import header

    reasons: list[dict[str, Any]] = yaml.safe_load(REASONS.read_text(encoding="utf-8")) or []
    lines = header(
        "Mutants of the maths",
        f"mutmut {version('mutmut')}. A timeout is a mutant that was noticed, too.",
    )
    lines += ["| module | mutants | killed | timeout | survived | other |", "|---|---|---|---|---|---|"]
    modules = dict.fromkeys(mutant.module for mutant in mutants)
    for module in (*modules, "all"):
        count = Counter(mutant.outcome for mutant in mutants if module in (mutant.module, "all"))
        other = count.total() - count[KILLED] - count[TIMEOUT] - count[SURVIVED]
        figures = (count.total(), count[KILLED], count[TIMEOUT], count[SURVIVED], other)
        lines.append(f"| `{module}` | {' | '.join(map(str, figures))} |")
    left = [mutant for mutant in mutants if mutant.outcome not in (KILLED, TIMEOUT)]
    lines += ["", f"{share(mutants):.1%} were noticed. The others:", ""]
    unexplained = 0
    for mutant in left:
        old, new = change(mutant)
        place = f"{mutant.module.removesuffix('.py').replace('/', '.')}.{function(mutant.name)}"
        reason = next(
            (item["reason"] for item in reasons if (item["where"], item["to"]) == (place, new)),
            None,
        )
        unexplained += reason is None
        lines.append(f"- `{place}`: `{old}` to `{new}` ({mutant.outcome}): {reason or 'NO REASON YET'}")
    return lines, unexplained


def function(name: str) -> str:
    """The function or method of a mutant, by mutmut's name of it."""
    mangled = name.rpartition("__mutmut_")[0].rpartition(".")[2]
    return ".".join(mangled.strip("x").split("ǁ")[1:]) if "ǁ" in mangled else mangled.removeprefix("x_")


if __name__ == "__main__":
    sys.exit(main())
