"""What the command line answers, and how configs and options add up."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignkit import __version__
from alignkit.catalog import discover
from alignkit.configfiles import packaged_configs
from alignkit.naming import OPTIMIZERS
from tests.runs import environment

Run = Callable[..., tuple[int, str, str]]

CONFIG = """
seed_everything: 3
objective: {name: DMPO, beta: 7.0}
sampler: SharedNoise
backbone: {name: StableDiffusion, path: nowhere}
optimizer: {name: AdamW, lr: 1.0e-4, weight_decay: 0.5}
data:
  train: {class_path: tests.integration.conftest.NoisyPairs}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(CONFIG)
    return path


def parsed(alignkit: Run, *arguments: str) -> dict[str, Any]:
    """The whole config that a command line amounts to."""
    code, out, err = alignkit("fit", *arguments, "--print_config")
    assert code == 0, err
    assert err == ""
    config: dict[str, Any] = yaml.safe_load(out)
    return config


def in_a_process(*arguments: str, forbidden: str = "") -> subprocess.CompletedProcess[str]:
    """Runs the command in a process in which a package cannot be imported."""
    code = f"import sys; sys.modules[{forbidden!r}] = None; from alignkit.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["--help"], ["usage: alignkit", "fit", "generate", "--debug", "-p no:PLUGIN"]),
        ([], ["usage: alignkit"]),
        (["--version"], [f"alignkit {__version__}"]),
        (["list"], ["objective", "DMPO", "DiffusionDPO", "StableDiffusion", "EmojiPairs", "alignkit"]),
        (["list", "--configs"], sorted(packaged_configs())),
        (["list", "--papers"], ["| paper |", "https://arxiv.org/abs/2507.07510"]),
        (["list", "--help"], ["--configs", "--papers"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_answered_without_torch(arguments: list[str], wanted: list[str]) -> None:
    done = in_a_process(*arguments, forbidden="torch")
    assert (done.returncode, done.stderr) == (0, "")
    for words in wanted:
        assert words in done.stdout


def test_the_rest_needs_torch() -> None:
    """The test above would notice an import."""
    assert "import of torch halted" in in_a_process("fit", "--help", forbidden="torch").stderr


def test_list_shows_every_component(alignkit: Run) -> None:
    _, out, _ = alignkit("list")
    lines = [line.split() for line in out.splitlines()[1:]]
    found = discover().components
    assert found
    assert {(line[0], line[1]) for line in lines} == set(found)


def test_help_of_fit_lists_the_components(alignkit: Run) -> None:
    code, out, err = alignkit("fit", "--help")
    assert (code, err) == (0, "")
    names = discover().names("objective")
    assert names
    for word in (*names, "--config", "--objective", "--vars", "--run", "--data.batch_size"):
        assert word in out


@pytest.mark.parametrize(
    ("option", "name", "wanted"),
    [
        ("--objective.help", "DMPO", ["--objective.beta", "strength of the pull", "--objective.alpha"]),
        ("--data.train.help", "EmojiPairs", ["--data.train.split"]),
        ("--optimizer.help", "AdamW", ["--optimizer.lr", "--optimizer.weight_decay"]),
    ],
)
def test_help_of_a_component(alignkit: Run, option: str, name: str, wanted: list[str]) -> None:
    code, out, err = alignkit("fit", option, name)
    assert (code, err) == (0, "")
    for words in wanted:
        assert words in out


@pytest.mark.parametrize(
    ("options", "beta"),
    [
        (["--objective.beta", "${vars.beta}"], 11.0),
        (["--objective.beta=${vars.beta}", "--vars.beta=13"], 13.0),
        (["--objective.beta=${data.batch_size}"], 8.0),
        (["--objective.beta=${data.batch_size}", "--data.batch_size=5"], 5.0),
        (["--data.batch_size=5", "--objective.beta=${data.batch_size}"], 5.0),
    ],
)
def test_interpolation_on_the_command_line(
    alignkit: Run, config: Path, options: list[str], beta: float
) -> None:
    config.write_text(CONFIG + "  batch_size: 8\nvars: {beta: 11.0}\n")
    assert parsed(alignkit, "--config=mine.yaml", *options)["objective"]["init_args"]["beta"] == beta


@pytest.mark.parametrize(("options", "beta"), [([], 11.0), (["--vars.beta", "13"], 13.0)])
def test_interpolation_in_a_config(alignkit: Run, config: Path, options: list[str], beta: float) -> None:
    objective = "objective:\n  name: DMPO\n  beta: ${vars.beta}\n"
    config.write_text(
        CONFIG.replace("objective: {name: DMPO, beta: 7.0}\n", objective) + "vars: {beta: 11.0}\n"
    )
    assert parsed(alignkit, "--config=mine.yaml", *options)["objective"]["init_args"]["beta"] == beta


def test_another_name_starts_from_its_own_defaults(alignkit: Run, config: Path) -> None:
    given = parsed(alignkit, "--config=mine.yaml")["objective"]
    assert given["init_args"] == {"beta": 7.0, "alpha": 0.01}
    other = parsed(alignkit, "--config=mine.yaml", "--objective", "DiffusionDPO")["objective"]
    assert other["class_path"].endswith(".DiffusionDPO")
    assert other["init_args"] == {"beta": 2000.0}


def test_an_option_keeps_the_other_arguments(alignkit: Run, config: Path) -> None:
    objective = parsed(alignkit, "--config=mine.yaml", "--objective.alpha", "0.1")["objective"]
    assert objective["init_args"] == {"beta": 7.0, "alpha": 0.1}


def test_a_later_config_goes_over_an_earlier_one(alignkit: Run, config: Path, tmp_path: Path) -> None:
    (tmp_path / "over.yaml").write_text("objective: {beta: 9.0}\ndata: {batch_size: 3}\n")
    whole = parsed(alignkit, "--config", "mine.yaml", "--config", "over.yaml")
    assert whole["objective"]["init_args"] == {"beta": 9.0, "alpha": 0.01}
    assert whole["data"]["batch_size"] == 3
    assert whole["data"]["train"]["class_path"] == "tests.integration.conftest.NoisyPairs"
    (tmp_path / "over.yaml").write_text("objective: DiffusionDPO\n")
    assert parsed(alignkit, "--config=mine.yaml", "-c", "over.yaml")["objective"]["init_args"] == {
        "beta": 2000
    }


def test_packaged_config_is_found_from_an_empty_folder_and_a_file_here_comes_first(
    alignkit: Run, tmp_path: Path
) -> None:
    name = next(name for name in packaged_configs() if "/" not in name)
    assert not any(tmp_path.iterdir())
    assert parsed(alignkit, "--config", name)["backbone"]["init_args"]["path"] != "nowhere"
    (tmp_path / name).write_text(CONFIG)
    assert (
        parsed(alignkit, "--config", name)["data"]["train"]["class_path"]
        == "tests.integration.conftest.NoisyPairs"
    )


def test_another_optimizer(alignkit: Run, config: Path) -> None:
    whole = parsed(alignkit, "--config=mine.yaml", "--optimizer", "SGD", "--optimizer.lr", "0.1")
    assert whole["optimizer"]["class_path"] == "torch.optim.SGD"
    assert whole["optimizer"]["init_args"]["lr"] == 0.1
    assert whole["optimizer"]["init_args"]["weight_decay"] == 0


def test_mapping_and_list_on_the_command_line(alignkit: Run, config: Path) -> None:
    options = ("--objective", "{name: DMPO, alpha: 0.2}", "--evaluation.rewards", "[MajorityTaste]")
    whole = parsed(alignkit, "--config=mine.yaml", *options)
    assert whole["objective"]["init_args"] == {"beta": 2000.0, "alpha": 0.2}
    assert [item["class_path"].rpartition(".")[2] for item in whole["evaluation"]["rewards"]] == [
        "MajorityTaste"
    ]


def test_printed_config_says_the_same_again(alignkit: Run, config: Path, tmp_path: Path) -> None:
    whole = parsed(alignkit, "--config=mine.yaml", "--objective.alpha=0.3")
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(whole))
    assert parsed(alignkit, "--config=again.yaml") == whole


def test_every_optimizer_can_be_named(alignkit: Run, config: Path) -> None:
    """Its defaults are written out, so they must be values that its types allow."""
    assert "SGD" in OPTIMIZERS
    for name in OPTIMIZERS:
        whole = parsed(alignkit, "--config=mine.yaml", "--optimizer", name)
        assert whole["optimizer"]["class_path"] == f"torch.optim.{name}"


def test_help_lists_commands_of_plugins(alignkit: Run) -> None:
    found = discover()
    assert found.names("command")
    code, out, _ = alignkit("--help")
    assert code == 0
    for name in found.names("command"):
        assert f"  {name:10} {found.components['command', name].help}" in out
        code, explained, err = alignkit(name, "--help")
        assert (code, err) == (0, "")
        assert f"alignkit {name}" in explained
