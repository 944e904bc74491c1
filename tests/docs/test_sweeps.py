"""The recipes of docs/sweeps.md say what runs."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignkit.cli import main
from alignkit.configfiles import find_config
from alignkit.sweep.options import parsed

PAGE = (Path(__file__).parents[2] / "docs" / "sweeps.md").read_text(encoding="utf-8")
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.M | re.S)
BLOCKS = FENCE.findall(PAGE.replace("\\\n", " "))
LINES = [line for language, text in BLOCKS if language == "sh" for line in text.splitlines()]


def commands(name: str) -> list[list[str]]:
    """Arguments of an ``alignkit NAME`` wherever the page's shells call it."""
    found = [line.partition(f"alignkit {name} ")[2] for line in LINES if f"alignkit {name} " in line]
    return [shlex.split(line.rstrip("& ")) for line in found]


@pytest.fixture
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(find_config("dmpo.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("arguments", commands("sweep"), ids=" ".join)
@pytest.mark.usefixtures("_here")
def test_sweeps_of_the_page_can_be_run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", *arguments, "--dry-run"]) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    assert " fit --config " in said
    assert "made once: " in said


@pytest.mark.usefixtures("_here")
def test_the_default_metric_is_the_first_reward(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "dmpo.yaml", "--grid", "objective.beta=500,2000", "--dry-run"]) == 0
    assert "2 trials of dmpo.yaml, 2 runs; gain in MajorityTaste, higher is better" in capsys.readouterr().out


def test_options_of_the_page_are_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    named = re.findall(r"^\| `(--[\w-]+)", PAGE, re.M)
    assert "--retry" in named
    with pytest.raises(SystemExit):
        parsed(["--help"])
    told = capsys.readouterr().out
    assert [name for name in named if f"\n  {name} " not in told and f"\n  {name}\n" not in told] == []


def shown(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The whole config of an ``alignkit fit``."""
    with pytest.raises(SystemExit) as left:
        main(["fit", *arguments, "--print_config"])
    told = capsys.readouterr()
    assert left.value.code == 0, told.err
    found: dict[str, Any] = yaml.safe_load(told.out)
    return found


@pytest.mark.usefixtures("_here")
def test_a_loop_over_fit_is_a_sweep(capsys: pytest.CaptureFixture[str]) -> None:
    (arguments,) = commands("fit")
    for beta in ("500", "2000"):
        words = [word.replace("$beta", beta) for word in arguments]
        config = shown(words, capsys)
        assert config["objective"]["init_args"]["beta"] == float(beta)
        assert config["run"] == f"runs/beta-{beta}"


@pytest.mark.usefixtures("_here")
def test_an_agent_of_weights_and_biases_calls_fit(capsys: pytest.CaptureFixture[str]) -> None:
    """It puts ``--name=value`` of every parameter in the place of ${args}."""
    (text,) = [text for language, text in BLOCKS if language == "yaml"]
    sweep = yaml.safe_load(text)
    values = {"objective.beta": 712.5, "optimizer.lr": 2e-05}
    assert values.keys() == sweep["parameters"].keys()
    program, command, *rest = sweep["command"]
    assert (program, command, rest.pop()) == ("alignkit", "fit", "${args}")
    config = shown([*rest, *(f"--{name}={value}" for name, value in values.items())], capsys)
    assert config["objective"]["init_args"]["beta"] == 712.5
    assert config["optimizer"]["init_args"]["lr"] == 2e-05
    assert config["trainer"]["logger"]["class_path"] == "lightning.pytorch.loggers.WandbLogger"
