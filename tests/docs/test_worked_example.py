"""The worked example of docs/write_a_method.md, from its files to its run, without a network."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from alignkit.evaluation.report import read

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "write_a_method.md").read_text(encoding="utf-8")
FENCE = re.compile(r'^```(?P<language>\w+)(?: title="(?P<title>[^"]+)")?\n(?P<text>.*?)^```$', re.M | re.S)
BELOW = ", below"
INSTALL = "pip install -e ."
# a few steps in place of a run, and of an evaluation
QUICK = ("--num-steps=2", "--seeds=2", "--device=cpu")
SHORT = (
    "--trainer.max_steps=3",
    "--trainer.limit_val_batches=1",
    "--trainer.enable_progress_bar=false",
    "--evaluation.max_prompts=1",
    "--evaluation.images_per_prompt=2",
    "--evaluation.num_steps=2",
    "--samples.num_prompts=0",
)


def files() -> dict[str, str]:
    found: dict[str, str] = {}
    for match in FENCE.finditer(PAGE):
        if match["title"]:
            name = match["title"].removesuffix(BELOW)
            assert (name in found) == match["title"].endswith(BELOW), match["title"]
            found[name] = "\n\n".join([found[name], match["text"]] if name in found else [match["text"]])
    return found


def commands() -> list[str]:
    shells = [match["text"] for match in FENCE.finditer(PAGE) if match["language"] == "sh"]
    return [command for shell in shells for command in shell.splitlines()]


def test_the_page_has_the_files_and_commands_that_it_promises() -> None:
    assert list(files()) == [
        "pyproject.toml",
        "squared_hinge/__init__.py",
        "squared_hinge/functional.py",
        "squared_hinge/objective.py",
        "tests/test_squared_hinge.py",
        "squared_hinge/judging.py",
    ]
    assert [command.split()[0] for command in commands()] == [
        "pip",
        "alignkit",
        "pytest",
        "alignkit",
        "alignkit",
    ]
    assert commands()[0] == INSTALL


def test_the_python_of_the_page_is_formatted_and_checked_like_ours(tmp_path: Path) -> None:
    for name, text in files().items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    for ruff in (["check", "--ignore", "D103,D100"], ["format", "--check"]):
        command = [
            sys.executable,
            "-m",
            "ruff",
            *ruff,
            "--no-cache",
            "--config",
            str(ROOT / "pyproject.toml"),
        ]
        done = subprocess.run([*command, "."], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_the_example_installs_keeps_the_contracts_and_trains(tmp_path: Path) -> None:
    folder, installed = tmp_path / "squared-hinge", tmp_path / "installed"
    for name, text in files().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    environment = {key: value for key, value in os.environ.items() if key != "ALIGNKIT_RUN"}
    environment["PYTHONPATH"] = os.pathsep.join([str(installed), *sys.path])
    python, target = shlex.quote(sys.executable), shlex.quote(str(installed))
    ours = {
        # beside this environment and not into it; what it needs is there
        "pip": f"{python} -m pip install -q --no-deps --no-build-isolation --target {target} .",
        "pytest": f"{python} -m pytest -q -W error -p no:cacheprovider",
        "alignkit": f"{python} -m alignkit.cli",
    }
    printed = []
    for command in commands():
        program, *arguments = shlex.split(command)
        given = [] if program == "pip" else arguments
        short = {"fit": SHORT, "evaluate": QUICK}.get(arguments[0] if arguments else "", ())
        done = subprocess.run(
            [*shlex.split(ours[program]), *given, *short],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        printed.append(done.stdout)
    assert re.search(r"objective +SquaredHinge +squared_hinge +squared-hinge 0\.1\.0", printed[1])
    for name in ("Greenness", "Layout", "GreenFruit"):
        assert re.search(rf"{name} +squared_hinge +squared-hinge 0\.1\.0", printed[1])
    assert re.search(r"3\d passed", printed[2])
    summary = json.loads((folder / "runs" / "squared_hinge" / "summary.json").read_text())
    assert (summary["objective"], summary["steps"]) == ("SquaredHinge", 3)
    report = read(folder / "evaluations" / "squared_hinge-GreenFruit")
    assert {one.category for one in report.comparisons} == {None, "tree", "vine"}
    assert {one.measure for one in report.comparisons} == {"Greenness", "diversity", "vendi", "displacement"}
    assert report.manifest["suite"]["prompts"] == 4
