"""Configs are found by path, and by name from any folder."""

import subprocess
import sys
from pathlib import Path

import pytest

from alignkit import configfiles
from alignkit.configfiles import ConfigNotFoundError, find_config, packaged_configs

ROOT = Path(__file__).parents[2]


def test_packaged_configs_are_those_of_the_checkout():
    expected = {path.relative_to(ROOT / "configs").as_posix() for path in (ROOT / "configs").rglob("*.yaml")}
    assert expected
    assert set(packaged_configs()) == expected
    assert all(path.is_file() for path in packaged_configs().values())


def test_name_is_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for name, path in packaged_configs().items():
        assert find_config(name) == path


def test_file_here_comes_before_the_packaged_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    name = next(iter(packaged_configs()))
    mine = tmp_path / name
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("seed_everything: 1\n")
    assert find_config(name).resolve() == mine
    assert find_config(mine) == mine


def test_installed_package_reads_the_folder_inside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A stranger's ``configs`` beside an installed package is not ours."""
    inside, beside = tmp_path / "alignkit" / "configs", tmp_path / "configs"
    for folder in (inside, beside):
        folder.mkdir(parents=True)
        (folder / f"{folder.parent.name}.yaml").touch()
    monkeypatch.setattr(configfiles, "_FOLDERS", (inside, beside))
    assert packaged_configs() == {"alignkit.yaml": inside / "alignkit.yaml"}


def test_unknown_name_is_answered_with_the_nearest(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "dmpo.yaml").touch()
    monkeypatch.setattr(configfiles, "_FOLDERS", (tmp_path,))
    with pytest.raises(ConfigNotFoundError) as error:
        find_config("dnpo.yaml")
    assert "no config 'dnpo.yaml'" in str(error.value)
    assert "did you mean 'dmpo.yaml'?" in str(error.value)
    assert "With alignkit come: dmpo.yaml" in str(error.value)


def test_imports_no_torch():
    code = "import sys, alignkit.configfiles; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
