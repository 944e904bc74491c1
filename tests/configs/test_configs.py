"""Every packaged config can be read by the command that it is for."""

import sys
from pathlib import Path

import pytest
import yaml

from alignkit import cli
from alignkit.configfiles import packaged_configs
from alignkit_emoji.build.train import main

# these train the networks that alignkit_emoji ships
BUILD = "emoji/"


def test_there_are_configs_of_both_kinds() -> None:
    kinds = {name.startswith(BUILD) for name in packaged_configs()}
    assert kinds == {True, False}


@pytest.mark.parametrize("name", [name for name in packaged_configs() if not name.startswith(BUILD)])
def test_config_of_alignkit(
    name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        cli.main(["fit", "--config", name, "--print_config"])
    assert left.value.code == 0
    whole = yaml.safe_load(capsys.readouterr().out)
    said = yaml.safe_load(packaged_configs()[name].read_text(encoding="utf-8"))
    assert whole["objective"]["class_path"].endswith(f".{said['objective']['name']}")
    assert whole["trainer"]["max_steps"] == said["trainer"]["max_steps"]
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", [name for name in packaged_configs() if name.startswith(BUILD)])
def test_config_of_the_build(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parsed by what ``alignkit_emoji.build.train`` runs."""
    path = packaged_configs()[name]
    monkeypatch.setattr(sys, "argv", ["train", "fit", "--config", str(path), "--print_config"])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 0
    whole = yaml.safe_load(capsys.readouterr().out)
    said = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert whole["model"]["class_path"] == said["model"]["class_path"]


@pytest.mark.parametrize("name", packaged_configs())
def test_config_says_what_it_is_and_how_to_run_it(name: str) -> None:
    first, second, *_ = packaged_configs()[name].read_text(encoding="utf-8").splitlines()
    assert first.startswith("# ")
    assert second.startswith("# ")
    assert f"fit --config {'configs/' * name.startswith(BUILD)}{name}" in second
